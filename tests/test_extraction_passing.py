"""What keeps an image from being read for a while leaves no trace: not in the split, and not as a blame.

Every run ends with the bytes of one that was never disturbed, though the size of a batch shows in the last
bits of its vectors.
"""

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from image_tree import DATASET, write_image
from PIL import Image
from stub_encoder import ODD_SIZE, StubEncoder, pixels_or_crash
from test_extraction_faults import content, folder, run

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.errors import EmbeddingsError, ImageError
from embeddings_assets.io.images import decode_image
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.reading import load_matrix

pytest_plugins = ("extraction_fixtures",)

ROWS = 90
SHARD = 16  # of batches of eight; the last shard has ten rows
BATCH = 8


def images(tree: DataPaths) -> list[Path]:
    manifest = open_manifest(tree, DATASET, "train")
    rows = manifest.slice(0, manifest.rows).column("image_path").to_pylist()
    return [manifest.resolve(path) for path in rows]


def _garble(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1])


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _take_away(path: Path) -> None:
    path.unlink()


def _put_a_folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_back(path: Path, whole: bytes) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    path.write_bytes(whole)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_garble, "changed"),
        (_cut, "changed"),
        (_empty, "empty"),
        (_take_away, "missing"),
        (_put_a_folder_there, "unreadable"),
    ],
)
def test_an_image_that_is_spoiled_in_a_run_and_put_back(
    spoil: Callable[[Path], None], reason: str, tree: DataPaths, undisturbed: dict[str, bytes]
) -> None:
    victim = images(tree)[ROWS - 14]
    whole = victim.read_bytes()

    def spoil_when_half_done(done: int, total: int) -> None:
        if done >= total // 2 and victim.is_file() and victim.read_bytes() == whole:
            spoil(victim)

    report = run(tree, StubEncoder(seconds=0.01), progress=spoil_when_half_done, max_bad_share=0.02)
    assert (report.rows, report.ledger) == (ROWS - 1, {reason: 1})
    standing = content(tree)

    encoder = StubEncoder()
    assert run(tree, encoder, max_bad_share=0.02).status == "unchanged"
    assert (encoder.loads, content(tree)) == (0, standing)

    put_back(victim, whole)
    report = run(tree)
    assert (report.status, report.ledger) == ("computed", {})
    assert (report.computed, report.reused) == (BATCH, ROWS - BATCH)
    assert content(tree) == undisturbed
    assert run(tree).status == "unchanged"


def test_an_image_that_is_back_when_a_run_goes_on(tree: DataPaths, undisturbed: dict[str, bytes]) -> None:
    early, late = images(tree)[3], images(tree)[ROWS - 1]
    kept = {path: path.read_bytes() for path in (early, late)}
    early.unlink()
    late.unlink()
    with pytest.raises(EmbeddingsError, match="2 images cannot be used"):
        run(tree, max_bad_share=1 / ROWS)
    for path, whole in kept.items():
        path.write_bytes(whole)
    report = run(tree)
    # Five shards were staged; the first of them without the early image.
    assert (report.resumed, report.computed, report.ledger) == (4 * SHARD, ROWS - 4 * SHARD, {})
    assert content(tree) == undisturbed


def test_an_image_that_is_damaged_for_good_costs_a_later_run_nothing(tree: DataPaths) -> None:
    Image.new("RGB", ODD_SIZE, (200, 10, 10)).save(images(tree)[20])
    prepare_dataset(DATASET, tree)
    report = run(tree, StubEncoder(preprocessing=pixels_or_crash), max_bad_share=0.02)
    assert report.ledger == {"corrupt": 1}
    encoder = StubEncoder()
    assert run(tree, encoder, max_bad_share=0.02).status == "unchanged"
    assert encoder.loads == 0


def test_files_of_the_same_content_keep_their_own_vectors(tree: DataPaths) -> None:
    """They were embedded in batches of different sizes; another image changes, and all others are reused."""
    rows = images(tree)
    shutil.copyfile(rows[5], rows[ROWS - 1])
    prepare_dataset(DATASET, tree)
    run(tree)
    before = load_matrix(folder(tree))
    assert (before[5] != before[ROWS - 1]).any(), "batches of eight and of two"
    write_image(rows[30], seed=999)
    prepare_dataset(DATASET, tree)
    assert run(tree).reused == ROWS - 1
    after = load_matrix(folder(tree))
    assert [row for row in range(ROWS) if (after[row] != before[row]).any()] == [30]


def test_a_worker_without_free_handles_blames_no_image(
    tree: DataPaths, undisturbed: dict[str, bytes], decoding: Callable[[], list[int]]
) -> None:
    def take_handles(done: int, total: int) -> None:
        for pid in decoding() if done >= total // 3 else []:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0))

    with pytest.raises(EmbeddingsError, match=r"\.jpg: cannot be read now \(Too many open files\)"):
        run(tree, StubEncoder(seconds=0.01), progress=take_handles)
    report = run(tree)
    assert (report.resumed > 0, report.ledger) == (True, {})
    assert content(tree) == undisturbed


_SHORT_OF_MEMORY = """
import re, resource, sys
from pathlib import Path
from embeddings_assets.errors import EmbeddingsError, ImageError
from embeddings_assets.io.images import decode_image
decode_image(Path(sys.argv[2])).close()
used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20,) * 2)
try:
    decode_image(Path(sys.argv[1]))
except ImageError as error:
    sys.exit(f"blamed: {error}")
except EmbeddingsError as error:
    print(error)
"""


def test_memory_that_is_short_is_an_error_of_the_run(tmp_path: Path) -> None:
    large, small = tmp_path / "large.jpg", tmp_path / "small.jpg"
    Image.new("RGB", (8000, 8000), (10, 200, 30)).save(large)
    Image.new("RGB", (8, 8)).save(small)
    command = [sys.executable, "-c", _SHORT_OF_MEMORY, str(large), str(small)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert f"{large}: there was not enough memory" in ended.stdout
    assert "To mend: free memory" in ended.stdout


def test_handles_that_are_short_are_an_error_of_the_run(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    write_image(path, 1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(EmbeddingsError, match="Too many open files") as refusal:
            decode_image(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not isinstance(refusal.value, ImageError)
    assert str(path) in str(refusal.value)
