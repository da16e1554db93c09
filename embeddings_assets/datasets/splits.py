"""The hold-out rule: validation for datasets that publish none, cut from train, class by class.

Images are chosen by a hash of their stable id, not by a random stream, so the choice depends neither on
the order of the records, nor on which files are present, nor on a library's version.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from embeddings_assets.datasets.layouts.listing import ImageRecord
from embeddings_assets.errors import SettingsError


@dataclass(frozen=True)
class HoldOut:
    """The share of each train class that becomes validation, between 0 and 1, and the seed of the choice."""

    share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise SettingsError(f"The hold-out share is {self.share}; expected more than 0 and less than 1.")


def needs_hold_out(records: Sequence[ImageRecord]) -> bool:
    """Whether the dataset publishes no validation split."""
    return all(record.official_split != "validation" for record in records)


def assign_splits(records: Sequence[ImageRecord], hold_out: HoldOut) -> tuple[str, ...]:
    """The split of each record: the official one, except for train images that are held out.

    Of the `n` train images of a class, `floor(share * n + 0.5)` are held out: at least one where there are
    two, and never all. Official test images are never moved.
    """
    if not needs_hold_out(records):
        return tuple(record.official_split for record in records)
    train: defaultdict[int, list[str]] = defaultdict(list)
    for record in records:
        if record.official_split == "train":
            train[record.label].append(record.image_id)
    held: set[str] = set()
    for image_ids in train.values():
        wanted = max(1, math.floor(hold_out.share * len(image_ids) + 0.5))
        count = min(wanted, len(image_ids) - 1)
        held.update(sorted(image_ids, key=lambda image_id: _rank(image_id, hold_out.seed))[:count])
    return tuple("validation" if record.image_id in held else record.official_split for record in records)


def split_options(records: Sequence[ImageRecord], hold_out: HoldOut) -> dict[str, Any]:
    """The rule as a manifest records it; null where the dataset publishes its own validation."""
    return {"hold_out": asdict(hold_out) if needs_hold_out(records) else None}


def _rank(image_id: str, seed: int) -> tuple[bytes, str]:
    return hashlib.sha256(f"{seed}:{image_id}".encode()).digest(), image_id
