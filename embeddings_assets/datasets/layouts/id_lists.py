"""`images.txt`, `image_class_labels.txt` and `train_test_split.txt`, which CUB and NABirds share.

The three files are joined by image id, never by line number.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from embeddings_assets.datasets.layouts.listing import Box
from embeddings_assets.datasets.layouts.parsing import Line, numbers, read_table
from embeddings_assets.errors import RawDataError

MARKERS = ("images.txt", "image_class_labels.txt")
LISTS = (*MARKERS, "train_test_split.txt", "classes.txt")
BOXES = "bounding_boxes.txt"
EXPECTED = "images.txt, image_class_labels.txt, train_test_split.txt and classes.txt"

_SPLIT_OF_FLAG = {"1": "train", "0": "test"}


class Entry(NamedTuple):
    """One image: its id, its path from the dataset's folder, its class as written, its official split."""

    image_id: str
    path: str
    class_line: Line
    official_split: str


def has_lists(folder: Path) -> bool:
    return all((folder / name).is_file() for name in MARKERS)


def read_boxes(root: Path) -> dict[str, Box]:
    """The boxes of bounding_boxes.txt by image id; its lines are `<image id> <x> <y> <width> <height>`.

    Raises:
        RawDataError: the list is absent or damaged.
    """
    boxes = {}
    for image_id, line in read_table(root / BOXES, "'<image id> <x> <y> <width> <height>'").items():
        x, y, width, height = numbers(line, 4)
        boxes[image_id] = (x, y, x + width, y + height)
    return boxes


def read_entries(folder: Path) -> Iterator[Entry]:
    """The images in the order of images.txt.

    Raises:
        RawDataError: a list is absent or damaged, or the three do not hold the same ids.
    """
    images = read_table(folder / "images.txt", "'<image id> <path>'")
    classes = read_table(folder / "image_class_labels.txt", "'<image id> <class id>'")
    flags = read_table(folder / "train_test_split.txt", "'<image id> <1 or 0>'")
    for other in (classes, flags):
        _require_same_ids(images, other)
    for image_id, path in images.items():
        flag = flags[image_id]
        if flag.text.strip() not in _SPLIT_OF_FLAG:
            raise flag.error("1 (train) or 0 (test)")
        # The list is relative to images/; checked before joining, so that `..` cannot hide behind it.
        yield Entry(
            image_id, f"images/{path.as_path()}", classes[image_id], _SPLIT_OF_FLAG[flag.text.strip()]
        )


def _require_same_ids(images: Mapping[str, Line], other: Mapping[str, Line]) -> None:
    path = next(iter(other.values())).path
    listed_in = next(iter(images.values())).path
    for image_id, line in images.items():
        if image_id not in other:
            raise RawDataError(f"{path}: no line for image {image_id!r} ({listed_in}, line {line.number}).")
    for image_id, line in other.items():
        if image_id not in images:
            raise RawDataError(f"{path}, line {line.number}: image {image_id!r} is not in {listed_in}.")
