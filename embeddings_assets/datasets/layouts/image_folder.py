"""Class-folder trees: `<split>/<class>/<image>`, for datasets without lists.

Used for a tree below `data/processed/<dataset>` and for a custom dataset whose layout is `image_folder`.
Labels follow the class names over all splits, sorted by number where all of them are whole numbers, else as
text. There is no list to hold the folder against, so what is
there is the dataset; names that begin with `.` or `_` and files without an image suffix are not part of it.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from embeddings_assets.datasets.layouts.listing import ImageRecord, Listing
from embeddings_assets.datasets.layouts.parsing import find_root, require_root, require_utf8
from embeddings_assets.errors import RawDataError

EXPECTED = "image files in <split>/<class>/, with the splits train, validation and test"

_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}

# The suffixes of torchvision.datasets.ImageFolder, and two newer formats that Pillow decodes.
_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".avif"}
)


def locate(folder: Path) -> Path | None:
    """The folder with the split folders, in `folder` or up to two levels deeper."""
    return find_root(folder, lambda root: next(_images(root), None) is not None)


def read(folder: Path) -> Listing:
    """Train, validation and test, each sorted by class and file name; image id = `<split>/<class>/<file>`.

    Raises:
        RawDataError: no image, two folders for one split, or a name that is not UTF-8.
    """
    root = require_root(folder, locate(folder), EXPECTED)
    found = list(_images(root))
    class_names = _in_order({image.class_name for image in found})
    labels = {name: label for label, name in enumerate(class_names)}
    splits = list(_SPLIT_FOLDERS)
    images = sorted(found, key=lambda image: (splits.index(image.split), labels[image.class_name]))
    records = []
    for split, split_folder, class_name, name in images:
        path = f"{split_folder}/{class_name}/{name}"
        if not path.isascii():
            require_utf8(root / path)
        records.append(
            ImageRecord(
                image_id=f"{split}/{class_name}/{name}",
                path=path,
                label=labels[class_name],
                class_name=class_name,
                class_id=class_name,
                official_split=split,
            )
        )
    split_folders = {image.split_folder for image in images}
    class_folders = {f"{image.split_folder}/{image.class_name}" for image in images}
    folders = (root / name for name in sorted({"", *split_folders, *class_folders}))
    return Listing(root, tuple(records), class_names, tuple(folders))


def _in_order(class_names: set[str]) -> tuple[str, ...]:
    if all(name.isascii() and name.isdecimal() for name in class_names):
        return tuple(sorted(class_names, key=lambda name: (int(name), name)))
    return tuple(sorted(class_names))


class _Image(NamedTuple):
    split: str
    split_folder: str
    class_name: str
    name: str


def _images(root: Path) -> Iterator[_Image]:
    for split, names in _SPLIT_FOLDERS.items():
        with_images = [name for name in names if next(_class_images(root / name), None) is not None]
        if len(with_images) > 1:
            both = " and ".join(str(root / name) for name in with_images)
            raise RawDataError(f"{both}: both hold {split} images; expected one folder.")
        for split_folder in with_images:
            for class_name, name in _class_images(root / split_folder):
                yield _Image(split, split_folder, class_name, name)


def _class_images(split_folder: Path) -> Iterator[tuple[str, str]]:
    """Class and file name of every image of a split."""
    for class_name, is_folder in _visible(split_folder):
        if is_folder:
            for name, inner_is_folder in _visible(split_folder / class_name):
                if not inner_is_folder and _is_image(name):
                    yield class_name, name


def _visible(folder: Path) -> list[tuple[str, bool]]:
    """Sorted names in a folder, and whether each is a folder; none where there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted((entry.name, _is_folder(entry)) for entry in entries if entry.name[0] not in "._")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """False for a link that leads in circles, and for an image that cannot be reached.

    Anything else that cannot be looked at may be a class, without which other classes would get its label.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP or _is_image(entry.name):
            return False
        raise


def _is_image(name: str) -> bool:
    return name[name.rfind(".") :].lower() in _SUFFIXES
