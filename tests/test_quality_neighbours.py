"""Who is next to whom: the nearest truly are the nearest, and the sheet shows them in their order."""

import colorsys
import io
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stub_encoder import StubEncoder

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.errors import StoreError
from embeddings_assets.extraction.engine import store_vectors
from embeddings_assets.quality.maps import MOST_BYTES, MOST_POINTS, sample_rows
from embeddings_assets.quality.neighbours import mean_pairwise_cosine, neighbour_sheet
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import Manifest, open_manifest, write_manifest
from embeddings_assets.store.schema import LEDGER_SCHEMA

pytest_plugins = ("datasets_fixtures",)

DATASET = "CUB-200-2011"
GREEN, RED, PAPER, GREY = (22, 140, 74), (208, 42, 42), (255, 255, 255), (226, 229, 233)
CELL, FIRST_GAP, WIDE, HIGH = 60, 10, 74, 90  # pixels of the sheet


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random_vectors(rows: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((rows, width)))


def colour(index: int) -> tuple[int, int, int]:
    """Its own for each of 40 images."""
    red, green, blue = colorsys.hsv_to_rgb(
        index % 10 / 10, 0.35 + 0.2 * (index // 20), 0.95 - 0.3 * (index // 10 % 2)
    )
    return round(255 * red), round(255 * green), round(255 * blue)


@dataclass
class Split:
    """A committed split whose image `index` is all of `colour(index)`."""

    folder: Path
    manifest: Manifest
    labels: np.ndarray

    def file(self, index: int) -> Path:
        return self.manifest.resolve(self.manifest.slice(index, index + 1).to_pylist()[0]["image_path"])


def prepared(paths: DataPaths) -> Manifest:
    """The manifest of the images in `test`, with one of them in each other split."""
    first = min(paths.processed_split(DATASET, "test").glob("*/*"))
    for name in ("train", "validation"):
        target = paths.processed_split(DATASET, name) / first.parent.name / first.name
        target.parent.mkdir(parents=True)
        shutil.copyfile(first, target)
    prepare_dataset(DATASET, paths)
    return open_manifest(paths, DATASET, "test")


def stored(manifest: Manifest, vectors: np.ndarray) -> Path:
    folder = manifest.paths.embeddings_split("CLIP", manifest.dataset, manifest.split)
    source = StubEncoder(width=vectors.shape[1])
    store_vectors(manifest, source, vectors, target=folder, staging_root=manifest.paths.staging, replace=True)
    return folder


def make_split(root: Path, sizes: Sequence[int], vectors: np.ndarray) -> Split:
    """`sizes` images of one class after the other, with these vectors."""
    paths = DataPaths.from_root(root)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for index, label in enumerate(labels):
        file = paths.processed_split(DATASET, "test") / f"class {label}" / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (70, 60), colour(index)).save(file)
    manifest = prepared(paths)
    return Split(stored(manifest, vectors), manifest, labels)


def opened(png: bytes) -> Image.Image:
    assert len(png) <= MOST_BYTES
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    return picture.convert("RGB")


def corner(row: int, column: int) -> tuple[int, int]:
    return column * WIDE + FIRST_GAP * (column > 0), row * HIGH


