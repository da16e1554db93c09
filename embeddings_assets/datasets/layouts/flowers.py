"""Oxford 102 Flowers: imagelabels.mat and setid.mat; classes 1..102, named in flower_names.py.

The official split has 6,149 test images; some papers swap train and test. setid.mat decides.
"""

from pathlib import Path

from embeddings_assets.datasets.layouts.flower_names import FLOWER_NAMES
from embeddings_assets.datasets.layouts.listing import ImageRecord, Listing
from embeddings_assets.datasets.layouts.parsing import find_root, mat_integers, read_mat, require_root
from embeddings_assets.errors import RawDataError

EXPECTED = "imagelabels.mat and setid.mat, with the images in jpg/"

_SETS = {"train": "trnid", "validation": "valid", "test": "tstid"}


def locate(folder: Path) -> Path | None:
    """The folder with the .mat files, in `folder` or up to two levels deeper."""
    return find_root(
        folder, lambda root: (root / "imagelabels.mat").is_file() or (root / "setid.mat").is_file()
    )


def read(folder: Path) -> Listing:
    """All images by number; image id = `image_00001`.

    Raises:
        RawDataError: the lists are absent, damaged or contradict each other.
    """
    root = require_root(folder, locate(folder), EXPECTED)
    labels_path, sets_path = root / "imagelabels.mat", root / "setid.mat"
    (raw_labels,) = read_mat(labels_path, "labels")
    labels = mat_integers(raw_labels, labels_path, "label")
    split_of: dict[int, str] = {}
    for (split, name), numbers in zip(_SETS.items(), read_mat(sets_path, *_SETS.values()), strict=True):
        if not len(numbers):
            raise RawDataError(f"{sets_path}: {name} is empty; expected the image numbers of {split}.")
        for number in mat_integers(numbers, sets_path, f"{name} entry"):
            if not 1 <= number <= len(labels):
                raise RawDataError(f"{sets_path}: {name} holds {number}; expected 1 to {len(labels)}.")
            if number in split_of:
                raise RawDataError(
                    f"{sets_path}: image {number} is in {name} and in {_SETS[split_of[number]]}."
                )
            split_of[number] = split
    if len(split_of) != len(labels):
        raise RawDataError(
            f"{sets_path}: names {len(split_of)} images; {labels_path.name} has {len(labels)} labels."
        )
    records = []
    for number, class_id in enumerate(labels, start=1):
        if not 1 <= class_id <= len(FLOWER_NAMES):
            raise RawDataError(
                f"{labels_path}: label {number} is {class_id}; expected 1 to {len(FLOWER_NAMES)}."
            )
        image_id = f"image_{number:05d}"
        records.append(
            ImageRecord(
                image_id=image_id,
                path=f"jpg/{image_id}.jpg",
                label=class_id - 1,
                class_name=FLOWER_NAMES[class_id - 1],
                class_id=str(class_id),
                official_split=split_of[number],
            )
        )
    return Listing(root, tuple(records), FLOWER_NAMES, (labels_path, sets_path))
