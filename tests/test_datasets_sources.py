"""Which folder is read: raw folders, recorded ones and class trees; and what is said when there is none."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from datasets_support import CLASSES, TEST, TRAIN, CopyRaw, listing_of
from PIL import Image

from embeddings_assets import catalog
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.status import raw_status
from embeddings_assets.errors import RawDataError
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest

pytest_plugins = ("datasets_fixtures",)

AIRCRAFT, CUB = "FGVC-Aircraft", "CUB-200-2011"


def write_tree(root: Path, splits: dict[str, int], classes: tuple[str, ...] = ("b class", "a_class")) -> None:
    shade = 0
    for split, images in splits.items():
        for name in classes:
            for index in range(images):
                shade += 1
                path = root / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 10), (shade, 2, 3)).save(path)


def test_nothing_there(paths: DataPaths) -> None:
    status = raw_status(CUB, paths)
    assert (status.state, status.found, status.listed, status.folder) == ("missing", 0, 0, None)
    with pytest.raises(RawDataError) as refusal:
        prepare_dataset(CUB, paths)
    text = str(refusal.value)
    assert str(paths.raw / "CUB_200_2011") in text
    assert "images.txt" in text
    assert 'embeddings-assets datasets fetch "CUB-200-2011"' in text


@pytest.mark.parametrize(
    ("dataset", "step"),
    [
        (CUB, 'embeddings-assets datasets fetch "CUB-200-2011" (or place a copy at {})'),
        ("NABirds", 'embeddings-assets datasets fetch "NABirds" --archives DIR (or place a copy at {})'),
        ("My Cats", "place your copy at {}"),
    ],
)
def test_the_next_step_to_a_dataset_is_the_same_wherever_it_is_told(
    paths: DataPaths, monkeypatch: pytest.MonkeyPatch, dataset: str, step: str
) -> None:
    """It can be taken: a dataset without archives is not fetched, one that is got by hand needs a folder."""
    cats = dataclasses.replace(
        catalog.DATASETS[0], name="My Cats", layout="image_folder", raw_folder="cats", archives=()
    )
    monkeypatch.setattr(catalog, "DATASETS", (*catalog.DATASETS, cats))
    with pytest.raises(RawDataError) as refusal:
        prepare_dataset(dataset, paths)
    remedy = f"{step.format(paths.raw_folder(dataset))}; or name its folder with --raw-dir DIR"
    assert refusal.value.remedy == remedy
    assert raw_status(dataset, paths).remedy == remedy


def test_an_empty_official_folder_is_as_good_as_none(paths: DataPaths) -> None:
    paths.raw_folder(CUB).mkdir(parents=True)
    (paths.raw_folder(CUB) / ".gitkeep").touch()
    assert raw_status(CUB, paths).state == "missing"
    write_tree(paths.processed / CUB, {"train": 4, "test": 1})
    assert raw_status(CUB, paths).state == "processed-tree"


def test_folder_of_something_else(paths: DataPaths) -> None:
    folder = paths.raw_folder(CUB)
    folder.mkdir(parents=True)
    (folder / "cats.csv").touch()
    status = raw_status(CUB, paths)
    assert (status.state, status.folder) == ("wrong", folder)
    with pytest.raises(RawDataError, match=r"expected images\.txt.*found cats\.csv") as refusal:
        prepare_dataset(CUB, paths)
    assert "--raw-dir" in str(refusal.value)


def test_raw_dir_that_does_not_hold_the_dataset(paths: DataPaths, tmp_path: Path) -> None:
    (tmp_path / "other" / "cats").mkdir(parents=True)
    for raw_dir in (tmp_path / "other", tmp_path / "absent"):
        with pytest.raises(RawDataError, match=str(raw_dir)):
            prepare_dataset(CUB, paths, raw_dir=raw_dir)
        assert raw_status(CUB, paths, raw_dir).state == "missing"


@pytest.mark.parametrize("above", ["", "archive"])
def test_the_only_folder_is_not_taken_if_it_is_another_datasets(
    paths: DataPaths, synthetic_raw: Path, tmp_path: Path, above: str
) -> None:
    """The lists of CUB and NABirds have the same names."""
    raw_dir = tmp_path / "disk"
    shutil.copytree(synthetic_raw / "nabirds", raw_dir / above / "nabirds")
    assert raw_status("NABirds", paths, raw_dir).state == "present"
    assert raw_status(CUB, paths, raw_dir).state == "missing"
    with pytest.raises(RawDataError, match="no raw data"):
        prepare_dataset(CUB, paths, raw_dir=raw_dir)
    shutil.copytree(raw_dir, paths.raw_folder(CUB))
    assert raw_status(CUB, paths).state == "wrong"
    with pytest.raises(RawDataError, match="found nabirds, the folder of NABirds") as refusal:
        prepare_dataset(CUB, paths)
    assert refusal.value.remedy == f"move it to {paths.raw / 'nabirds'}"


def test_raw_dir_comes_before_everything(copy_raw: CopyRaw, paths: DataPaths, synthetic_raw: Path) -> None:
    copy_raw(CUB)
    assert listing_of(CUB, paths).folder == paths.raw_folder(CUB)
    assert listing_of(CUB, paths, synthetic_raw).folder == synthetic_raw / "CUB_200_2011"
    assert listing_of(CUB, paths, synthetic_raw / "CUB_200_2011").folder == synthetic_raw / "CUB_200_2011"


def test_the_folder_of_the_lists_may_be_named_too(paths: DataPaths, synthetic_raw: Path) -> None:
    """The root of Aircraft is the folder above it."""
    folder = synthetic_raw / "fgvc-aircraft-2013b"
    reports = prepare_dataset(AIRCRAFT, paths, raw_dir=folder / "data")
    listing = listing_of(AIRCRAFT, paths, folder)
    assert sum(report.rows for report in reports) == len(listing.records)
    assert open_manifest(paths, AIRCRAFT, "test").raw_folder == folder


def test_a_recorded_folder_stays_until_another_one_is_named(
    copy_raw: CopyRaw, paths: DataPaths, synthetic_raw: Path
) -> None:
    prepare_dataset(CUB, paths, raw_dir=synthetic_raw)
    assert listing_of(CUB, paths).folder == synthetic_raw / "CUB_200_2011"
    copy_raw(CUB)
    assert listing_of(CUB, paths).folder == synthetic_raw / "CUB_200_2011"
    prepare_dataset(CUB, paths, raw_dir=paths.raw)
    assert listing_of(CUB, paths).folder == paths.raw_folder(CUB)


def test_recorded_folder_that_is_gone_is_named(paths: DataPaths, synthetic_raw: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "usb" / "CUB_200_2011"
    shutil.copytree(synthetic_raw / "CUB_200_2011", elsewhere)
    prepare_dataset(CUB, paths, raw_dir=elsewhere)
    shutil.rmtree(elsewhere)
    with pytest.raises(RawDataError, match=str(elsewhere)):
        prepare_dataset(CUB, paths)


def test_images_without_some_files(copy_raw: CopyRaw, paths: DataPaths) -> None:
    folder = copy_raw(CUB)
    listed = CLASSES * (TRAIN + TEST)
    assert raw_status(CUB, paths).state == "present"
    shutil.rmtree(folder / "images" / "002.Laysan_Albatross")
    status = raw_status(CUB, paths)
    assert (status.state, status.found, status.listed) == ("partial", listed - TRAIN - TEST, listed)
    shutil.rmtree(folder / "images")
    status = raw_status(CUB, paths)
    assert (status.state, status.found, status.listed) == ("partial", 0, listed)
    (folder / "images.txt").write_text("rubbish\n")
    status = raw_status(CUB, paths)
    assert status.state == "wrong"
    assert status.problem is not None
    assert "images.txt, line 1" in status.problem


def test_class_tree_below_processed(paths: DataPaths) -> None:
    tree = paths.processed / CUB
    write_tree(tree, {"train": 12, "test": 2})
    for ignored in (
        "train/.hidden/1.png",
        "train/_old/1.png",
        "train/a_class/._1.png",
        "train/a_class/notes.txt",
    ):
        (tree / ignored).parent.mkdir(exist_ok=True)
        (tree / ignored).write_bytes(b"x")
    (tree / "train" / "empty class").mkdir()
    status = raw_status(CUB, paths)
    assert (status.state, status.found, status.listed) == ("processed-tree", 28, 28)
    reports = prepare_dataset(CUB, paths)
    assert [report.rows for report in reports] == [22, 2, 4]
    again = prepare_dataset(CUB, paths)
    assert [report.changed for report in again] == [False] * 3, "manifests beside the tree are no part of it"
    manifest = open_manifest(paths, CUB, "validation")
    assert manifest.footer["raw_folder"] is None
    for row in manifest.slice(0, 9).to_pylist():
        split, name, file = row["image_id"].split("/")
        assert row["image_path"] == f"processed/{CUB}/{split}/{name}/{file}"
        assert manifest.resolve(row["image_path"]) == tree / split / name / file
        assert row["official_split"] == split == "train"
        assert row["class_name"] == row["class_id"] == name
        assert row["label"] == ["a_class", "b class"].index(name)


def test_tree_with_its_own_validation(paths: DataPaths) -> None:
    write_tree(paths.processed / CUB, {"train": 5, "validation": 1, "test": 1})
    assert [report.rows for report in prepare_dataset(CUB, paths)] == [10, 2, 2]
    assert open_manifest(paths, CUB, "train").footer["options"] == {"hold_out": None, "crop": "none"}


def test_labels_are_the_same_in_every_split_of_a_tree(paths: DataPaths) -> None:
    write_tree(paths.processed / CUB, {"train": 3}, ("a", "c"))
    write_tree(paths.processed / CUB, {"test": 1}, ("b", "c"))
    listing = listing_of(CUB, paths)
    assert listing.class_names == ("a", "b", "c")
    assert {(record.class_name, record.label) for record in listing.records} == {("a", 0), ("b", 1), ("c", 2)}


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("1", "10", "102", "2"), ("1", "2", "10", "102")),
        (("010", "9", "0100", "10"), ("9", "010", "10", "0100")),
        (("1", "10", "2", "other"), ("1", "10", "2", "other")),
        (("1", "10", "2.5", "-3"), ("-3", "1", "10", "2.5")),
    ],
)
def test_classes_that_are_numbers_are_in_the_order_of_numbers(
    paths: DataPaths, classes: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    write_tree(paths.processed / CUB, {"train": 2, "test": 1}, classes)
    listing = listing_of(CUB, paths)
    assert listing.class_names == expected
    train = [record for record in listing.records if record.official_split == "train"]
    assert [record.class_name for record in train] == [name for name in expected for _ in range(2)]
    assert [record.label for record in train] == sorted(2 * list(range(4)))
    assert [record.image_id[-5] for record in train] == ["0", "1"] * 4


def test_tree_without_test_images_is_refused(paths: DataPaths) -> None:
    write_tree(paths.processed / CUB, {"train": 5})
    with pytest.raises(RawDataError, match="CUB-200-2011/test: no usable image"):
        prepare_dataset(CUB, paths)
    assert [report.rows for report in prepare_dataset(CUB, paths, splits=["train", "validation"])] == [8, 2]


def test_custom_dataset_is_one_row_of_the_catalog(paths: DataPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = dataclasses.replace(
        catalog.DATASETS[0], name="My Cats", layout="image_folder", raw_folder="cats", classes=None, counts={}
    )
    monkeypatch.setattr(catalog, "DATASETS", (*catalog.DATASETS, spec))
    write_tree(paths.raw / "cats", {"train": 10, "val": 1, "test": 1})
    reports = prepare_dataset("My Cats", paths)
    assert [(report.rows, report.official) for report in reports] == [(20, None), (2, None), (2, None)]
    row = open_manifest(paths, "My Cats", "validation").slice(0, 1).to_pylist()[0]
    assert row["image_id"] == "validation/a_class/0.png"
    assert row["image_path"] == "raw/cats/val/a_class/0.png"


def test_two_folders_for_one_split(paths: DataPaths) -> None:
    write_tree(paths.processed / CUB, {"train": 3, "val": 1, "validation": 1})
    with pytest.raises(RawDataError, match="both hold validation images"):
        prepare_dataset(CUB, paths)
