"""Looking at many image files: by threads and by processes, in order, and whatever happens to a process."""

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest
from decoding_processes import started_by
from PIL import Image

from embeddings_assets.datasets import inspection
from embeddings_assets.datasets.inspection import Inspector
from embeddings_assets.datasets.reader import Looked
from embeddings_assets.errors import EmbeddingsError, ImageError
from embeddings_assets.io.images import ImageFacts, inspect_image

pytest_plugins = ("datasets_fixtures",)

MANY = 1500  # enough for processes


@pytest.fixture(scope="module")
def files(synthetic_raw: Path) -> list[str]:
    return sorted(str(path) for path in (synthetic_raw / "flowers-102" / "jpg").iterdir())


@pytest.fixture(scope="module")
def many(files: list[str]) -> list[str]:
    return (files * MANY)[:MANY]


def inspect_images(files: Sequence[str], workers: int, **options: float) -> Generator[Looked, None, None]:
    with contextlib.closing(Inspector(len(files), workers, **options)) as inspector:  # type: ignore[arg-type]
        yield from inspector.inspect(files)


def child_readers() -> list[int]:
    """Reading processes that this one has started and that still run."""
    return started_by(os.getpid(), "datasets.reader")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_order_is_kept(many: list[str], files: list[str], workers: int) -> None:
    expected = [inspect_image(file) for file in files]
    found = [looked.found for looked in inspect_images(many, workers)]
    assert found == (expected * MANY)[:MANY]
    assert not child_readers()


def test_a_file_that_cannot_be_used_is_one_answer_among_many(many: list[str], tmp_path: Path) -> None:
    text = tmp_path / "näme with\nnewline.jpg"
    text.write_text("text")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.jpg")
    Path(odd).write_bytes(b"")
    files = [*many, str(text), odd, str(tmp_path / "none.jpg")]
    found = [looked.found for looked in inspect_images(files, 2)]
    assert all(isinstance(facts, ImageFacts) for facts in found[:-3])
    reasons = [error.reason.value for error in found[-3:] if isinstance(error, ImageError)]
    assert reasons == ["not_an_image", "empty", "missing"]


def test_work_that_is_dropped_ends_its_processes(many: list[str]) -> None:
    looking = inspect_images(many, 2)
    next(looking)
    assert len(child_readers()) == 2
    looking.close()
    assert not child_readers()


def test_to_stop_does_not_wait_for_readers_that_hang(many: list[str]) -> None:
    looking = inspect_images(many, 2)
    next(looking)
    for pid in child_readers():
        os.kill(pid, signal.SIGSTOP)
    closing = threading.Thread(target=looking.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    assert not child_readers()


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_reader_that_is_ended_between_files_is_replaced(many: list[str], number: signal.Signals) -> None:
    expected = list(inspect_images(many, 1))
    found = []
    for index, facts in enumerate(inspect_images(many, 2)):
        found.append(facts)
        if index == 100:
            for pid in child_readers():
                os.kill(pid, number)
    assert found == expected


def test_a_reader_that_is_stopped_is_replaced(many: list[str]) -> None:
    expected = list(inspect_images(many, 1))
    found = []
    for index, facts in enumerate(inspect_images(many, 2, timeout=1.0)):
        found.append(facts)
        if index == 100:
            for pid in child_readers():
                os.kill(pid, signal.SIGSTOP)
    assert found == expected
    assert not child_readers()


def test_a_file_that_is_not_read_in_time_is_named(many: list[str]) -> None:
    with pytest.raises(EmbeddingsError, match=r"\.jpg: not read after 1e-06 seconds"):
        list(inspect_images(many, 2, timeout=1e-6))
    assert not child_readers()


def test_a_pipe_without_a_writer_does_not_hang_a_dataset(tmp_path: Path) -> None:
    """Only regular files are read."""
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    with pytest.raises(ImageError) as refusal:
        inspect_image(pipe)
    assert refusal.value.reason.value == "unreadable"


def test_a_reader_that_cannot_start_is_an_error_with_its_cause(
    many: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("raise RuntimeError('a broken installation')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(EmbeddingsError, match="a broken installation"):
        list(inspect_images(many, 2))


def test_threads_leave_the_warning_filters_alone(files: list[str]) -> None:
    before = list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        assert sum(1 for _ in inspect_images(files * 30, workers=8)) == 30 * len(files)
    finally:
        sys.setswitchinterval(interval)
    assert warnings.filters == before


def test_few_files_are_spread_over_all_workers(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Six threads must meet before the first of them goes on."""
    together = threading.Barrier(6, timeout=60)

    def glance(path: str) -> Looked:
        together.wait()
        return Looked(inspect_image(path), None)

    monkeypatch.setattr(inspection, "glance", glance)
    assert sum(1 for _ in inspect_images(files[:12], 6)) == 12


@pytest.mark.parametrize(("bitmaps", "processes"), [(0, 0), (10, 1), (150, 2), (600, 3)])
def test_files_that_need_a_decoder_are_spread_over_processes(
    files: list[str], tmp_path: Path, bitmaps: int, processes: int
) -> None:
    """As many as pay for them, although there are too few files for processes."""
    bitmap = tmp_path / "image.bmp"
    Image.new("RGB", (3, 2)).save(bitmap)
    mixed = (files * 600)[:600]
    mixed[600 - bitmaps :] = [str(bitmap)] * bitmaps
    mixed.reverse()
    expected = {path: inspect_image(path) for path in {*files, str(bitmap)}}
    looking = inspect_images(mixed, 3)
    first = next(looking)
    assert len(child_readers()) == processes
    assert [looked.found for looked in (first, *looking)] == [expected[path] for path in mixed]
    assert not child_readers()


@pytest.mark.parametrize(("workers", "processes"), [(10_000, 16), (3, 3)])
def test_no_more_processes_than_pay(monkeypatch: pytest.MonkeyPatch, workers: int, processes: int) -> None:
    started: list[object] = []
    monkeypatch.setattr(inspection, "_Reader", lambda *options: started.append(options))
    monkeypatch.setattr(Inspector, "close", lambda self: None)
    Inspector(1024, workers)
    assert len(started) == processes
    started.clear()
    Inspector(10**6, workers)
    assert len(started) == min(workers, 64)


def test_no_more_threads_than_can_be_of_use(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0

    def glance(path: str) -> Looked:
        nonlocal most
        most = max(most, sum(thread.name.startswith("inspect") for thread in threading.enumerate()))
        return Looked(inspect_image(path), None)

    monkeypatch.setattr(inspection, "glance", glance)
    assert sum(1 for _ in inspect_images((files * 40)[:1000], 10_000)) == 1000
    assert most <= 64
