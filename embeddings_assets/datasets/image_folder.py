"""Class-folder trees: `<split>/<class>/<image>`, for datasets without lists.

Used for a tree below `data/processed/<dataset>` and for a custom dataset whose layout is `image_folder`.
Labels follow the sorted class names over all splits. There is no list to hold the folder against, so what is
there is the dataset; names that begin with `.` or `_` and files without an image suffix are not part of it.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from embeddings_assets.datasets.listing import ImageRecord, Listing
from embeddings_assets.datasets.parsing import find_root, require_root
from embeddings_assets.errors import RawDataError

EXPECTED = "image files in <split>/<class>/, with the splits train, validation and test"

_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}

# The suffixes of torchvision.datasets.ImageFolder, and two newer formats that Pillow decodes.
_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif", ".avif"}
)


def locate(folder: Path) -> Path | None:
    """The folder with the split folders, in `folder` or one level deeper."""
    return find_root(folder, lambda root: next(_images(root), None) is not None)


def read(folder: Path) -> Listing:
    """Train, validation and test, each sorted by class and file name; image id = `<split>/<class>/<file>`.

    Raises:
        RawDataError: no image, two folders for one split, or a name that is not UTF-8.
    """
    root = require_root(folder, locate(folder), EXPECTED)
    images = list(_images(root))
    class_names = tuple(sorted({image.parent.name for _, image in images}))
    labels = {name: label for label, name in enumerate(class_names)}
    records = []
    for split, image in images:
        class_name = image.parent.name
        try:
            str(image).encode()
        except UnicodeEncodeError as error:
            raise RawDataError(f"{image!r}: the name is not UTF-8; rename it.") from error
        records.append(
            ImageRecord(
                image_id=f"{split}/{class_name}/{image.name}",
                path=image.relative_to(root).as_posix(),
                label=labels[class_name],
                class_name=class_name,
                class_id=class_name,
                official_split=split,
            )
        )
    return Listing(root, tuple(records), class_names)


def _images(root: Path) -> Iterator[tuple[str, Path]]:
    for split, names in _SPLIT_FOLDERS.items():
        with_images = [root / name for name in names if next(_class_images(root / name), None) is not None]
        if len(with_images) > 1:
            both = " and ".join(str(folder) for folder in with_images)
            raise RawDataError(f"{both}: both hold {split} images; expected one folder.")
        for folder in with_images:
            yield from ((split, image) for image in _class_images(folder))


def _class_images(split_folder: Path) -> Iterator[Path]:
    for class_name, is_folder in _visible(split_folder):
        if is_folder:
            class_folder = split_folder / class_name
            for name, inner_is_folder in _visible(class_folder):
                if not inner_is_folder and PurePosixPath(name).suffix.lower() in _SUFFIXES:
                    yield class_folder / name


def _visible(folder: Path) -> list[tuple[str, bool]]:
    """Sorted names in a folder, and whether each is a folder; none where there is no such folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted((entry.name, entry.is_dir()) for entry in entries if entry.name[0] not in "._")
