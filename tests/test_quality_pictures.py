"""The pictures of a prepared split: small, of the size they say, and showing what is there."""

import io
import shutil
from pathlib import Path

import pytest
from image_tree import CLASSES, DATASET, write_tree
from PIL import Image

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.quality.maps import MOST_BYTES
from embeddings_assets.quality.pictures import class_histogram, contact_sheet
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import Manifest, open_manifest

pytest_plugins = ("datasets_fixtures",)

BAR = (79, 111, 206)


def opened(png: bytes) -> Image.Image:
    assert len(png) <= MOST_BYTES
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    return picture.convert("RGB")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DataPaths:
    return write_tree(tmp_path_factory.mktemp("pictures") / "data", per_class=10)


@pytest.fixture
def tree(made: DataPaths, tmp_path: Path) -> DataPaths:
    shutil.copytree(made.processed, tmp_path / "processed")
    return DataPaths.from_root(tmp_path)


def manifest_of(paths: DataPaths, split: str = "train") -> Manifest:
    prepare_dataset(DATASET, paths)
    return open_manifest(paths, DATASET, split)


def heights(picture: Image.Image, classes: int) -> list[int]:
    """Pixels of bar in the middle of each class's column, between the axis numbers and the right edge."""
    left, right = 38, picture.width - 10
    columns = [int(left + (index + 0.5) * (right - left) / classes) for index in range(classes)]
    return [
        sum(
            all(abs(a - b) < 40 for a, b in zip(picture.getpixel((x, y)), BAR, strict=True))  # type: ignore[arg-type]
            for y in range(picture.height)
        )
        for x in columns
    ]


def test_bars_are_as_high_as_classes_are_large(tree: DataPaths) -> None:
    for file in sorted((tree.processed_split(DATASET, "train") / CLASSES[1]).iterdir())[5:]:
        file.unlink()
    found = class_histogram(manifest_of(tree))
    assert found.caption.startswith("25 images of 3 classes")
    assert "5 to 10 images each, median 10" in found.caption
    first, second, third = heights(opened(found.png), 3)
    assert abs(first - third) <= 2
    assert second == pytest.approx(first / 2, abs=4)


def test_the_sheet_shows_every_class_and_leaves_out_what_is_gone(tree: DataPaths) -> None:
    manifest = manifest_of(tree)
    whole = contact_sheet(manifest)
    assert whole.caption == "18 of 30 images."
    opened(whole.png)
    first = manifest.slice(0, 1).to_pylist()[0]["image_path"]
    manifest.resolve(first).write_bytes(b"gone")
    assert contact_sheet(manifest).caption == "17 of 30 images, 1 more cannot be read."
    for row in manifest.slice(0, manifest.rows).to_pylist():
        manifest.resolve(row["image_path"]).unlink()
    nothing = contact_sheet(manifest)
    assert nothing.caption == "0 of 30 images, 18 more cannot be read."
    opened(nothing.png)


def test_transparent_images_stand_on_white(tree: DataPaths) -> None:
    folder = tree.processed_split(DATASET, "train")
    shutil.rmtree(folder)
    target = folder / "a" / "clear.png"
    target.parent.mkdir(parents=True)
    Image.new("RGBA", (50, 50), (200, 0, 0, 0)).save(target)
    picture = opened(contact_sheet(manifest_of(tree)).png)
    assert picture.getpixel((30, 30)) == (255, 255, 255)


def test_the_sheet_shows_the_part_that_is_used(tmp_path: Path, synthetic_raw: Path) -> None:
    paths = DataPaths.from_root(tmp_path)
    pictures = []
    for crop in ("none", "banner"):
        prepare_dataset("FGVC-Aircraft", paths, raw_dir=synthetic_raw, crop=crop)
        pictures.append(contact_sheet(open_manifest(paths, "FGVC-Aircraft", "test")).png)
    assert pictures[0] != pictures[1]


def test_real_photographs_and_many_classes(shared: Path, tmp_path: Path) -> None:
    paths = DataPaths.from_root(tmp_path)
    prepare_dataset("Stanford Cars", paths, raw_dir=shared / "data" / "raw", allow_missing=True)
    manifest = open_manifest(paths, "Stanford Cars", "train")
    assert contact_sheet(manifest).caption.startswith("18 of ")
    opened(contact_sheet(manifest).png)
    opened(class_histogram(manifest).png)