def lines_of(picture: Image.Image, images: int) -> list[list[int]]:
    """Which image each tile of the sheet shows, by its colour."""
    colours = np.array([colour(index) for index in range(images)])
    lines = []
    for row in range(picture.height // HIGH):
        line = []
        for column in range((picture.width - FIRST_GAP) // WIDE):
            x, y = corner(row, column)
            difference = np.abs(colours - picture.getpixel((x + 30, y + 30))).max(axis=1)
            assert difference.min() <= 3
            line.append(int(difference.argmin()))
        lines.append(line)
    return lines


def edge(picture: Image.Image, row: int, column: int) -> str:
    """The upper edge of a tile: a letter for each pixel, `g`reen, `r`ed or `w`hite."""
    x, y = corner(row, column)
    letters = {GREEN: "g", RED: "r", PAPER: "w"}
    return "".join(letters.get(picture.getpixel((x + step, y)), "?") for step in range(CELL))  # type: ignore[arg-type]


def numbers(caption: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", caption)]


@pytest.mark.parametrize(("rows", "width"), [(2, 4), (3, 1), (60, 8), (5000, 16)])
def test_the_mean_cosine_is_that_of_all_pairs(rows: int, width: int) -> None:
    vectors = random_vectors(rows, width) + np.float32(0.2)
    wide = unit(vectors).astype(np.float64)
    expected = (wide @ wide.T)[np.triu_indices(rows, 1)].mean()
    assert mean_pairwise_cosine(unit(vectors)) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_the_mean_cosine_of_special_vectors() -> None:
    basis = np.eye(6, dtype=np.float32)
    assert mean_pairwise_cosine(basis) == 0
    assert mean_pairwise_cosine(np.concatenate([basis[:1], -basis[:1]])) == -1
    assert mean_pairwise_cosine(np.repeat(basis[:1], 700, axis=0)) == 1
    assert mean_pairwise_cosine(basis[:1]) == 1
    assert mean_pairwise_cosine(basis[:0]) == 1


def test_the_neighbours_are_the_nearest_and_in_order(tmp_path: Path) -> None:
    vectors = random_vectors(40)
    split = make_split(tmp_path, [12, 4, 4, 12, 8], vectors)
    found = neighbour_sheet(split.folder, split.manifest)
    picture = opened(found.png)
    lines = lines_of(picture, 40)
    assert [line[0] for line in lines] == [0, 12, 16, 20, 32]
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(cosines, -2)
    order = np.argsort(-cosines, axis=1)
    for line in lines:
        assert line[1:] == order[line[0], :4].tolist()

    same = np.array([[split.labels[place] == split.labels[line[0]] for place in line[1:]] for line in lines])
    assert 0 < same.sum() < same.size
    for row, column in np.ndindex(same.shape):
        frame = "g" * CELL if same[row, column] else ("rrrrwwww" * CELL)[:CELL]
        assert edge(picture, row, column + 1) == frame
        assert edge(picture, row, 0) == "w" * CELL

    share = (split.labels[order[:, 0]] == split.labels).mean()
    assert numbers(found.caption) == [
        4, 5, 40, 40, same.sum(), 20, 20 - same.sum(), 40, pytest.approx(100 * share, abs=0.051)
    ]  # fmt: skip
    assert found.caption.count(".") == 2, "one sentence, one share"


def test_equal_splits_give_equal_bytes(tmp_path: Path) -> None:
    found = [
        neighbour_sheet(split.folder, split.manifest)
        for split in (make_split(tmp_path / name, [9, 9], random_vectors(18)) for name in ("a", "b"))
    ]
    assert found[0] == found[1]


def test_equal_vectors_are_shown_in_row_order(tmp_path: Path) -> None:
    split = make_split(tmp_path, [3, 3], np.repeat(random_vectors(1, 512), 6, axis=0))
    found = neighbour_sheet(split.folder, split.manifest)
    lines = lines_of(opened(found.png), 6)
    assert [line[0] for line in lines] == [0, 3, 1, 4, 2]
    for line in lines:
        assert line[1:] == [place for place in range(6) if place != line[0]][:4]
    assert "50.0% have a nearest" in found.caption


def test_a_class_of_one_image_is_no_query_where_others_are_left(tmp_path: Path) -> None:
    split = make_split(tmp_path, [1, 1, 1, 5, 1], random_vectors(9))
    found = neighbour_sheet(split.folder, split.manifest)
    assert [line[0] for line in lines_of(opened(found.png), 9)] == [3, 4, 5, 6, 7]
    assert "(4 are alone in theirs)" in found.caption


@pytest.mark.parametrize("sizes", [[1], [2], [1, 1], [1, 1, 1], [2, 2], [7]])
def test_small_splits(tmp_path: Path, sizes: list[int]) -> None:
    rows = sum(sizes)
    split = make_split(tmp_path, sizes, random_vectors(rows))
    found = neighbour_sheet(split.folder, split.manifest)
    lines = lines_of(opened(found.png), rows)
    assert len(lines) == min(5, rows)
    for line in lines:
        assert len(set(line)) == len(line) == min(5, rows), "an image is its own neighbour, or there twice"
    if rows == 1:
        assert found.caption == "1 of 1 images: there is no neighbour to show."
    else:
        expected = "100.0%" if len(sizes) == 1 else "0.0%" if max(sizes) == 1 else "%"
        assert expected in found.caption


def test_an_image_that_cannot_be_read_is_a_grey_tile(tmp_path: Path) -> None:
    split = make_split(tmp_path, [2, 2], random_vectors(4))
    whole = neighbour_sheet(split.folder, split.manifest)
    split.file(0).unlink()
    split.file(2).write_bytes(b"not an image any more")
    Image.new("RGB", (70, 60), colour(3)).save(split.file(1))  # of another digest
    found = neighbour_sheet(split.folder, split.manifest)
    assert found.caption == f"{whole.caption.removesuffix('.')}; 3 of the images shown cannot be read."
    picture = opened(found.png)
    for row, line in enumerate(lines_of(opened(whole.png), 4)):
        for column, index in enumerate(line):
            x, y = corner(row, column)
            assert (picture.getpixel((x + 4, y + 4)) == GREY) == (index in (0, 1, 2))


def many_rows(root: Path, file: Path, rows: int) -> Manifest:
    """A manifest that lists one image many times, in 50 classes."""
    paths = DataPaths.from_root(root)
    target = paths.processed_split(DATASET, "test") / "a" / file.name
    target.parent.mkdir(parents=True)
    shutil.copyfile(file, target)
    manifest = prepared(paths)
    table = manifest.slice(0, 1).take([0] * rows)
    columns = {
        "image_id": [f"image {row}" for row in range(rows)],
        "label": [row * 50 // rows for row in range(rows)],
        "class_name": [f"class {row * 50 // rows}" for row in range(rows)],
    }
    for name, values in columns.items():
        field = table.schema.field(name)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    ledger = LEDGER_SCHEMA.empty_table()
    options = manifest.footer["options"]
    return write_manifest(paths, DATASET, "test", table, ledger, options=options, raw_folder=None)


def test_of_a_large_split_a_sample_is_searched_and_noise_stays_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    manifest = many_rows(tmp_path / "data", tmp_path / "noise.png", rows=2600)
    centres = random_vectors(50, 24)
    labels = manifest.slice(0, manifest.rows, ["label"]).column("label").to_numpy()
    vectors = unit(centres[labels] + 1.2 * random_vectors(2600, 24, seed=1))
    folder = stored(manifest, vectors)
    found = neighbour_sheet(folder, manifest)
    opened(found.png)

    sampled, classes = sample_rows(folder)
    cosines = sampled.astype(np.float64) @ sampled.T.astype(np.float64)
    np.fill_diagonal(cosines, -2)
    share = (classes[cosines.argmax(axis=1)] == classes).mean()
    assert 0.5 < share < 1
    assert f"among {MOST_POINTS:,} of 2,600 images" in found.caption
    assert f"of all {MOST_POINTS:,}, {share:.1%} have" in found.caption


def test_the_sheet_shows_the_part_that_is_used(tmp_path: Path, synthetic_raw: Path) -> None:
    paths = DataPaths.from_root(tmp_path)
    pictures = []
    for crop in ("none", "banner"):
        prepare_dataset("FGVC-Aircraft", paths, raw_dir=synthetic_raw, crop=crop)
        manifest = open_manifest(paths, "FGVC-Aircraft", "test")
        folder = stored(manifest, random_vectors(manifest.rows))
        pictures.append(neighbour_sheet(folder, manifest))
    assert pictures[0].png != pictures[1].png
    assert pictures[0].caption == pictures[1].caption
    other = neighbour_sheet(folder, open_manifest(paths, "FGVC-Aircraft", "train"))
    assert "images shown cannot be read" in other.caption, "whose crop is not known"


def test_a_split_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    split = make_split(tmp_path, [30], random_vectors(30, 64))
    with pytest.raises(StoreError, match="no embeddings here"):
        neighbour_sheet(tmp_path / "nowhere", split.manifest)
    (part,) = split.folder.glob("part-*.parquet")
    whole = part.read_bytes()
    chunk = pq.read_metadata(part).row_group(0).column(10)
    place = chunk.data_page_offset + chunk.total_compressed_size - 100
    part.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.raises(StoreError, match="cannot be read"):
        neighbour_sheet(split.folder, split.manifest)
    part.write_bytes(whole[:-50])
    with pytest.raises(StoreError, match="cannot be read"):
        neighbour_sheet(split.folder, split.manifest)
    part.write_bytes(whole)
    pq.write_table(pq.read_table(part).drop_columns("sha256"), part)
    with pytest.raises(StoreError, match=r"columns .* wanted"):
        neighbour_sheet(split.folder, split.manifest)
