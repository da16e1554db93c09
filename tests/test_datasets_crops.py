"""Crops: asked for by name, recorded in manifest, fingerprint and recipe, and applied to the pixels."""

import shutil

import numpy as np
import pytest
from datasets_support import CopyRaw
from PIL import Image
from stub_encoder import StubEncoder, pixels

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.errors import EmbeddingsError, SettingsError, StoreError
from embeddings_assets.extraction.engine import extract_split
from embeddings_assets.extraction.report import ExtractionOptions, SplitReport
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.reading import load_matrix, read_split_footer
from embeddings_assets.store.schema import CROP_COLUMNS, MANIFEST_SCHEMA

pytest_plugins = ("datasets_fixtures",)

AIRCRAFT, CUB, FLOWERS = "FGVC-Aircraft", "CUB-200-2011", "Oxford 102 Flowers"
BANNER_ROWS = 20


def rows_of(paths: DataPaths, dataset: str, split: str) -> list[dict[str, object]]:
    manifest = open_manifest(paths, dataset, split)
    rows: list[dict[str, object]] = manifest.slice(0, manifest.rows).to_pylist()
    return rows


def embed(paths: DataPaths, dataset: str, split: str = "test", **options: bool) -> SplitReport:
    return extract_split(
        open_manifest(paths, dataset, split),
        StubEncoder(),
        target=paths.embeddings_split("CLIP", dataset, split),
        staging_root=paths.staging,
        options=ExtractionOptions(**options),
    )


