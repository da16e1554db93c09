"""A file that brings its reader down is one ledger row, in the first run and in every later one."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
from datasets_support import CLASSES, TEST, TRAIN, CopyRaw

from embeddings_assets.datasets.inspection import Inspector
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.errors import EmbeddingsError
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest, read_ledger

pytest_plugins = ("datasets_fixtures",)

CUB = "CUB-200-2011"
IMAGES = CLASSES * (TRAIN + TEST)
LONG_AGO = 1_600_000_000 * 10**9

# Loaded by the processes that are started, and not by the one that runs the tests.
CRASHING = """
import os
opened = os.open

def crash(path, *arguments, **options):
    if os.fspath(path) == {poison!r}:
        with open({log!r}, "ab") as stream:
            stream.write(b".")
        {end}
    return opened(path, *arguments, **options)

os.open = crash
"""


class Poisoned:
    """A CUB folder that was unpacked long ago, with one file that ends whatever process reads it."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.file = next((folder / "images").rglob("*.jpg"))
        self.log = scratch / "log"
        for path in folder.rglob("*"):
            os.utime(path, ns=(LONG_AGO, LONG_AGO))
        os.utime(folder, ns=(LONG_AGO, LONG_AGO))

    @property
    def readings(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def cut_off(self) -> None:
        """Take the end of the file away, so that only a decoder can tell what is left."""
        self.file.write_bytes(self.file.read_bytes()[:-2])
        os.utime(self.file, ns=(LONG_AGO, LONG_AGO))

    def touch(self) -> None:
        os.utime(self.file, ns=(LONG_AGO, self.file.stat().st_mtime_ns + 10**9))


@pytest.fixture
def poisoned(copy_raw: CopyRaw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Poisoned:
    made = Poisoned(copy_raw(CUB), tmp_path)
    end_process_of(made, "os.kill(os.getpid(), 11)", tmp_path, monkeypatch)
    return made


def end_process_of(made: Poisoned, end: str, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = CRASHING.format(poison=str(made.file), log=str(made.log), end=end)
    (scratch / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(scratch))


def prepare(paths: DataPaths, **options: object) -> tuple[int, list[tuple[str, str]]]:
    """How many files were read, and reason and detail of each ledger row."""
    reports = prepare_dataset(CUB, paths, max_bad_share=1.0, **options)  # type: ignore[arg-type]
    assert sum(report.rows + sum(report.ledger.values()) for report in reports) == IMAGES
    rows = []
    for report in reports:
        folder = paths.processed_split(CUB, report.split)
        assert open_manifest(paths, CUB, report.split).rows == report.rows
        rows += [
            (row["reason"], row["detail"]) for row in read_ledger(folder / "_ledger.parquet").to_pylist()
        ]
    return sum(report.read for report in reports), rows


CRASH = [("corrupt", f"crashes its reader ({signal.SIGSEGV.name})")]


@pytest.mark.parametrize("workers", [None, 1])
@pytest.mark.parametrize("decode", [False, True], ids=["header", "decode"])
def test_a_crash_is_one_ledger_row_and_is_remembered(
    poisoned: Poisoned, paths: DataPaths, decode: bool, workers: int | None
) -> None:
    if not decode:
        poisoned.cut_off()
    assert prepare(paths, decode=decode, workers=workers) == (IMAGES, CRASH)
    readings = poisoned.readings
    assert readings
    assert prepare(paths, decode=decode, workers=workers) == (0, CRASH)
    assert poisoned.readings == readings, "not read again"
    poisoned.touch()
    assert prepare(paths, decode=decode, workers=workers) == (1, CRASH)
    assert poisoned.readings > readings


def test_decoding_after_a_look_at_headers_is_done_by_processes(poisoned: Poisoned, paths: DataPaths) -> None:
    assert prepare(paths) == (IMAGES, [])
    assert prepare(paths, decode=True) == (IMAGES, CRASH)
    assert prepare(paths) == (1, []), "a header alone crashes nothing"


def test_a_file_that_is_new_after_many_is_read_by_a_process(poisoned: Poisoned, paths: DataPaths) -> None:
    """Most is known, so that one file is left: too few for processes to pay."""
    assert prepare(paths) == (IMAGES, [])
    poisoned.cut_off()
    poisoned.touch()
    assert prepare(paths) == (1, CRASH)


def test_a_file_of_another_format_is_read_by_a_process(poisoned: Poisoned, paths: DataPaths) -> None:
    poisoned.file.write_bytes(b"RIFF\0\0\0\0WEBP")
    assert prepare(paths)[1] == CRASH


def test_a_process_that_is_ended_from_outside_is_no_fault_of_the_file(
    poisoned: Poisoned, paths: DataPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_process_of(poisoned, "os.kill(os.getpid(), 9)", tmp_path, monkeypatch)
    with pytest.raises(EmbeddingsError, match=r"was ended from outside \(SIGKILL\)"):
        prepare(paths, decode=True)


def test_a_file_that_hangs_its_decoder_is_named(
    poisoned: Poisoned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it is the only one."""
    end_process_of(poisoned, "import time; time.sleep(600)", tmp_path, monkeypatch)
    with (
        contextlib.closing(Inspector(1, decode=True, timeout=0.2)) as inspector,
        pytest.raises(EmbeddingsError, match=rf"{poisoned.file}: not read after 0\.2 seconds"),
    ):
        list(inspector.inspect([str(poisoned.file)]))
