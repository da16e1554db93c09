"""The complete official lists give the counts, splits and names that the datasets' documentation states.

Every expected number and name is a literal of that documentation or comes from an independent file.
"""

from collections import Counter
from pathlib import Path

import pytest
from datasets_support import ReadFolder

from embeddings_assets.datasets.layouts.listing import ImageRecord, Listing
from embeddings_assets.datasets.splits import HoldOut, assign_splits

pytest_plugins = ("datasets_fixtures",)

COUNTS = {
    "CUB-200-2011": (200, {"train": 5994, "test": 5794}),
    "FGVC-Aircraft": (100, {"train": 3334, "validation": 3333, "test": 3333}),
    "NABirds": (555, {"train": 23929, "test": 24633}),
    "Oxford 102 Flowers": (102, {"train": 1020, "validation": 1020, "test": 6149}),
    "Stanford Cars": (196, {"train": 8144, "test": 8041}),
    "Stanford Dogs": (120, {"train": 12000, "test": 8580}),
}
PER_CLASS = {
    "CUB-200-2011": {"train": (29, 30), "test": (11, 30)},
    "FGVC-Aircraft": {"train": (33, 34), "validation": (33, 34), "test": (33, 34)},
    "NABirds": {"train": (4, 60), "test": (9, 60)},
    "Oxford 102 Flowers": {"train": (10, 10), "validation": (10, 10), "test": (20, 238)},
    "Stanford Cars": {"train": (24, 68), "test": (24, 68)},
    "Stanford Dogs": {"train": (100, 100), "test": (48, 152)},
}
HELD_OUT = {
    "CUB-200-2011": (600, 5394),
    "NABirds": (2423, 21506),
    "Stanford Cars": (812, 7332),
    "Stanford Dogs": (1200, 10800),
}
HELD_OUT_20 = {"CUB-200-2011": 1200, "NABirds": 4780, "Stanford Cars": 1635, "Stanford Dogs": 2400}


def by_id(listing: Listing) -> dict[str, ImageRecord]:
    return {record.image_id: record for record in listing.records}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_per_split_and_class(official: dict[str, Listing], name: str) -> None:
    records = official[name].records
    classes, counts = COUNTS[name]
    assert Counter(record.official_split for record in records) == counts
    assert {record.label for record in records} == set(range(classes))
    assert len(official[name].class_names) == classes
    for split, (fewest, most) in PER_CLASS[name].items():
        per_class = Counter(record.label for record in records if record.official_split == split)
        assert (min(per_class.values()), max(per_class.values())) == (fewest, most)


@pytest.mark.parametrize("name", COUNTS)
def test_records_agree_with_the_table_of_names(official: dict[str, Listing], name: str) -> None:
    listing = official[name]
    assert all(record.class_name == listing.class_names[record.label] for record in listing.records)
    assert len({(record.label, record.class_id) for record in listing.records}) == len(listing.class_names)


@pytest.mark.parametrize("name", COUNTS)
def test_hold_out_sizes(official: dict[str, Listing], name: str) -> None:
    records = official[name].records
    splits = assign_splits(records, HoldOut())
    counts = Counter(splits)
    if name in HELD_OUT:
        assert (counts["validation"], counts["train"]) == HELD_OUT[name]
        assert Counter(assign_splits(records, HoldOut(share=0.2)))["validation"] == HELD_OUT_20[name]
    assert counts["test"] == COUNTS[name][1]["test"]
    held = {record.label for record, split in zip(records, splits, strict=True) if split == "validation"}
    assert len(held) == COUNTS[name][0]


def test_cub(official: dict[str, Listing]) -> None:
    listing = official["CUB-200-2011"]
    first = listing.records[0]
    assert first.image_id == "1"
    assert first.path == "images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg"
    assert first.official_split == "test"
    assert (first.label, first.class_name, first.class_id) == (0, "Black footed Albatross", "1")
    assert [record.image_id for record in listing.records] == [str(number) for number in range(1, 11789)]
    # Folder number = class id for every image of the real set.
    assert all(int(record.path.split("/")[1][:3]) == record.label + 1 for record in listing.records)


def test_aircraft(official: dict[str, Listing], annotations: Path) -> None:
    listing = official["FGVC-Aircraft"]
    variants = (annotations / "fgvc-aircraft-2013b" / "data" / "variants.txt").read_text().splitlines()
    assert list(listing.class_names) == variants == sorted(variants)
    records = by_id(listing)
    assert (records["1025794"].class_name, records["1025794"].label) == ("707-320", 0)
    assert records["1025794"].path == "data/images/1025794.jpg"
    assert records["1159626"].class_name == "BAE 146-200"
    assert {"F-16A/B", "F/A-18", "Eurofighter Typhoon"} <= set(listing.class_names)
    assert all(len(image_id) == 7 for image_id in records)
    assert "0056978" in records
    order = [record.official_split for record in listing.records]
    assert order == ["train"] * 3334 + ["validation"] * 3333 + ["test"] * 3333