def test_nothing_is_cropped_by_default(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(AIRCRAFT)
    prepare_dataset(AIRCRAFT, paths)
    manifest = open_manifest(paths, AIRCRAFT, "test")
    assert manifest.crop == "none"
    assert manifest.schema.equals(MANIFEST_SCHEMA)
    assert set(manifest.crops(0, manifest.rows)) == {None}


def test_the_banner_is_cut_off(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(AIRCRAFT)
    plain = prepare_dataset(AIRCRAFT, paths)
    cropped = prepare_dataset(AIRCRAFT, paths, crop="banner")
    assert not {report.fingerprint for report in plain} & {report.fingerprint for report in cropped}
    manifest = open_manifest(paths, AIRCRAFT, "train")
    assert manifest.footer["options"]["crop"] == "banner"
    for row in rows_of(paths, AIRCRAFT, "train"):
        kept = tuple(row[name] for name in CROP_COLUMNS)
        assert kept == (0, 0, row["width"], int(str(row["height"])) - BANNER_ROWS)


def test_the_box_is_kept_inside_the_image(copy_raw: CopyRaw, paths: DataPaths) -> None:
    folder = copy_raw(CUB)
    lines = (folder / "bounding_boxes.txt").read_text().splitlines()
    lines[0] = "1 -3.0 5.0 100000.0 20.0"
    lines[1] = "2 100000.0 5.0 10.0 10.0"
    (folder / "bounding_boxes.txt").write_text("\n".join(lines) + "\n")
    prepare_dataset(CUB, paths, crop="bounding_box", max_bad_share=0.1)
    rows, ledger = {}, {}
    for split in ("train", "validation", "test"):
        rows |= {row["image_id"]: row for row in rows_of(paths, CUB, split)}
        found = open_manifest(paths, CUB, split).ledger().to_pylist()
        ledger |= {row["image_id"]: row["reason"] for row in found}
    assert ledger == {"2": "uncroppable"}
    assert tuple(rows["1"][name] for name in CROP_COLUMNS) == (0, 5, rows["1"]["width"], 25)
    x, y, width, height = (float(number) for number in lines[2].split()[1:])
    assert tuple(rows["3"][name] for name in CROP_COLUMNS) == (x, y, x + width, y + height)


def test_a_class_tree_of_aircraft_has_the_banner_too(copy_raw: CopyRaw, paths: DataPaths) -> None:
    image = next((copy_raw(AIRCRAFT) / "data" / "images").iterdir())
    for split in ("train", "validation", "test"):
        target = paths.processed_split(AIRCRAFT, split) / "707-320" / image.name
        target.parent.mkdir(parents=True)
        shutil.copy(image, target)
    shutil.rmtree(paths.raw)
    prepare_dataset(AIRCRAFT, paths, crop="banner")
    (row,) = rows_of(paths, AIRCRAFT, "test")
    assert row["crop_bottom"] == int(str(row["height"])) - BANNER_ROWS


@pytest.mark.parametrize(
    ("dataset", "crop", "text"),
    [
        (FLOWERS, "bounding_box", "Oxford 102 Flowers has no bounding boxes"),
        (CUB, "banner", "CUB-200-2011 has no banner"),
        (CUB, "centre", "it can be none, banner, bounding_box"),
    ],
)
def test_a_crop_that_a_dataset_does_not_have(
    copy_raw: CopyRaw, paths: DataPaths, dataset: str, crop: str, text: str
) -> None:
    copy_raw(dataset)
    with pytest.raises(SettingsError, match=text):
        prepare_dataset(dataset, paths, crop=crop)
    assert not list(paths.processed.rglob("manifest.parquet"))


def test_one_split_alone_cannot_be_cropped(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(AIRCRAFT)
    prepare_dataset(AIRCRAFT, paths)
    with pytest.raises(EmbeddingsError, match="was prepared with crop none, test would be with banner"):
        prepare_dataset(AIRCRAFT, paths, crop="banner", splits=["test"])


def test_vectors_are_those_of_the_cropped_pixels(copy_raw: CopyRaw, paths: DataPaths) -> None:
    """The same as of files that hold only the part that is used."""
    folder = copy_raw(AIRCRAFT)
    prepare_dataset(AIRCRAFT, paths, crop="banner")
    rows = rows_of(paths, AIRCRAFT, "test")
    embed(paths, AIRCRAFT)
    found = load_matrix(paths.embeddings_split("CLIP", AIRCRAFT, "test"))
    encoder = StubEncoder()
    for row, vector in zip(rows, found, strict=True):
        file = folder / str(row["image_path"]).removeprefix(f"raw/{folder.name}/")
        with Image.open(file) as image:
            part = image.crop((0, 0, image.width, image.height - BANNER_ROWS))
        np.testing.assert_allclose(encoder.encode(pixels(part)[None])[0], vector, atol=1e-6)


def test_a_crop_is_part_of_the_recipe(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(AIRCRAFT)
    prepare_dataset(AIRCRAFT, paths)
    embed(paths, AIRCRAFT)
    target = paths.embeddings_split("CLIP", AIRCRAFT, "test")
    plain = read_split_footer(target)
    prepare_dataset(AIRCRAFT, paths, crop="banner")
    with pytest.raises(StoreError, match="another recipe: recipe"):
        embed(paths, AIRCRAFT)
    report = embed(paths, AIRCRAFT, replace=True)
    assert (report.reused, report.computed) == (0, report.rows)
    cropped = read_split_footer(target)
    assert plain is not None
    assert cropped is not None
    assert cropped["recipe"] == plain["recipe"] | {"crop": "banner"}
    assert cropped["recipe_fingerprint"] != plain["recipe_fingerprint"]


def test_vectors_of_boxes_are_not_taken_over_by_digest(copy_raw: CopyRaw, paths: DataPaths) -> None:
    """The file is the same, the box is not."""
    folder = copy_raw(CUB)
    prepare_dataset(CUB, paths, crop="bounding_box")
    embed(paths, CUB)
    boxes = folder / "bounding_boxes.txt"
    boxes.write_text(
        "".join(f"{line.split()[0]} 1.0 1.0 30.0 30.0\n" for line in boxes.read_text().splitlines())
    )
    prepare_dataset(CUB, paths, crop="bounding_box")
    report = embed(paths, CUB)
    assert (report.reused, report.computed) == (0, report.rows)
