"""The layouts in circulation are read like the official one."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets_support import CLASSES, CopyRaw, ReadFolder
from scipy.io import loadmat, savemat

from embeddings_assets.datasets.layouts.listing import Listing
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.status import raw_status
from embeddings_assets.errors import RawDataError
from embeddings_assets.settings import DataPaths

pytest_plugins = ("datasets_fixtures",)


def facts(listing: Listing) -> list[tuple[Any, ...]]:
    """Everything but the paths."""
    return [(r.image_id, r.label, r.class_name, r.class_id, r.official_split) for r in listing.records]


@pytest.mark.parametrize(
    "dataset",
    ["CUB-200-2011", "FGVC-Aircraft", "NABirds", "Oxford 102 Flowers", "Stanford Cars", "Stanford Dogs"],
)
def test_folder_unpacked_one_level_too_deep(
    copy_raw: CopyRaw, paths: DataPaths, synthetic_raw: Path, dataset: str
) -> None:
    folder = copy_raw(dataset)
    plain = prepare_dataset(dataset, paths)
    inner = folder.rename(folder.with_name("inner"))
    folder.mkdir()
    inner.rename(folder / folder.name)
    (folder / "attributes.txt").write_text("beside it, as in the archive of CUB\n")
    (folder / "extra").mkdir()
    nested = prepare_dataset(dataset, paths)
    assert [report.fingerprint for report in nested] == [report.fingerprint for report in plain]
    assert raw_status(dataset, paths).folder == folder / folder.name


@pytest.mark.parametrize("dataset", ["CUB-200-2011", "FGVC-Aircraft", "Stanford Cars"])
def test_folder_unpacked_two_levels_too_deep(
    copy_raw: CopyRaw, read_folder: ReadFolder, dataset: str
) -> None:
    folder = copy_raw(dataset)
    plain = read_folder(dataset, folder)
    inner = folder.rename(folder.with_name("inner"))
    (folder / "archive").mkdir(parents=True)
    (folder / "__MACOSX").mkdir()
    inner.rename(folder / "archive" / folder.name)
    assert facts(read_folder(dataset, folder)) == facts(plain)


def test_two_candidates_are_no_choice_of_ours(copy_raw: CopyRaw, paths: DataPaths) -> None:
    folder = copy_raw("CUB-200-2011")
    inner = folder.rename(folder.with_name("inner"))
    folder.mkdir()
    shutil.copytree(inner, folder / "one")
    shutil.copytree(inner, folder / "two")
    status = raw_status("CUB-200-2011", paths)
    assert status.state == "wrong"
    assert "expected images.txt" in str(status.problem)
    assert "found one, two" in str(status.problem)


@pytest.mark.parametrize(
    "dataset",
    ["CUB-200-2011", "FGVC-Aircraft", "NABirds", "Oxford 102 Flowers", "Stanford Cars", "Stanford Dogs"],
)
def test_what_other_systems_leave_behind_is_no_part_of_a_dataset(
    copy_raw: CopyRaw, paths: DataPaths, dataset: str
) -> None:
    folder = copy_raw(dataset)
    plain = prepare_dataset(dataset, paths)
    for place in [folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir())]:
        for file in [path for path in place.iterdir() if path.is_file()][:3]:
            (place / f"._{file.name}").write_bytes(b"\0\5\x16\7 AppleDouble")
        (place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        (place / "Thumbs.db").write_bytes(b"\xd0\xcf")
        (place / "__MACOSX").mkdir()
    shutil.copytree(folder / "__MACOSX", folder / "__MACOSX" / folder.name)
    again = prepare_dataset(dataset, paths)
    assert [report.fingerprint for report in again] == [report.fingerprint for report in plain]
    assert raw_status(dataset, paths).state == "present"


def test_dogs_without_lists_are_refused_with_what_is_missing(copy_raw: CopyRaw, paths: DataPaths) -> None:
    """The Kaggle copy: images and annotations, and no official split."""
    folder = copy_raw("Stanford Dogs")
    for file in folder.glob("*_list.mat"):
        file.unlink()
    (folder / "Images").rename(folder / "images")
    with pytest.raises(RawDataError) as refusal:
        prepare_dataset("Stanford Dogs", paths)
    text = str(refusal.value)
    assert "train_list.mat and test_list.mat (lists.tar of the dataset's page; some copies lack it)" in text
    assert "found Annotation, SYNTHETIC.txt, images" in text


def test_the_flowers_of_a_course_are_not_the_official_ones(paths: DataPaths) -> None:
    """A class tree of 6,552 / 818 / 819 images in train, valid and test: another split of the same images."""
    folder = paths.raw_folder("Oxford 102 Flowers")
    for split in ("train", "valid", "test"):
        (folder / split / "1").mkdir(parents=True)
        (folder / split / "1" / "image_06734.jpg").write_bytes(b"x")
    with pytest.raises(RawDataError) as refusal:
        prepare_dataset("Oxford 102 Flowers", paths)
    assert "expected imagelabels.mat and setid.mat" in str(refusal.value)
    assert "found test, train, valid" in str(refusal.value)


@pytest.mark.parametrize(
    ("dataset", "lists"),
    [
        ("CUB-200-2011", {"images.txt": "id path", "classes.txt": "class name"}),
        ("NABirds", {"image_class_labels.txt": "image,class", "hierarchy.txt": "child parent"}),
    ],
)
def test_header_lines_are_skipped(
    copy_raw: CopyRaw, read_folder: ReadFolder, dataset: str, lists: dict[str, str]
) -> None:
    folder = copy_raw(dataset)
    expected = read_folder(dataset, folder)
    for name, header in lists.items():
        path = folder / name
        path.write_text(f"{header}\n{path.read_text()}")
    assert read_folder(dataset, folder) == expected


def test_aircraft_header_lines_are_skipped(copy_raw: CopyRaw, read_folder: ReadFolder) -> None:
    folder = copy_raw("FGVC-Aircraft")
    expected = read_folder("FGVC-Aircraft", folder)
    for name, header in (("variants", "Variant"), ("images_variant_train", "Image Variant")):
        path = folder / "data" / f"{name}.txt"
        path.write_text(f"{header}\n{path.read_text()}")
    assert read_folder("FGVC-Aircraft", folder) == expected


def test_aircraft_data_folder_alone(copy_raw: CopyRaw, read_folder: ReadFolder) -> None:
    folder = copy_raw("FGVC-Aircraft")
    expected = read_folder("FGVC-Aircraft", folder)
    assert read_folder("FGVC-Aircraft", folder / "data") == expected
    flat = read_folder("FGVC-Aircraft", (folder / "data").rename(folder.with_name("lists")))
    assert facts(flat) == facts(expected)
    assert (flat.folder / flat.records[0].path).is_file()


def test_header_detection_takes_no_time_on_a_long_line(copy_raw: CopyRaw, read_folder: ReadFolder) -> None:
    folder = copy_raw("FGVC-Aircraft")
    path = folder / "data" / "variants.txt"
    path.write_text("filename" * 10_000 + " image_" * 10_000 + "!\n" + path.read_text())
    assert len(read_folder("FGVC-Aircraft", folder).class_names) == CLASSES + 1


def test_windows_line_ends_and_byte_order_mark(copy_raw: CopyRaw, read_folder: ReadFolder) -> None:
    folder = copy_raw("NABirds")
    expected = read_folder("NABirds", folder)
    for path in folder.glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_folder("NABirds", folder) == expected


@pytest.mark.parametrize(
    "place", ["devkit/cars_test_annos_withlabels.mat", "devkit/cars_test_annoswithlabels.mat",
              "cars_test_annos_withlabels (1).mat"],
)  # fmt: skip
def test_cars_test_labels_in_other_places(copy_raw: CopyRaw, read_folder: ReadFolder, place: str) -> None:
    folder = copy_raw("Stanford Cars")
    expected = read_folder("Stanford Cars", folder)
    (folder / "cars_test_annos_withlabels.mat").rename(folder / place)
    assert read_folder("Stanford Cars", folder) == expected


def test_cars_without_test_labels_are_refused(copy_raw: CopyRaw, read_folder: ReadFolder) -> None:
    folder = copy_raw("Stanford Cars")
    (folder / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(RawDataError, match=r"expected cars_test_annos_withlabels\.mat") as refusal:
        read_folder("Stanford Cars", folder)
    assert "put cars_test_annos_withlabels.mat into" in str(refusal.value)


def test_cars_images_nested_as_on_kaggle(copy_raw: CopyRaw, paths: DataPaths) -> None:
    folder = copy_raw("Stanford Cars")
    for split in ("cars_train", "cars_test"):
        (folder / split).rename(folder / "moved")
        (folder / split).mkdir()
        (folder / "moved").rename(folder / split / split)
    assert raw_status("Stanford Cars", paths).state == "present"


def write_joined_annotations(folder: Path) -> None:
    """cars_annos.mat for the images of car_ims/, made of the separate lists."""
    rows = []
    for split, file in ((0, "devkit/cars_train_annos.mat"), (1, "cars_test_annos_withlabels.mat")):
        for record in loadmat(folder / file, squeeze_me=True)["annotations"]:
            rows.append((f"car_ims/{len(rows) + 1:06d}.jpg", record["class"], split))
    structs = np.empty(
        (1, len(rows)), dtype=[(name, object) for name in ("relative_im_path", "class", "test")]
    )
    for position, row in enumerate(rows):
        structs[0, position] = row
    names = loadmat(folder / "devkit" / "cars_meta.mat")["class_names"]
    savemat(folder / "cars_annos.mat", {"annotations": structs, "class_names": names})


def test_cars_joined_layout(copy_raw: CopyRaw, paths: DataPaths, read_folder: ReadFolder) -> None:
    folder = copy_raw("Stanford Cars")
    expected = facts(read_folder("Stanford Cars", folder))
    write_joined_annotations(folder)
    assert facts(read_folder("Stanford Cars", folder)) == expected, (
        "the images there are of the separate layout"
    )
    (folder / "car_ims").mkdir()
    images = sorted((folder / "cars_train").iterdir()) + sorted((folder / "cars_test").iterdir())
    for number, image in enumerate(images, start=1):
        image.rename(folder / "car_ims" / f"{number:06d}.jpg")
    for name in ("cars_train", "cars_test"):
        (folder / name).rmdir()
    joined = facts(read_folder("Stanford Cars", folder))
    assert [row[1:] for row in joined] == [row[1:] for row in expected]
    assert joined[0][0] == "car_ims/000001"
    assert raw_status("Stanford Cars", paths).state == "present"


def test_cars_joined_lists_never_label_separate_images(copy_raw: CopyRaw, read_folder: ReadFolder) -> None:
    folder = copy_raw("Stanford Cars")
    write_joined_annotations(folder)
    for path in (folder / "devkit").iterdir():
        path.unlink()
    with pytest.raises(RawDataError, match="numbered differently"):
        read_folder("Stanford Cars", folder)


def test_dogs_images_nested_as_on_kaggle(copy_raw: CopyRaw, paths: DataPaths) -> None:
    folder = copy_raw("Stanford Dogs")
    (folder / "images").mkdir()
    (folder / "Images").rename(folder / "images" / "Images")
    assert raw_status("Stanford Dogs", paths).state == "present"


def test_suffix_in_the_other_case_is_the_same_image(copy_raw: CopyRaw, paths: DataPaths) -> None:
    folder = copy_raw("Oxford 102 Flowers")
    (folder / "jpg" / "image_00003.jpg").rename(folder / "jpg" / "image_00003.JPG")
    assert raw_status("Oxford 102 Flowers", paths).state == "present"
    assert sum(report.rows for report in prepare_dataset("Oxford 102 Flowers", paths)) == 5 * 3 * 2