def test_nabirds(official: dict[str, Listing]) -> None:
    listing = official["NABirds"]
    first = listing.records[0]
    assert first.image_id == "0000139e-21dc-4d0c-bfe1-4cae3c85c829"
    assert first.path == "images/0817/0000139e21dc4d0cbfe14cae3c85c829.jpg"
    assert (first.class_id, first.official_split) == ("817", "test")
    # Sorted numeric class ids, which equal the sorted names of the zero-padded folders.
    folders = sorted({record.path.split("/")[1] for record in listing.records})
    assert (folders[0], folders[-1]) == ("0295", "1010")
    assert all(record.label == folders.index(record.path.split("/")[1]) for record in listing.records[::7])
    assert listing.class_names[-1] == "Dark-eyed Junco (Red-backed/Gray-headed)"
    assert len(set(listing.class_names)) == 555
    upper = [record for record in listing.records if record.path.endswith(".JPG")]
    assert Counter(record.official_split for record in upper) == {"train": 17, "test": 18}
    folders_of_upper = {record.path.split("/")[1] for record in upper}
    expected = ("0381", "0472", "0500", "0601", "0680", "0849", "0869", "0954", "0964")
    assert folders_of_upper == set(expected)


def test_flowers_train_and_test_are_not_swapped(official: dict[str, Listing]) -> None:
    listing = official["Oxford 102 Flowers"]
    records = by_id(listing)
    assert [record.image_id for record in listing.records[:2]] == ["image_00001", "image_00002"]
    assert records["image_06765"].official_split == "train"
    assert records["image_06773"].official_split == "validation"
    assert records["image_06734"].official_split == "test"
    assert records["image_00001"].path == "jpg/image_00001.jpg"
    assert (records["image_00001"].class_id, records["image_00001"].label) == ("77", 76)
    # Byte-identical pairs of known class (raw, from 1).
    for image_id, class_id in (("image_08067", 31), ("image_07309", 94), ("image_07886", 99)):
        assert records[image_id].label == class_id - 1
    assert listing.class_names[60 - 1] == "pink-yellow dahlia?"
    assert listing.class_names[78 - 1] == "lotus"
    assert {"colt's foot", "globe-flower"} <= set(listing.class_names)


def test_cars_class_order_is_not_alphabetical(official: dict[str, Listing], annotations: Path) -> None:
    listing = official["Stanford Cars"]
    assert listing.class_names[1] == "Acura RL Sedan 2012"
    assert listing.class_names[5] == "Acura Integra Type R 2001"
    assert listing.class_names[174 - 1] == "Ram C/V Cargo Van Minivan 2012"
    records = by_id(listing)
    assert (records["cars_train/00001"].class_id, records["cars_train/00001"].label) == ("14", 13)
    assert records["cars_test/00001"].label == 181 - 1
    assert records["cars_test/00001"].path == "cars_test/00001.jpg"
    assert records["cars_train/00050"].label == 42 - 1
    # The devkit's own sample of a perfect submission: one class id per train image.
    perfect = (annotations / "stanford_cars" / "devkit" / "train_perfect_preds.txt").read_text().split()
    assert [record.class_id for record in listing.records[:8144]] == perfect


def test_dogs_names_split_at_the_first_dash(official: dict[str, Listing]) -> None:
    listing = official["Stanford Dogs"]
    records = by_id(listing)
    first = listing.records[0]
    assert first.image_id == "n02085620_10074"
    assert first.path == "Images/n02085620-Chihuahua/n02085620_10074.jpg"
    assert (first.label, first.class_id, first.class_name) == (0, "1", "Chihuahua")
    assert records["n02085620_5927"].official_split == "train"
    folders = sorted({record.path.split("/")[1] for record in listing.records})
    assert all(folders[record.label] == record.path.split("/")[1] for record in listing.records)
    names = dict(zip(folders, listing.class_names, strict=True))
    assert names["n02089078-black-and-tan_coonhound"] == "black-and-tan coonhound"
    assert names["n02086240-Shih-Tzu"] == "Shih-Tzu"
    sizes = Counter(record.class_name for record in listing.records)
    assert (sizes["redbone"], sizes["Maltese dog"]) == (148, 252)
    assert (min(sizes.values()), max(sizes.values())) == (148, 252)


def test_cars_joined_layout_agrees_with_the_separate_one(
    official: dict[str, Listing], annotations: Path, tmp_path: Path, read_folder: ReadFolder
) -> None:
    (tmp_path / "cars_annos.mat").symlink_to(annotations / "stanford_cars" / "cars_annos.mat")
    joined = read_folder("Stanford Cars", tmp_path)
    separate = official["Stanford Cars"]
    assert joined.class_names == separate.class_names

    def sizes(listing: Listing) -> Counter[tuple[str, int]]:
        return Counter((record.official_split, record.label) for record in listing.records)

    assert sizes(joined) == sizes(separate)
    first = by_id(joined)["car_ims/000001"]
    assert (first.path, first.label, first.official_split) == ("car_ims/000001.jpg", 0, "train")
