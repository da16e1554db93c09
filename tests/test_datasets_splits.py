"""The hold-out rule: sizes, stability, and that official test and validation images never move."""

import random
from collections import Counter

import pytest

from embeddings_assets.datasets.layouts.listing import ImageRecord
from embeddings_assets.datasets.splits import HoldOut, assign_splits, split_options
from embeddings_assets.errors import SettingsError


def records_of(sizes: dict[int, int], split: str = "train") -> list[ImageRecord]:
    return [
        ImageRecord(f"{split}-{label}-{index}", f"{split}/{label}/{index}.jpg", label, "c", "c", split)
        for label, size in sizes.items()
        for index in range(size)
    ]


DEFAULT = HoldOut()


def held_out(records: list[ImageRecord], hold_out: HoldOut = DEFAULT) -> dict[str, str]:
    splits = assign_splits(records, hold_out)
    return {record.image_id: split for record, split in zip(records, splits, strict=True)}


@pytest.mark.parametrize(
    ("images", "share", "held"),
    [
        (30, 0.1, 3),
        (25, 0.1, 3),  # half is rounded up
        (24, 0.1, 2),
        (4, 0.1, 1),  # at least one ...
        (2, 0.1, 1),
        (1, 0.1, 0),  # ... but never the only image
        (2, 0.9, 1),
    ],
)
def test_number_held_out_per_class(images: int, share: float, held: int) -> None:
    splits = held_out(records_of({0: images, 1: 50}), HoldOut(share=share))
    counts = Counter(split for image_id, split in splits.items() if image_id.startswith("train-0-"))
    assert (counts["validation"], counts["train"]) == (held, images - held)


def test_choice_ignores_the_order_and_the_other_classes() -> None:
    records = records_of(dict.fromkeys(range(6), 20)) + records_of({0: 9}, "test")
    expected = held_out(records)
    shuffled = random.Random(3).sample(records, len(records))
    assert held_out(shuffled) == expected
    alone = held_out([record for record in records if record.label == 4])
    assert all(expected[image_id] == split for image_id, split in alone.items())


def test_choice_is_pinned() -> None:
    """A change of the hash would move images between splits of manifests that users already have."""
    held = [image_id for image_id, split in held_out(records_of({0: 30})).items() if split == "validation"]
    # sha256 of `0:<image id>`, the three smallest.
    assert held == ["train-0-12", "train-0-13", "train-0-20"]


def test_seed_changes_the_choice_and_is_recorded() -> None:
    records = records_of({0: 100})
    assert held_out(records) != held_out(records, HoldOut(seed=1))
    assert split_options(records, HoldOut(share=0.2, seed=7)) == {"hold_out": {"share": 0.2, "seed": 7}}


def test_official_validation_is_kept_as_it_is() -> None:
    records = records_of({0: 20}) + records_of({0: 5}, "validation") + records_of({0: 5}, "test")
    assert held_out(records) == {record.image_id: record.official_split for record in records}
    assert split_options(records, HoldOut()) == {"hold_out": None}


def test_test_images_are_never_held_out() -> None:
    splits = held_out(records_of({0: 20}) + records_of({0: 20}, "test"))
    assert all(split == "test" for image_id, split in splits.items() if image_id.startswith("test"))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(SettingsError, match="share"):
        HoldOut(share=share)
