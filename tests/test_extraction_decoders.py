"""Decoding processes that end, stop, hang or never start: the file to blame is named, and no other."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from decoding_processes import children
from image_tree import DATASET
from PIL import Image
from stub_encoder import ODD_SIZE, StubEncoder, pixels, pixels_or_bus_error, pixels_or_crash
from test_extraction_faults import ROWS, SHARD, content, images, run, wait_for

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.errors import EmbeddingsError
from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.settings import DataPaths

pytest_plugins = ("extraction_fixtures",)

LONG = 60.0  # seconds; well below the two minutes after which an image counts as stuck


@dataclass(frozen=True)
class Slow:
    """Notes in a file that an image of ODD_SIZE is in hand, which then takes so long."""

    log: Path
    seconds: float = 3600.0

    def __call__(self, image: Image.Image) -> np.ndarray:
        if image.size == ODD_SIZE:
            with self.log.open("ab") as stream:
                stream.write(b".")
            time.sleep(self.seconds)
        return pixels(image)


def make_odd(tree: DataPaths, *rows: int) -> list[Path]:
    """Images of another size than all others, in the manifest."""
    changed = [images(tree)[row] for row in rows]
    for path in changed:
        Image.new("RGB", ODD_SIZE, (200, 10, 10)).save(path)
    prepare_dataset(DATASET, tree)
    return changed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_decoding_process_that_is_ended_or_stopped_is_replaced(
    number: signal.Signals,
    tree: DataPaths,
    undisturbed: dict[str, bytes],
    decoding: Callable[[], list[int]],
) -> None:
    hit: list[int] = []

    def hit_once(done: int, total: int) -> None:
        if done >= total // 3 and not hit:
            hit.extend(decoding())
            for pid in hit:
                os.kill(pid, number)

    with Decoders(timeout=2.0) as decoders:
        report = run(tree, StubEncoder(seconds=0.02), decoders=decoders, progress=hit_once, workers=2)
    assert len(hit) == 2
    assert report.ledger == {}
    assert content(tree) == undisturbed
    assert not decoding()


def test_an_image_that_crashes_its_decoder_is_one_ledger_row(tree: DataPaths) -> None:
    (odd,) = make_odd(tree, 70)
    report = run(tree, StubEncoder(preprocessing=pixels_or_crash))
    assert (report.rows, report.ledger) == (ROWS - 1, {"corrupt": 1})
    assert odd.is_file()


def test_memory_that_cannot_be_had_for_pixels_blames_no_image(tree: DataPaths) -> None:
    (odd,) = make_odd(tree, 70)
    with pytest.raises(EmbeddingsError, match=r"ended from outside \(SIGBUS\)") as short:
        run(tree, StubEncoder(preprocessing=pixels_or_bus_error))
    assert str(odd) in str(short.value)


def test_an_image_that_holds_its_decoder_up_is_named_at_once(
    tree: DataPaths, tmp_path: Path, decoding: Callable[[], list[int]]
) -> None:
    (odd,) = make_odd(tree, 70)
    hanging = Slow(tmp_path / "log")
    with Decoders(timeout=2.0) as decoders:
        with pytest.raises(EmbeddingsError, match=r"not decoded after 2 seconds") as stuck:
            run(tree, StubEncoder(preprocessing=hanging), decoders=decoders, workers=2)
        assert str(odd) in str(stuck.value)
        assert hanging.log.stat().st_size == 1, "waited for more than once"
        assert not decoding()
        # Of the 70 images before it; the batch just before was still on its way.
        assert len(list(tree.staging.rglob("shard-*"))) == 3
        report = run(tree, decoders=decoders)
    assert report.resumed == 3 * SHARD
    assert not decoding()


def test_images_that_are_slow_one_after_the_other_hold_nothing_up(tree: DataPaths, tmp_path: Path) -> None:
    """They are asked for together, and take longer together than one may."""
    make_odd(tree, *range(48, 56))
    slow = Slow(tmp_path / "log", seconds=1.0)
    with Decoders(timeout=5.0) as decoders:
        report = run(tree, StubEncoder(preprocessing=slow), decoders=decoders, workers=1)
    assert report.ledger == {}
    assert slow.log.stat().st_size == 8, "asked for again"


_INTERRUPTED = """
import signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_extraction_decoders import DataPaths, Slow, StubEncoder, run
signal.signal(signal.SIGINT, signal.default_int_handler)
run(DataPaths.from_root(Path(sys.argv[2])), StubEncoder(preprocessing=Slow(Path(sys.argv[3]))), workers=2)
"""


def test_control_c_does_not_wait_for_an_image_that_hangs(tree: DataPaths, tmp_path: Path) -> None:
    make_odd(tree, 70)
    log = tmp_path / "log"
    tests = str(Path(__file__).parent)
    command = [sys.executable, "-c", _INTERRUPTED, tests, str(tree.processed.parent), str(log)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(log.exists)
        workers = children(process.pid)
        assert len(workers) == 2
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=LONG)
        finally:
            process.kill()
    assert "KeyboardInterrupt" in said
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


_POISONED = """
import os, sys
if "extraction.worker" in sys.orig_argv[-1]:
    try:
        {look}({poison!r})
    except FileNotFoundError:
        pass
    else:
        os.kill(os.getpid(), 9)
"""


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Kills decoding processes as they start: one that removes the file (`os.unlink`), or all (`os.stat`)."""

    def make(look: str) -> Path:
        path = tmp_path / "poison"
        path.touch()
        (tmp_path / "sitecustomize.py").write_text(_POISONED.format(look=look, poison=str(path)))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return path

    return make


def test_a_decoding_process_killed_while_it_starts_is_replaced(
    tree: DataPaths, undisturbed: dict[str, bytes], poison: Callable[[str], Path]
) -> None:
    path = poison("os.unlink")
    run(tree, workers=2)
    assert not path.exists()
    assert content(tree) == undisturbed


def test_decoders_that_could_not_start_can_start_later(
    tree: DataPaths, undisturbed: dict[str, bytes], poison: Callable[[str], Path]
) -> None:
    path = poison("os.stat")
    with Decoders() as decoders:
        with pytest.raises(EmbeddingsError, match="SIGKILL"):
            run(tree, decoders=decoders, workers=2)
        path.unlink()
        run(tree, decoders=decoders, workers=2)
    assert content(tree) == undisturbed
