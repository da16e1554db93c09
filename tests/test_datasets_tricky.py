"""All tricky files in one dataset and one run: each becomes a manifest row or a ledger row, as it should."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from embeddings_assets.errors import ImageError
from embeddings_assets.io.images import decode_image, inspect_image
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest

DATASET = "CUB-200-2011"

# Runs a command and prints the largest memory that it or a process of its own took, in the last line.
MEASURED = (
    "import resource, subprocess, sys\n"
    "code = subprocess.call(sys.argv[1:])\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    "sys.exit(code)"
)

# Files whose header cannot be read.
INVALID = {
    "derived/._image_00001.jpg": "not_an_image",
    "derived/dangling_symlink.jpg": "missing",
    "derived/only_20_bytes.jpg": "corrupt",
    "derived/text.jpg": "not_an_image",
    "derived/zero_bytes.jpg": "empty",
    "found_in_the_wild/git_lfs_pointer_named_image_06734.jpg": "not_an_image",
    "found_in_the_wild/html_viewer_page_named_image_06734.jpg": "not_an_image",
    "image-rs/Bad_width.bmp": "oversized",
    "libjpeg-turbo/monkey12.jpg": "corrupt",
    "pillow/badwidth.bmp": "oversized",
    "pillow/decompression_bomb.gif": "oversized",
    "pillow/png_decompression_dos.png": "oversized",
    "pillow/reallybig.bmp": "oversized",
    "pillow/unknown_compression_method.png": "corrupt",
    "skimage/multipage_rgb.tif": "corrupt",
    "skimage/truncated.jpg": "truncated",
}
# Files that open and end too early.
CUT_OFF = {
    "derived/missing_eoi.jpg",
    "derived/truncated_half.jpg",
    "image-rs/Bad_shortfile.bmp",
    "pillow/shortfile.bmp",
    "pillow/truncated_image.png",
    "pillow/ultrahdr.jpg",
}
# Called valid by the table, whose reader asked for the EXIF block first: that swallows the error of the first
# decoding, and leaves the rows that were not decoded black.
HALF_BLACK = "pillow/broken_data_stream.png"


@pytest.fixture(scope="module")
def tricky(shared: Path) -> Path:
    return shared / "data" / "tricky"


@pytest.fixture(scope="module")
def table(tricky: Path) -> dict[str, tuple[str, str]]:
    """File -> (what Pillow reports, result), from the reference table."""
    rows = [line.split("|") for line in (tricky / "MANIFEST.md").read_text().splitlines()]
    return {
        row[1].strip(): (row[3].strip(), row[4].strip()) for row in rows if len(row) > 5 and "/" in row[1]
    }


@pytest.fixture(scope="module")
def prepared(
    tricky: Path, table: dict[str, tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> DataPaths:
    """The files as the train split of a CUB folder, prepared by the command line."""
    root = tmp_path_factory.mktemp("tricky")
    folder = root / "data" / "raw" / "CUB_200_2011"
    folder.mkdir(parents=True)
    (folder / "images").symlink_to(tricky)
    good = [name for name, (_, result) in table.items() if result == "valid"]
    numbered = list(enumerate(table, start=1))
    (folder / "images.txt").write_text("".join(f"{number} {name}\n" for number, name in numbered))
    (folder / "classes.txt").write_text("1 001.Odd\n")
    (folder / "image_class_labels.txt").write_text("".join(f"{number} 1\n" for number, _ in numbered))
    test = {good[0], good[1]}
    (folder / "train_test_split.txt").write_text(
        "".join(f"{number} {int(name not in test)}\n" for number, name in numbered)
    )
    command = [sys.executable, "-m", "embeddings_assets.cli.main", "prepare", "--dataset", DATASET]
    options = ["--allow-missing", "--max-bad-share", "1", "--raw-dir", str(folder)]
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, *command, *options],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    (root / "peak").write_text(run.stdout.splitlines()[-1])
    assert "Traceback" not in run.stdout + run.stderr
    assert "Warning" not in run.stderr
    return DataPaths.from_root(root / "data")


def test_every_file_is_classified_as_the_reference_table_says(
    prepared: DataPaths, table: dict[str, tuple[str, str]]
) -> None:
    rows, ledger = {}, {}
    for split in ("train", "validation", "test"):
        manifest = open_manifest(prepared, DATASET, split)
        for row in manifest.slice(0, manifest.rows).to_pylist():
            rows[row["image_path"].split("/images/")[1]] = row
        for row in manifest.ledger().to_pylist():
            ledger[row["image_path"].split("/images/")[1]] = row["reason"]
    expected = INVALID | dict.fromkeys(CUT_OFF, "truncated")
    assert {name for name, (_, result) in table.items() if result != "valid"} == set(expected)
    assert ledger == expected | {HALF_BLACK: "corrupt"}
    assert set(rows) | set(ledger) == set(table)
    for name, row in rows.items():
        file_format, mode, size = table[name][0].split()[:3]
        assert (row["format"], row["mode"], f"{row['width']}x{row['height']}") == (file_format, mode, size), (
            name
        )


def test_memory_stays_small(prepared: DataPaths) -> None:
    peak = int((prepared.processed.parent.parent / "peak").read_text())  # KiB on Linux
    assert 0 < peak < 2**20


def test_the_half_black_file_does_not_decode(tricky: Path) -> None:
    with pytest.raises(ImageError, match="unrecognized data stream"):
        decode_image(tricky / HALF_BLACK)


def test_a_png_that_is_damaged_behind_its_pixels_has_all_of_them(tricky: Path) -> None:
    damaged = decode_image(tricky / "pillow/truncated_end_chunk.png")
    whole = decode_image(tricky / "pillow/hopper_idat_after_image_end.png")
    assert damaged.tobytes() == whole.tobytes()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, about the odd files
def test_what_is_sure_to_be_whole_also_decodes(tricky: Path, table: dict[str, tuple[str, str]]) -> None:
    """The look at a file's structure and the decoding of its pixels agree, file by file."""
    for name in table:
        outcomes = []
        for decode in (False, True):
            try:
                outcomes.append(inspect_image(tricky / name, decode=decode))
            except ImageError as error:
                outcomes.append(str(error))
        assert outcomes[0] == outcomes[1], name


