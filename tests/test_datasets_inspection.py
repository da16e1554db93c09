"""Looking at image files: odd and broken ones get the facts or the reason they should, on many threads."""

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from embeddings_assets.datasets.inspection import inspect_images
from embeddings_assets.errors import ImageError
from embeddings_assets.images import ImageFacts, decode_image

pytest_plugins = ("datasets_fixtures",)

# Files that the reference table (MANIFEST.md) calls INVALID: Pillow reads not even their header.
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
def synthetic_files(synthetic_raw: Path) -> list[Path]:
    return sorted((synthetic_raw / "flowers-102" / "jpg").iterdir())


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow, about the odd files
def test_every_file_is_classified_as_the_reference_table_says(
    tricky: Path, table: dict[str, tuple[str, str]]
) -> None:
    found = dict(zip(table, inspect_images([tricky / name for name in table], workers=4), strict=True))
    refused = {name: facts.reason.value for name, facts in found.items() if isinstance(facts, ImageError)}
    assert refused.keys() == {name for name, (_, result) in table.items() if result == "INVALID"}
    assert refused == INVALID
    for name, facts in found.items():
        if isinstance(facts, ImageFacts):
            file_format, mode, size = table[name][0].split()[:3]
            assert (facts.format, facts.mode, f"{facts.width}x{facts.height}") == (file_format, mode, size), (
                name
            )


def test_files_whose_pixels_are_cut_off(tricky: Path, table: dict[str, tuple[str, str]]) -> None:
    cut_off = [name for name, (_, result) in table.items() if result == "OPENS, LOAD FAILS"]
    assert len(cut_off) == 6
    for name in cut_off:
        with pytest.raises(ImageError) as refusal:
            decode_image(tricky / name)
        assert refusal.value.reason.value == "truncated"


def test_order_is_kept_and_few_files_are_in_flight(synthetic_files: list[Path]) -> None:
    taken = 0

    def files() -> Iterator[Path]:
        nonlocal taken
        for _ in range(40):
            for file in synthetic_files:
                taken += 1
                yield file

    results = inspect_images(files(), workers=2)
    sizes = [path.stat().st_size for path in synthetic_files]
    for index, facts in enumerate(results):
        assert isinstance(facts, ImageFacts)
        assert facts.bytes == sizes[index % len(sizes)]
        assert taken - index <= 33, "no more files are asked for than 16 per worker"


def test_threads_leave_the_warning_filters_alone(synthetic_files: list[Path]) -> None:
    before = list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        assert sum(1 for _ in inspect_images(synthetic_files * 100, workers=8)) == 100 * len(synthetic_files)
    finally:
        sys.setswitchinterval(interval)
    assert warnings.filters == before
