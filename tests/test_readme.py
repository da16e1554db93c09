"""The README is true: every command and every snippet in it is run, in order, in one project folder."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from embeddings_assets.catalog import DATASETS
from embeddings_assets.datasets.synthetic.writer import write_synthetic
from embeddings_assets.encoders.weights.lock import write_random_lock

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root as a user has it: raw folders and weights (untrained ones stand in)."""
    root = tmp_path_factory.mktemp("readme")
    for dataset in DATASETS:
        write_synthetic(root / "data" / "raw", dataset.name, classes=4, train_per_class=6, test_per_class=2)
    write_random_lock(root / "data" / "weights")
    pictures = sorted((root / "data" / "raw").rglob("*.jpg"))
    shutil.copy(pictures[0], root / "a.jpg")
    shutil.copy(pictures[1], root / "b.png")
    return root


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDDINGS_")}
    clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    return subprocess.run(arguments, cwd=project, env=clean, capture_output=True, text=True, check=False)


def test_every_block_of_the_readme_runs(project: Path) -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python"}
    for language, block in BLOCKS:
        if language == "python":
            result = run(project, "python", "-c", block)
            assert result.returncode == 0, f"{block}\n{result.stderr}"
            continue
        for line in block.strip().splitlines():
            arguments = shlex.split(line)
            if arguments[1] in ("weights", "datasets") and arguments[2] == "fetch":
                # Needs the network; tests of the downloads have servers of their own.
                assert run(project, *arguments[:3], "--help").returncode == 0
                continue
            result = run(project, *arguments)
            assert result.returncode == 0, f"{line}\n{result.stderr}"


def test_every_make_target_that_is_named_exists() -> None:
    docs = [page.read_text() for page in (REPOSITORY / "docs").rglob("*.md")]
    named = set(re.findall(r"`make ([a-z-]+)`|^ {4}make ([a-z-]+)", "\n".join([README, *docs]), flags=re.M))
    named = {target for pair in named for target in pair if target}
    assert {"demo", "dev", "test", "test-lowest", "help"} <= named
    for target in named:
        shown = subprocess.run(
            ["make", "--dry-run", target], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert shown.returncode == 0, shown.stderr


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    assert "`make test`" in README
    assert "make test" in (REPOSITORY / ".ci" / "run").read_text().splitlines()


def test_pictures_and_variables_named_in_the_readme_exist() -> None:
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (REPOSITORY / picture).read_bytes().startswith(b"\x89PNG")
    settings = (REPOSITORY / "embeddings_assets" / "settings.py").read_text()
    for variable in re.findall(r"EMBEDDINGS_[A-Z]+", README):
        assert variable in settings
