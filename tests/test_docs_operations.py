"""docs/operations.md is true: names, pictures, commands and the launchpad's snippet exist and work."""

import re
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml
from typer.main import get_command

from embeddings_assets.cli.main import app
from embeddings_assets.graph.build import EVERYTHING, build_definitions
from embeddings_assets.graph.recheck import RECHECK
from embeddings_assets.graph.resources import GpuResource
from embeddings_assets.settings import Settings

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs" / "operations.md").read_text()


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    return build_definitions(Settings())


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_every_picture_is_there() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", PAGE)
    assert len(pictures) >= 7
    for picture in pictures:
        assert (REPOSITORY / "docs" / picture).read_bytes().startswith(b"\x89PNG"), picture


def test_the_snippets_are_configurations_that_the_launchpad_takes(defs: dg.Definitions) -> None:
    snippet, of_one_check = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert dg.validate_run_config(defs.resolve_job_def(RECHECK), yaml.safe_load(of_one_check))
    job = defs.resolve_job_def(EVERYTHING)
    assert dg.validate_run_config(job, yaml.safe_load(snippet))
    for wrong in ("precison: fast", "precision: fastest", "workers: many"):
        with pytest.raises(dg.DagsterInvalidConfigError):
            dg.validate_run_config(job, yaml.safe_load(snippet.replace("precision: fast", wrong)))


def test_sensors_checks_assets_and_fields_are_named_as_they_are(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    known = {sensor.name for sensor in defs.sensors or []}
    known |= {key.name for key in graph.asset_check_keys}
    known |= {key.to_user_string() for key in graph.get_all_asset_keys()}
    for name in ("nightly_backfill", "left_failed", "raw_data", "not_left_failed", "weights_trained"):
        assert name in known
        assert f"`{name}`" in PAGE
    for field in ("batch_size", "precision", "replace"):
        assert field in GpuResource.model_fields
        assert field in PAGE


def test_commands_exist() -> None:
    assert "make dev" in PAGE
    assert run("make", "--dry-run", "dev").returncode == 0
    scripts = Path(sys.executable).parent
    assert "--read-only" in run(str(scripts / "dagster-webserver"), "--help").stdout
    assert "-m, --module-name" in run(str(scripts / "dagster"), "code-server", "start", "--help").stdout
    assert run(str(scripts / "dagster-daemon"), "run", "--help").returncode == 0
    assert run(str(scripts / "dagster"), "instance", "concurrency", "set", "--help").returncode == 0
    named = set(re.findall(r"`embeddings-assets ([a-z ]+)`", PAGE))
    assert "weights fetch all" in named
    for words in named:
        command, given = get_command(app), words.split()
        while hasattr(command, "commands"):
            command = command.commands[given.pop(0)]
        command.make_context(words, given)  # refuses what the command does not take, or lacks
