"""The command line as a user meets it: exit codes, tables, errors, and what stays untouched."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from image_tree import DATASET, write_tree

from embeddings_assets.settings import DataPaths
from embeddings_assets.store.reading import load_table, part_files

COMMAND = [sys.executable, "-m", "embeddings_assets.cli.main"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    write_tree(root / "data", per_class=12)
    return root


@pytest.fixture(scope="module")
def extracted(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree with CLIP's three splits, computed by the documented script."""
    root = tmp_path_factory.mktemp("extracted") / "project"
    shutil.copytree(tree, root)
    script = [sys.executable, "-m", "embeddings_assets.extract_embeddings", "--model", "CLIP"]
    options = ["--dataset", DATASET, "--data_dir", "data/processed", "--output_dir", "data/embeddings"]
    result = run(root, *script, *options, EMBEDDINGS_WEIGHTS="random")
    assert result.returncode == 0, result.stderr
    assert "Untrained weights" in result.stderr
    assert result.stdout.count("computed") == 3
    return root


@pytest.fixture
def project(extracted: Path, tmp_path: Path) -> Path:
    shutil.copytree(extracted, tmp_path / "project")
    return tmp_path / "project"


def run(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDDINGS_")}
    return subprocess.run(
        arguments, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, check=False
    )


def command(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(cwd, *COMMAND, *arguments, **environment)


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_help_names_every_command(tmp_path: Path) -> None:
    shown = command(tmp_path, "--help").stdout
    for name in ("prepare", "extract", "verify", "doctor", "weights", "demo"):
        assert name in shown


def test_a_second_run_changes_nothing_and_verify_passes(project: Path) -> None:
    before = snapshot(project)
    again = command(project, "extract", "--model", "CLIP", "--dataset", DATASET, "--weights", "random")
    assert again.returncode == 0
    assert again.stdout.count("unchanged") == 3
    assert snapshot(project) == before
    verified = command(project, "verify")
    assert (verified.returncode, verified.stdout.strip()) == (0, "3 splits verified, nothing wrong.")


def test_verify_names_the_damaged_split_and_the_promise(project: Path) -> None:
    part = part_files(DataPaths.from_root(project / "data").embeddings_split("CLIP", DATASET, "test"))[0]
    part.write_bytes(part.read_bytes()[:-20])
    result = command(project, "verify")
    assert result.returncode == 1
    assert "readable" in result.stdout
    assert "validation" not in result.stdout
    assert "To mend" in result.stderr
    assert command(project, "verify", "data/embeddings/CLIP/CUB-200-2011/train").returncode == 0
    nothing = command(project, "verify", "data/raw")
    assert (nothing.returncode, "no embeddings here" in nothing.stderr) == (1, True)


def test_files_alone_are_verified_where_the_manifests_are_gone(project: Path) -> None:
    shutil.rmtree(project / "data" / "processed")
    assert command(project, "verify").returncode == 1
    assert command(project, "verify", "--without-manifest").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message", "remedy"),
    [
        (("extract", "--model", "clip", "--dataset", DATASET), "Unknown model 'clip'", "use 'CLIP'"),
        (("extract", "--model", "CLIP", "--dataset", "CUB"), "Unknown dataset 'CUB'", "use 'CUB-200-2011'"),
        (
            ("extract", "--model", "CLIP", "--dataset", "../raw", "--weights", "random"),
            "Unknown dataset '../raw'",
            "",
        ),
        (
            ("extract", "--model", "CLIP", "--dataset", DATASET, "--weights", "nowhere"),
            "nowhere",
            "embeddings-assets weights fetch",
        ),
        (("prepare", "--dataset", "NABirds"), "nabirds", "--raw-dir"),
        (
            (
                "extract",
                "--model",
                "CLIP",
                "--dataset",
                DATASET,
                "--weights",
                "random",
                "--precision",
                "fast",
            ),
            "holds embeddings of another recipe",
            "--replace",
        ),
        (
            ("extract", "--model", "CLIP", "--dataset", DATASET, "--weights", "random", "--device", "cuda:9"),
            "",
            "",
        ),
    ],
    ids=["model", "dataset", "path as dataset", "weights", "raw folder", "recipe", "unneeded device"],
)
def test_a_mistake_is_one_clear_error_and_changes_nothing(
    project: Path, arguments: tuple[str, ...], message: str, remedy: str
) -> None:
    before = snapshot(project)
    result = command(project, *arguments)
    assert message in result.stderr
    assert remedy in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert result.returncode == (1 if message else 0)  # an unchanged split needs no device
    assert snapshot(project) == before


@pytest.mark.parametrize(
    ("variable", "value"), [("EMBEDDINGS_PRECISION", "double"), ("EMBEDDINGS_WIDTH", "512")]
)
def test_a_setting_outside_its_list_is_refused(tmp_path: Path, variable: str, value: str) -> None:
    result = command(tmp_path, "doctor", **{variable: value})
    assert result.returncode == 1
    assert f"{variable} is '{value}'" in result.stderr


def half_a_png() -> bytes:
    """A PNG of 48 x 36 pixels whose compressed data ends half way, with right checksums all over."""
    data = zlib.compress(os.urandom(36 * (48 * 3 + 1)))
    header = struct.pack(">2I5B", 48, 36, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data[: len(data) // 2]), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def test_a_corrupt_image_is_named_and_one_among_many_is_a_ledger_row(project: Path) -> None:
    paths = DataPaths.from_root(project / "data")
    image = next(paths.processed_split(DATASET, "train").glob("*/*.jpg"))
    image.write_bytes(half_a_png())
    assert command(project, "prepare", "--dataset", DATASET).returncode == 0  # every chunk of it is sound
    refused = command(project, "prepare", "--dataset", DATASET, "--decode")
    assert refused.returncode == 1
    assert image.name in refused.stderr
    before = snapshot(paths.embeddings)
    extract = ("extract", "--model", "CLIP", "--dataset", DATASET, "--split", "train", "--weights", "random")
    refused = command(project, *extract)
    assert refused.returncode == 1
    assert image.name in refused.stderr
    assert "corrupt" in refused.stderr
    assert snapshot(paths.embeddings_split("CLIP", DATASET, "train")) == {
        name.removeprefix(f"CLIP/{DATASET}/train/"): data
        for name, data in before.items()
        if name.startswith(f"CLIP/{DATASET}/train/")
    }
    accepted = command(project, *extract, "--max-bad-share", "0.1")
    assert accepted.returncode == 0, accepted.stderr
    assert command(project, "verify").returncode == 0
    assert load_table(paths.embeddings_split("CLIP", DATASET, "train")).num_rows == 35


def test_ctrl_c_says_how_to_go_on_and_the_next_run_does(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "project")
    extract = [*COMMAND, "extract", "--model", "CLIP", "--dataset", DATASET, "--weights", "random"]
    extract += ["--split", "train", "--shard-rows", "4", "--batch-size", "4"]
    with subprocess.Popen(
        extract,
        cwd=tmp_path / "project",
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run as a background job, their children would inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "project/data/embeddings/.staging").rglob("shard-000001")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Stopped" in said
    assert "Traceback" not in said
    staged = len(list((tmp_path / "project/data/embeddings/.staging").rglob("shard-*")))
    assert 2 <= staged < 9
    again = run(tmp_path / "project", *extract)
    assert again.returncode == 0, again.stderr
    verified = command(tmp_path / "project", "verify")
    assert verified.returncode == 0
    assert not (tmp_path / "project/data/embeddings/.staging").exists()


def test_prepare_reports_every_split(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "project")
    result = command(tmp_path / "project", "prepare", "--dataset", DATASET)
    assert result.returncode == 0
    assert result.stdout.count(DATASET) == 3
    assert result.stdout.count("unchanged") == 3


def test_doctor_says_what_is_there_and_how_to_get_the_rest(project: Path) -> None:
    lines = json.loads(command(project, "doctor", "--json").stdout)
    by_item = {line["item"]: line for line in lines}
    assert by_item[DATASET]["state"] == "ready"
    assert by_item["NABirds"]["state"] == "missing"
    assert by_item["NABirds"]["remedy"].startswith('embeddings-assets datasets fetch "NABirds" --archives')
    assert by_item["Franca"]["remedy"] == 'embeddings-assets weights fetch "Franca"'
    shown = command(project, "doctor")
    assert shown.returncode == 0
    assert "weights fetch" in shown.stdout


def test_weights_commands_tell_ready_from_missing_and_damaged(tmp_path: Path) -> None:
    missing = command(tmp_path, "weights", "list")
    assert missing.returncode == 0
    assert missing.stdout.count("missing") == 4
    assert "commercial use prohibited" in " ".join(missing.stdout.split())
    assert command(tmp_path, "weights", "verify").returncode == 0
    lock = {"CLIP": {"source": "https://host/ViT-B-32.pt", "revision": None, "file": "ViT-B-32.pt"}}
    lock["CLIP"]["sha256"] = "0" * 64
    (tmp_path / "data/weights/CLIP").mkdir(parents=True)
    (tmp_path / "data/weights/CLIP/ViT-B-32.pt").write_bytes(b"PK not these weights")
    (tmp_path / "data/weights/weights.lock").write_text(json.dumps({"schema": 1, "models": lock}))
    damaged = command(tmp_path, "weights", "verify")
    assert damaged.returncode == 1
    assert "ViT-B-32.pt" in damaged.stderr
