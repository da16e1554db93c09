"""Damaged or hostile lists are refused with one error that names the file and the line or position."""

import re
from pathlib import Path

import numpy as np
import pytest
from datasets_support import CopyRaw, ReadFolder
from scipy.io import loadmat, savemat

from embeddings_assets.errors import RawDataError

pytest_plugins = ("datasets_fixtures",)


def replace_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("dataset", "file", "number", "line"),
    [
        ("CUB-200-2011", "images.txt", 3, "3"),
        ("CUB-200-2011", "images.txt", 3, "2 001.Black_footed_Albatross/again.jpg"),
        ("CUB-200-2011", "images.txt", 3, "3 ../../outside.jpg"),
        ("CUB-200-2011", "images.txt", 3, "3 /etc/hostname"),
        ("CUB-200-2011", "images.txt", 3, ""),
        ("CUB-200-2011", "image_class_labels.txt", 4, "4 77"),
        ("CUB-200-2011", "image_class_labels.txt", 4, "999999 1"),
        ("CUB-200-2011", "train_test_split.txt", 5, "5 2"),
        ("CUB-200-2011", "classes.txt", 2, "2 no number"),
        ("NABirds", "images.txt", 1, "0295/x.jpg"),
        ("NABirds", "classes.txt", 2, "x Birds"),
        ("NABirds", "hierarchy.txt", 1, "1 4000"),
        ("FGVC-Aircraft", "data/images_variant_val.txt", 2, "12345 707-320"),
        ("FGVC-Aircraft", "data/images_variant_val.txt", 2, "1234567 Concorde"),
        ("FGVC-Aircraft", "data/variants.txt", 2, "707-320"),
    ],
)
def test_damaged_line_is_named(
    copy_raw: CopyRaw, read_folder: ReadFolder, dataset: str, file: str, number: int, line: str
) -> None:
    folder = copy_raw(dataset)
    replace_line(folder / file, number, line)
    with pytest.raises(RawDataError) as refusal:
        read_folder(dataset, folder)
    named = re.search(r"(\S+\.txt)(?:, line (\d+)|: no line for image)", str(refusal.value))
    assert named is not None
    assert named[1] == str(folder / file)
    assert named[2] in (None, str(number))


def test_label_of_an_inner_node_is_refused(copy_raw: CopyRaw, read_folder: ReadFolder) -> None:
    folder = copy_raw("NABirds")
    image_id = (folder / "images.txt").read_text().split()[0]
    replace_line(folder / "image_class_labels.txt", 1, f"{image_id} 0")
    with pytest.raises(RawDataError, match=r"image_class_labels\.txt, line 1"):
        read_folder("NABirds", folder)


def test_image_in_two_aircraft_lists_is_refused(copy_raw: CopyRaw, read_folder: ReadFolder) -> None:
    folder = copy_raw("FGVC-Aircraft") / "data"
    train = (folder / "images_variant_train.txt").read_text().splitlines()
    replace_line(folder / "images_variant_test.txt", 2, train[0])
    with pytest.raises(RawDataError, match=r"images_variant_test\.txt, line 2.*images_variant_train\.txt"):
        read_folder("FGVC-Aircraft", folder.parent)


def test_list_that_is_not_text(copy_raw: CopyRaw, read_folder: ReadFolder) -> None:
    folder = copy_raw("CUB-200-2011")
    path = folder / "images.txt"
    path.write_bytes(path.read_bytes().replace(b"3 001", b"3 \xff\xfe01", 1))
    with pytest.raises(RawDataError, match=r"images\.txt, line 3: expected UTF-8"):
        read_folder("CUB-200-2011", folder)


def test_empty_list(copy_raw: CopyRaw, read_folder: ReadFolder) -> None:
    folder = copy_raw("CUB-200-2011")
    (folder / "train_test_split.txt").write_bytes(b"")
    with pytest.raises(RawDataError, match=r"train_test_split\.txt: expected a list, found an empty file"):
        read_folder("CUB-200-2011", folder)


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("CUB-200-2011", "classes.txt"),
        ("NABirds", "hierarchy.txt"),
        ("FGVC-Aircraft", "data/images_variant_val.txt"),
        ("Oxford 102 Flowers", "setid.mat"),
        ("Stanford Cars", "devkit/cars_meta.mat"),
        ("Stanford Dogs", "file_list.mat"),
    ],
)
def test_absent_list_is_named(copy_raw: CopyRaw, read_folder: ReadFolder, dataset: str, file: str) -> None:
    folder = copy_raw(dataset)
    (folder / file).unlink()
    with pytest.raises(RawDataError, match=re.escape(Path(file).name)):
        read_folder(dataset, folder)


def test_damaged_mat_files(copy_raw: CopyRaw, read_folder: ReadFolder) -> None:
    folder = copy_raw("Oxford 102 Flowers")
    path = folder / "setid.mat"
    whole = path.read_bytes()
    for content in (b"", b"<html>", whole[:150], whole[:-30], whole[:200] + b"\x00" * 40 + whole[240:]):
        path.write_bytes(content)
        with pytest.raises(RawDataError, match=r"setid\.mat"):
            read_folder("Oxford 102 Flowers", folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"trnid": [1, 2], "valid": [2, 3], "tstid": [4]}, "image 2 is in valid and in trnid"),
        ({"trnid": [1, 2], "valid": [3], "tstid": [31]}, "tstid holds 31; expected 1 to 30"),
        ({"trnid": [1, 2], "valid": [3], "tstid": [4]}, "names 4 images"),
        ({"trnid": [1.5], "valid": [3], "tstid": [4]}, "trnid entry 1 is '1.5'"),
        ({"trnid": [1], "valid": [], "tstid": [4]}, "valid is empty"),
        ({"trnid": [1], "valid": [2]}, "'tstid' is missing"),
    ],
)
def test_flower_sets_that_contradict(
    copy_raw: CopyRaw, read_folder: ReadFolder, change: dict[str, list[float]], expected: str
) -> None:
    folder = copy_raw("Oxford 102 Flowers")
    savemat(folder / "setid.mat", {name: np.array([numbers]) for name, numbers in change.items()})
    with pytest.raises(RawDataError, match=re.escape(expected)):
        read_folder("Oxford 102 Flowers", folder)


@pytest.mark.parametrize("file", ["../../escape.jpg", "/etc/hostname", "a\x00b.jpg"])
def test_path_out_of_the_folder_in_a_mat_list(copy_raw: CopyRaw, read_folder: ReadFolder, file: str) -> None:
    folder = copy_raw("Stanford Dogs")
    content = loadmat(folder / "file_list.mat")
    content["file_list"][2, 0] = np.array([file])
    savemat(folder / "file_list.mat", {name: content[name] for name in ("file_list", "labels")})
    with pytest.raises(RawDataError, match=r"file_list\.mat: file 3"):
        read_folder("Stanford Dogs", folder)


def test_dog_labels_that_disagree_between_lists(copy_raw: CopyRaw, read_folder: ReadFolder) -> None:
    folder = copy_raw("Stanford Dogs")
    content = loadmat(folder / "test_list.mat")
    content["labels"][0, 0] = 2
    savemat(folder / "test_list.mat", {name: content[name] for name in ("file_list", "labels")})
    with pytest.raises(RawDataError, match=r"test_list\.mat: .* has label 2; file_list\.mat has 1"):
        read_folder("Stanford Dogs", folder)
