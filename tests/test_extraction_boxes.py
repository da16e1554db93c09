"""Under a box for each image a vector is reused as long as both the file and its box are the same."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets_support import CopyRaw
from image_tree import write_image
from PIL import Image
from stub_encoder import StubEncoder, pixels

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.extraction.engine import extract_split
from embeddings_assets.extraction.report import SplitReport
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import BOXES_FINGERPRINT, Manifest, open_manifest
from embeddings_assets.store.parquet import open_writer, read_footer
from embeddings_assets.store.reading import load_matrix, load_table, part_files
from embeddings_assets.store.verify import verify_split

pytest_plugins = ("datasets_fixtures",)

CUB = "CUB-200-2011"


def prepare(paths: DataPaths) -> Manifest:
    prepare_dataset(CUB, paths, crop="bounding_box", allow_missing=True)
    return open_manifest(paths, CUB, "train")


def embed(paths: DataPaths) -> SplitReport:
    manifest = prepare(paths)
    report = extract_split(manifest, StubEncoder(), target=target(paths), staging_root=paths.staging)
    assert all(found.passed for found in verify_split(target(paths), processed=paths.processed))
    rows = manifest.slice(0, manifest.rows).column("image_path").to_pylist()
    encoder = StubEncoder()
    crops = manifest.crops(0, manifest.rows)
    for path, crop, vector in zip(rows, crops, load_matrix(target(paths)), strict=True):
        with Image.open(manifest.resolve(path)) as image:
            np.testing.assert_allclose(vector, encoder.encode(pixels(image.crop(crop))[None])[0], atol=1e-5)
    return report


def target(paths: DataPaths) -> Path:
    return paths.embeddings_split("CLIP", CUB, "train")


def image_of(paths: DataPaths, row: int) -> tuple[str, Path]:
    manifest = open_manifest(paths, CUB, "train")
    found = manifest.slice(row, row + 1).to_pylist()[0]
    return found["image_id"], manifest.resolve(found["image_path"])


def rename_classes(folder: Path, paths: DataPaths) -> None:
    names = folder / "classes.txt"
    images = folder / "images.txt"
    for line in names.read_text().splitlines():
        name = line.split(maxsplit=1)[1]
        (folder / "images" / name).rename(folder / "images" / f"{name}_of_the_north")
        images.write_text(images.read_text().replace(f" {name}/", f" {name}_of_the_north/"))
    names.write_text("".join(f"{line}_of_the_north\n" for line in names.read_text().splitlines()))


def change_an_image(folder: Path, paths: DataPaths) -> None:
    _, path = image_of(paths, 4)
    with Image.open(path) as image:
        size = image.size
    write_image(path, seed=4711)
    with Image.open(path) as image:
        image.resize(size).save(path)


def move_a_box(folder: Path, paths: DataPaths) -> None:
    image_id, _ = image_of(paths, 4)
    boxes = folder / "bounding_boxes.txt"
    lines = [line.split() for line in boxes.read_text().splitlines()]
    moved = [[name, f"{float(left) + 3 * (name == image_id)}", *rest] for name, left, *rest in lines]
    boxes.write_text("".join(f"{' '.join(line)}\n" for line in moved))


@pytest.mark.parametrize(
    ("change", "computed"), [(rename_classes, 0), (change_an_image, 1), (move_a_box, None)]
)
def test_what_is_computed_again(
    change: Callable[[Path, DataPaths], None], computed: int | None, copy_raw: CopyRaw, paths: DataPaths
) -> None:
    folder = copy_raw(CUB)
    rows = embed(paths).rows
    change(folder, paths)
    report = embed(paths)
    assert report.status == "computed"
    assert report.computed == (rows if computed is None else computed)
    assert report.reused == rows - report.computed


def test_an_image_that_comes_costs_only_itself(copy_raw: CopyRaw, paths: DataPaths) -> None:
    """Though the same file is there already, with another box."""
    folder = copy_raw(CUB)
    rows = prepare(paths).rows
    (_, late), (_, twin) = image_of(paths, 4), image_of(paths, 6)
    move_a_box(folder, paths)
    late.unlink()
    assert embed(paths).rows == rows - 1
    late.write_bytes(twin.read_bytes())
    report = embed(paths)
    assert (report.computed, report.reused) == (1, rows - 1)


def test_two_images_of_one_content_have_boxes_of_their_own(copy_raw: CopyRaw, paths: DataPaths) -> None:
    folder = copy_raw(CUB)
    prepare(paths)
    (_, one), (_, other) = image_of(paths, 2), image_of(paths, 7)
    other.write_bytes(one.read_bytes())
    rows = embed(paths).rows
    rename_classes(folder, paths)
    assert embed(paths).reused == rows


def test_a_hash_of_boxes_that_is_not_of_the_manifest_is_found(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    embed(paths)
    (part,) = part_files(target(paths))
    table, footer = load_table(target(paths)), {**read_footer(part), BOXES_FINGERPRINT: "0" * 64}
    encoding = {"use_dictionary": False, "column_encoding": {"embedding.list.element": "BYTE_STREAM_SPLIT"}}
    with part.open("wb") as stream, open_writer(stream, table.schema, footer, **encoding) as writer:
        writer.write_table(table)
    findings = verify_split(target(paths), processed=paths.processed)
    assert "manifest_order" in [found.check for found in findings if not found.passed]
