"""How many images of which class and split a synthetic dataset has, and the random choices in its lists."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from embeddings_assets.datasets.synthetic.images import Look, draw_image, save_image


class Slot(NamedTuple):
    """One image to be: its class, 0-based, and its official split."""

    label: int
    split: str


@dataclass(frozen=True)
class Plan:
    """`train_per_class` counts only where the dataset publishes no validation split."""

    dataset: str
    classes: int
    train_per_class: int
    test_per_class: int
    seed: int
    official_validation: bool
    banner: bool = False

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed}/{self.dataset}/{purpose}")

    def slots(self) -> list[Slot]:
        """Every image, class by class, the splits of a class in random order."""
        if self.official_validation:
            splits = ["train", "validation", "test"] * self.test_per_class
        else:
            splits = ["train"] * self.train_per_class + ["test"] * self.test_per_class
        rng = self.rng("splits")
        return [
            Slot(label, split) for label in range(self.classes) for split in rng.sample(splits, len(splits))
        ]

    def shuffled_slots(self) -> list[Slot]:
        """Every image in random order."""
        slots = self.slots()
        return self.rng("order").sample(slots, len(slots))

    def draw(self, path: Path, label: int, index: int, *, as_png: bool = False) -> tuple[int, int]:
        """Draw image number `index` into `path`; its width and height in pixels."""
        look = Look(f"{self.seed}/{self.dataset}", self.classes, self.banner)
        image = draw_image(look, label, index)
        save_image(image, path, as_png=as_png)
        return image.size


def extended(table: Sequence[str], classes: int, made_up: str) -> list[str]:
    """The first `classes` names: those of the table, then made-up ones with their number for `{0}`."""
    return [
        table[label] if label < len(table) else made_up.format(f"{label + 1:03d}") for label in range(classes)
    ]


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii", newline="\n")


def middle_box(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The x, y, width and height of a box around the drawn shapes, in whole pixels."""
    width, height = size
    side = min(width, height)
    return (width - side) // 2 + 1, (height - side) // 2 + 1, side - 2, side - 2
