"""Bounding boxes: of the complete official lists, of the drawn sets, and of damaged files."""

import re
from pathlib import Path

import pytest
from datasets_support import CopyRaw, ReadFolder

from embeddings_assets.catalog import get_dataset
from embeddings_assets.datasets.layouts import aircraft, cars, cub, dogs, nabirds
from embeddings_assets.datasets.layouts.listing import Listing
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.sources import LAYOUTS
from embeddings_assets.errors import RawDataError
from embeddings_assets.settings import DataPaths

pytest_plugins = ("datasets_fixtures",)

CUB, AIRCRAFT, NABIRDS, CARS, DOGS = (
    "CUB-200-2011",
    "FGVC-Aircraft",
    "NABirds",
    "Stanford Cars",
    "Stanford Dogs",
)


@pytest.mark.parametrize(
    ("dataset", "image_id", "box"),
    [
        (CUB, "1", (60, 27, 60 + 325, 27 + 304)),
        (AIRCRAFT, "1025794", (2, 143, 998, 431)),
        (NABIRDS, "0000139e-21dc-4d0c-bfe1-4cae3c85c829", (83, 59, 83 + 128, 59 + 228)),
        (CARS, "cars_train/00001", (38, 115, 569, 375)),
        (CARS, "cars_test/00001", (29, 51, 246, 147)),
    ],
)
def test_the_official_lists_have_a_box_for_every_image(
    annotations: Path,
    official: dict[str, Listing],
    dataset: str,
    image_id: str,
    box: tuple[int, int, int, int],
) -> None:
    module = {CUB: cub, AIRCRAFT: aircraft, NABIRDS: nabirds, CARS: cars}[dataset]
    boxes = module.read_boxes(annotations / get_dataset(dataset).raw_folder)
    assert boxes[image_id] == box
    assert boxes.keys() == {record.image_id for record in official[dataset].records}
    assert all(left < right and top < bottom for left, top, right, bottom in boxes.values())


@pytest.mark.parametrize("dataset", [CUB, AIRCRAFT, NABIRDS, CARS, DOGS])
def test_drawn_sets_have_boxes_inside_their_images(
    copy_raw: CopyRaw, read_folder: ReadFolder, dataset: str
) -> None:
    folder = copy_raw(dataset)
    boxes = LAYOUTS[get_dataset(dataset).layout].read_boxes(folder)  # type: ignore[attr-defined]
    assert boxes.keys() == {record.image_id for record in read_folder(dataset, folder).records}


def test_several_dogs_in_one_photograph(copy_raw: CopyRaw) -> None:
    folder = copy_raw(DOGS)
    file = next(path for path in (folder / "Annotation").rglob("*") if path.is_file())
    dog = "<object><bndbox><xmin>{}</xmin>\n<ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
    file.write_text(
        "<annotation><folder>%s</folder><filename>%s</filename>"
        + dog.format(10, 20, 30, 40)
        + dog.format(5, 25, 28, 60)
        + "</annotation>"
    )
    assert dogs.read_boxes(folder)[file.name] == (5, 20, 30, 60)
    kaggle = folder / "annotations"
    kaggle.mkdir()
    (folder / "Annotation").rename(kaggle / "Annotation")
    assert dogs.read_boxes(folder)[file.name] == (5, 20, 30, 60)


@pytest.mark.parametrize(
    ("dataset", "file", "text"),
    [
        (CUB, "bounding_boxes.txt", "1 60.0 27.0 325.0\n"),
        (CUB, "bounding_boxes.txt", "1 60.0 27.0 325.0 inf\n"),
        (CUB, "bounding_boxes.txt", "1 60.5 27.0 325.0 3.0\n"),
        (AIRCRAFT, "data/images_box.txt", "0000001 1 2 3 x\n"),
        (DOGS, None, "<annotation><object><bndbox><xmin>1</xmin></bndbox></object></annotation>"),
        (DOGS, None, "<html>"),
    ],
)
def test_damaged_boxes_are_named(copy_raw: CopyRaw, dataset: str, file: str | None, text: str) -> None:
    folder = copy_raw(dataset)
    path = (
        next(p for p in (folder / "Annotation").rglob("*") if p.is_file()) if file is None else folder / file
    )
    path.write_text(text)
    module = LAYOUTS[get_dataset(dataset).layout]
    with pytest.raises(RawDataError, match=path.name.replace(".", r"\.")):
        module.read_boxes(folder)  # type: ignore[attr-defined]


def test_absent_boxes_are_named(copy_raw: CopyRaw) -> None:
    folder = copy_raw(CUB)
    (folder / "bounding_boxes.txt").unlink()
    with pytest.raises(RawDataError, match=r"bounding_boxes\.txt: no such file"):
        cub.read_boxes(folder)
    (copy_raw(DOGS) / "Annotation").rename(folder / "elsewhere")
    with pytest.raises(RawDataError, match=r"expected the boxes in Annotation/ \(annotation\.tar\)"):
        dogs.read_boxes(folder.parent / "stanford_dogs")


@pytest.mark.parametrize(
    ("dataset", "file", "header"),
    [
        (CUB, "bounding_boxes.txt", "id x y w h"),
        (CUB, "bounding_boxes.txt", "image_id,x,y,width,height"),
        (NABIRDS, "bounding_boxes.txt", "Image\tBBox"),
        (AIRCRAFT, "data/images_box.txt", "image xmin ymin xmax ymax"),
        (AIRCRAFT, "data/images_box.txt", "filename x_min y_min x_max y_max"),
        (AIRCRAFT, "data/images_box.txt", "image_id bbox_x1 bbox_y1 bbox_x2 bbox_y2"),
    ],
)
def test_header_lines_of_boxes_are_skipped(copy_raw: CopyRaw, dataset: str, file: str, header: str) -> None:
    folder = copy_raw(dataset)
    module = {CUB: cub, AIRCRAFT: aircraft, NABIRDS: nabirds}[dataset]
    expected = module.read_boxes(folder)
    (folder / file).write_text(f"{header}\n{(folder / file).read_text()}")
    assert module.read_boxes(folder) == expected


@pytest.mark.parametrize("damage", ["absent", "damaged"])
@pytest.mark.parametrize(
    ("dataset", "file", "remedy"),
    [
        (CUB, "bounding_boxes.txt", 'or use the whole images: .* --dataset "CUB-200-2011" --crop none'),
        (DOGS, "Annotation", r"annotation\.tar"),
    ],
)
def test_boxes_that_cannot_be_read_have_a_remedy(
    copy_raw: CopyRaw, paths: DataPaths, dataset: str, file: str, remedy: str, damage: str
) -> None:
    place = copy_raw(dataset) / file
    if damage == "absent":
        place.rename(place.with_name("elsewhere"))
    else:
        next(path for path in [place, *sorted(place.rglob("*"))] if path.is_file()).write_text("<html>")
        remedy = "--crop none"
    with pytest.raises(RawDataError) as refusal:
        prepare_dataset(dataset, paths, crop="bounding_box")
    assert re.search(remedy, refusal.value.remedy or "")