def test_any_cut_of_a_jpeg_is_noticed(tricky: Path, tmp_path: Path) -> None:
    data = (tricky / "exif" / "Landscape_1.jpg").read_bytes()
    file = tmp_path / "cut.jpg"
    for size in [*range(len(data) - 4, len(data)), *range(1, len(data), 9_973)]:
        file.write_bytes(data[:size])
        with pytest.raises(ImageError) as refusal:
            inspect_image(file)
        assert refusal.value.reason.value in ("truncated", "corrupt", "not_an_image"), size


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.jpg"
    with file.open("wb") as stream:
        stream.write(b"\xff\xd8\xff")
        stream.truncate(2**40)
    with pytest.raises(ImageError) as refusal:
        inspect_image(file)
    assert refusal.value.reason.value == "oversized"


def empty_png(width: int, height: int) -> bytes:
    """A PNG of any size whose structure is sound; it has no pixels."""
    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def test_a_little_more_than_the_limit_is_oversized_and_nobody_is_warned(tmp_path: Path) -> None:
    """Pillow refuses only what is twice as large, and warns of this on stderr."""
    file = tmp_path / "13300.png"
    file.write_bytes(empty_png(13_300, 13_300))
    look = (
        "import sys\nfrom embeddings_assets.io.images import inspect_image\n"
        "try:\n    inspect_image(sys.argv[1])\nexcept Exception as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", look, str(file)], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("oversized: 13300 x 13300 pixels; at most ")
    assert run.stderr == ""


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "bmp", "webp", "jpg"])
def test_the_limit_holds_to_the_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 110)
    for width, refused in ((11, False), (12, True)):
        file = tmp_path / f"{width}.{suffix}"
        Image.new("RGB", (width, 10)).save(file)
        for use in (inspect_image, decode_image):
            if not refused:
                use(file)
                continue
            with pytest.raises(ImageError) as refusal:
                use(file)
            assert refusal.value.reason.value == "oversized"
