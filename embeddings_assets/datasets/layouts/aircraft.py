"""FGVC-Aircraft 2013b at the level of variants: one list per split, classes by line of variants.txt.

The README's counts (10,200 images, 102 variants) are not those of the evaluated lists (10,000, 100).
"""

import re
from pathlib import Path

from embeddings_assets.datasets.layouts.listing import Box, ImageRecord, Listing
from embeddings_assets.datasets.layouts.parsing import (
    Line,
    find_root,
    numbers,
    read_lines,
    read_table,
    require_root,
)

EXPECTED = "data/variants.txt and data/images_variant_{train,val,test}.txt"

_LISTS = {"train": "train", "validation": "val", "test": "test"}


def locate(folder: Path) -> Path | None:
    """The folder above `data/`, in `folder` or up to two levels deeper; else the lists' own."""
    root = find_root(folder, lambda root: _lists_of(root) is not None)
    return root.parent if root is not None and root.name == "data" and not _lists_of(root) else root


def read(folder: Path) -> Listing:
    """Train, validation and test in file order; image id = the seven digits of the file name.

    Raises:
        RawDataError: the lists are absent, damaged or contradict each other.
    """
    root = require_root(folder, locate(folder), EXPECTED)
    prefix = _lists_of(root) or ""
    variants: dict[str, int] = {}
    for line in read_lines(root / prefix / "variants.txt"):
        if line.text.strip() in variants:
            raise line.error("each variant once")
        variants[line.text.strip()] = len(variants)
    records = []
    listed_in: dict[str, Path] = {}
    for split, suffix in _LISTS.items():
        table = read_table(root / prefix / f"images_variant_{suffix}.txt", "'<7 digits> <variant>'")
        for image_id, line in table.items():
            variant = line.text.strip()
            if not re.fullmatch(r"[0-9]{7}", image_id):
                raise Line(line.path, line.number, image_id).error("an image id of 7 digits")
            if variant not in variants:
                raise line.error("a name of variants.txt")
            if image_id in listed_in:
                raise Line(line.path, line.number, image_id).error(f"no image of {listed_in[image_id].name}")
            listed_in[image_id] = line.path
            records.append(
                ImageRecord(
                    image_id=image_id,
                    path=f"{prefix}images/{image_id}.jpg",
                    label=variants[variant],
                    class_name=variant,
                    class_id=variant,
                    official_split=split,
                )
            )
    lists = ("variants.txt", *(f"images_variant_{suffix}.txt" for suffix in _LISTS.values()))
    return Listing(root, tuple(records), tuple(variants), tuple(root / prefix / name for name in lists))


def read_boxes(root: Path) -> dict[str, Box]:
    """The boxes of images_box.txt by image id; a line is `<7 digits> <xmin> <ymin> <xmax> <ymax>`, from 1.

    Raises:
        RawDataError: the list is absent or damaged.
    """
    boxes = {}
    table = read_table(root / (_lists_of(root) or "") / "images_box.txt", "'<7 digits> <box>'")
    for image_id, line in table.items():
        left, top, right, bottom = numbers(line, 4)
        boxes[image_id] = (left - 1, top - 1, right, bottom)
    return boxes


def _lists_of(root: Path) -> str | None:
    """Where the lists stand below `root`, as a prefix."""
    return next((prefix for prefix in ("data/", "") if (root / prefix / "variants.txt").is_file()), None)
