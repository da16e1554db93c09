"""NABirds: text lists by UUID; classes are the leaves of a tree of 1,011 nodes.

Labels follow the sorted numeric ids of the leaves: the 555 ids that occur in the complete lists. The tree
keeps them the same for a folder whose lists were cut to some of the classes. Node names repeat, ids do not.
"""

from collections.abc import Mapping
from pathlib import Path

from embeddings_assets.datasets.layouts import id_lists
from embeddings_assets.datasets.layouts.listing import ImageRecord, Listing
from embeddings_assets.datasets.layouts.parsing import Line, find_root, read_table, require_root

EXPECTED = "images.txt, image_class_labels.txt, train_test_split.txt, classes.txt and hierarchy.txt"

read_boxes = id_lists.read_boxes


def locate(folder: Path) -> Path | None:
    """The folder with the lists, in `folder` or up to two levels deeper."""
    return find_root(folder, id_lists.has_lists)


def read(folder: Path) -> Listing:
    """All listed images in the order of images.txt; image id = the UUID.

    Raises:
        RawDataError: the lists are absent, damaged or contradict each other.
    """
    root = require_root(folder, locate(folder), EXPECTED)
    classes = read_table(root / "classes.txt", "'<class id> <class name>'")
    for class_id, line in classes.items():
        if not class_id.isdecimal():
            raise Line(line.path, line.number, class_id).error("a class id, which is a number")
    leaves = _leaves(root / "hierarchy.txt", classes)
    labels = {class_id: label for label, class_id in enumerate(leaves)}
    records = []
    for entry in id_lists.read_entries(root):
        class_id = entry.class_line.text.strip()
        if class_id not in labels:
            raise entry.class_line.error("the id of a class without subclasses")
        records.append(
            ImageRecord(
                image_id=entry.image_id,
                path=entry.path,
                label=labels[class_id],
                class_name=classes[class_id].text,
                class_id=class_id,
                official_split=entry.official_split,
            )
        )
    lists = tuple(root / name for name in (*id_lists.LISTS, "hierarchy.txt"))
    return Listing(root, tuple(records), tuple(classes[class_id].text for class_id in leaves), lists)


def _leaves(path: Path, classes: Mapping[str, Line]) -> list[str]:
    parents = set()
    for child, line in read_table(path, "'<class id> <parent class id>'").items():
        parent = line.text.strip()
        if child not in classes or parent not in classes:
            raise line.error(f"the id of a parent of class {child[:80]!r}, both listed in classes.txt")
        parents.add(parent)
    return sorted((class_id for class_id in classes if class_id not in parents), key=int)
