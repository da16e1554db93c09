"""CUB-200-2011: text lists by image number; classes 1..200 in classes.txt."""

import re
from pathlib import Path

from embeddings_assets.datasets.layouts import id_lists
from embeddings_assets.datasets.layouts.listing import ImageRecord, Listing
from embeddings_assets.datasets.layouts.parsing import find_root, read_table, require_root

EXPECTED = id_lists.EXPECTED

read_boxes = id_lists.read_boxes


def locate(folder: Path) -> Path | None:
    """The folder with the lists, in `folder` or up to two levels deeper."""
    return find_root(folder, id_lists.has_lists)


def read(folder: Path) -> Listing:
    """All listed images in the order of images.txt; image id = the image number.

    Raises:
        RawDataError: the lists are absent, damaged or contradict each other.
    """
    root = require_root(folder, locate(folder), EXPECTED)
    classes = read_table(root / "classes.txt", "'<class id> <NNN.Class_name>'")
    names: dict[str, str] = {}
    for class_id, line in classes.items():
        name = re.fullmatch(r"\d+\.(\S+)\s*", line.text)
        if not class_id.isdecimal() or name is None:
            raise line.error("'<class id> <NNN.Class_name>'")
        names[class_id] = name[1].replace("_", " ")
    ordered = sorted(names, key=int)
    labels = {class_id: label for label, class_id in enumerate(ordered)}
    records = []
    for entry in id_lists.read_entries(root):
        class_id = entry.class_line.text.strip()
        if class_id not in labels:
            raise entry.class_line.error("a class id of classes.txt")
        records.append(
            ImageRecord(
                image_id=entry.image_id,
                path=entry.path,
                label=labels[class_id],
                class_name=names[class_id],
                class_id=class_id,
                official_split=entry.official_split,
            )
        )
    lists = tuple(root / name for name in id_lists.LISTS)
    return Listing(root, tuple(records), tuple(names[class_id] for class_id in ordered), lists)
