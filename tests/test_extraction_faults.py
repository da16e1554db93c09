"""What can go wrong in the middle of a run, on real processes: nothing is lost, nothing half-written stays.

Rows are counted by a file that the encoder writes to, one byte for each image it has embedded.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from image_tree import DATASET, write_image
from stub_encoder import StubEncoder

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.errors import EmbeddingsError, SplitBusyError
from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.extraction.engine import extract_split
from embeddings_assets.extraction.report import ExtractionOptions, SplitReport
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.reading import part_files
from embeddings_assets.store.verify import verify_split

pytest_plugins = ("extraction_fixtures",)

ROWS = 180
SHARD = 16  # twelve shards
BATCH = 8


def folder(tree: DataPaths) -> Path:
    return tree.embeddings_split("CLIP", DATASET, "train")


def content(tree: DataPaths) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder(tree).iterdir())}


def images(tree: DataPaths) -> list[Path]:
    manifest = open_manifest(tree, DATASET, "train")
    return [manifest.resolve(path) for path in manifest.slice(0, ROWS).column("image_path").to_pylist()]


def run(
    tree: DataPaths,
    encoder: StubEncoder | None = None,
    *,
    decoders: Decoders | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: object,
) -> SplitReport:
    return extract_split(
        open_manifest(tree, DATASET, "train"),
        encoder or StubEncoder(),
        target=folder(tree),
        staging_root=tree.staging,
        options=ExtractionOptions(**{"shard_rows": SHARD, "batch_size": BATCH, **options}),  # type: ignore[arg-type]
        decoders=decoders,
        progress=progress,
    )


_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from stub_encoder import StubEncoder
from test_extraction_faults import DataPaths, run
log = Path(sys.argv[3])
log.touch()
run(DataPaths.from_root(Path(sys.argv[2])), StubEncoder(seconds=float(sys.argv[4]), log=log))
print("done", flush=True)
"""


def started(tree: DataPaths, log: Path, seconds: float) -> "subprocess.Popen[str]":
    """A run of its own, as far as the first call of the engine."""
    tests = str(Path(__file__).parent)
    command = [sys.executable, "-c", _PROCESS, tests, str(tree.processed.parent), str(log), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(log.exists)
    return process


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


_LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from stub_encoder import StubEncoder
from test_extraction_faults import DataPaths, run

class Full(StubEncoder):
    def encode(self, pixels):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
        return super().encode(pixels)

run(DataPaths.from_root(Path(sys.argv[2])), Full())
"""


@pytest.mark.parametrize("size", [0, 20, 30_000, 40_000, 100_000, 350_000])
def test_a_disk_that_is_full_at_any_write(size: int, tree: DataPaths, undisturbed: dict[str, bytes]) -> None:
    """By a limit on the size of files, which fails as a full disk does: in the middle of a write."""
    largest = max(len(data) for data in undisturbed.values())
    tests = str(Path(__file__).parent)
    command = [sys.executable, "-c", _LIMITED, tests, str(tree.processed.parent), str(size)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if size < largest:
        assert "embeddings_assets.errors.StoreError" in ended.stderr
        assert str(tree.embeddings) in ended.stderr.splitlines()[-1] + ended.stderr.splitlines()[-2]
        assert part_files(folder(tree)) == []
    else:
        assert ended.returncode == 0, ended.stderr
    run(tree)
    assert content(tree) == undisturbed
    assert not tree.staging.exists()


def test_a_split_that_stands_survives_a_full_disk(tree: DataPaths) -> None:
    run(tree)
    before = content(tree)
    write_image(images(tree)[0], seed=4711)
    prepare_dataset(DATASET, tree)
    tests = str(Path(__file__).parent)
    command = [sys.executable, "-c", _LIMITED, tests, str(tree.processed.parent), "40000"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "StoreError" in ended.stderr
    assert content(tree) == before


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _garble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    path.write_bytes(data)


def _make_unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(_garble, "changed"), (_cut, "changed"), (Path.unlink, "missing"), (_make_unreadable, "unreadable")],
)
def test_an_image_spoiled_in_the_middle_of_a_run(
    spoil: Callable[[Path], None], reason: str, tree: DataPaths, undisturbed: dict[str, bytes]
) -> None:
    victim = images(tree)[ROWS - 5]
    whole = victim.read_bytes()

    def spoil_when_half_done(done: int, total: int) -> None:
        if done >= total // 2 and victim.is_file() and victim.read_bytes() == whole:
            spoil(victim)

    report = run(tree, StubEncoder(seconds=0.01), progress=spoil_when_half_done)
    assert report.ledger == {reason: 1}
    assert report.rows == ROWS - 1
    assert all(found.passed for found in verify_split(folder(tree), processed=tree.processed))
    shutil.rmtree(victim, ignore_errors=True)
    victim.unlink(missing_ok=True)
    victim.write_bytes(whole)
    shutil.rmtree(folder(tree))
    run(tree)
    assert content(tree) == undisturbed


def test_two_runs_of_a_split_at_once(tree: DataPaths, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with started(tree, log, 0.05) as process:
        wait_for(lambda: log.stat().st_size)
        with pytest.raises(SplitBusyError):
            run(tree)
        assert process.wait() == 0
    assert content(tree) == undisturbed
    assert log.stat().st_size == ROWS


@pytest.mark.parametrize("year", [1980, 2100])
def test_a_clock_that_was_set_back_or_forth_decides_nothing(
    year: int, tree: DataPaths, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with started(tree, log, 0.03) as process:
        wait_for(lambda: log.stat().st_size >= ROWS // 2)
        process.kill()
    when = time.mktime((year, 1, 1, 0, 0, 0, 0, 0, 0))
    for path in tree.staging.rglob("*"):
        os.utime(path, (when, when))
    report = run(tree)
    assert report.resumed >= ROWS // 2 - SHARD
    assert content(tree) == undisturbed
    for path in folder(tree).iterdir():
        os.utime(path, (when, when))
    assert run(tree).status == "unchanged"


@pytest.mark.parametrize("most", [1, 3, 5])
def test_batches_are_halved_where_memory_is_short(
    most: int, tree: DataPaths, undisturbed: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    report = run(tree, StubEncoder(most_images=most))
    assert report.batch_size == {1: 1, 3: 2, 5: 4}[most]
    assert report.computed == ROWS
    assert f"going on with {report.batch_size}" in caplog.text
    assert folder(tree).exists()
    assert {path.name for path in folder(tree).iterdir()} == set(undisturbed)
    assert all(found.passed for found in verify_split(folder(tree), processed=tree.processed))


def test_memory_too_short_for_one_image_is_an_error(tree: DataPaths) -> None:
    with pytest.raises(EmbeddingsError, match="not enough memory for a single image"):
        run(tree, StubEncoder(most_images=0))


def test_a_run_leaves_no_process_and_no_thread(tree: DataPaths, decoding: Callable[[], list[int]]) -> None:
    before = threading.active_count()
    run(tree)
    assert not decoding()
    assert threading.active_count() == before
