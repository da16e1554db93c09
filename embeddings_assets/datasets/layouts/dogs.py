"""Stanford Dogs: file_list.mat, train_list.mat and test_list.mat; classes 1..120 by sorted folder name."""

import re
from pathlib import Path, PurePosixPath

from embeddings_assets.catalog import get_dataset
from embeddings_assets.datasets.layouts.listing import Box, ImageRecord, Listing
from embeddings_assets.datasets.layouts.parsing import (
    describe_folder,
    find_root,
    mat_integers,
    mat_texts,
    read_mat,
    require_root,
    safe_path,
)
from embeddings_assets.errors import RawDataError

EXPECTED = (
    "file_list.mat, train_list.mat and test_list.mat (lists.tar of the dataset's page; some copies lack it) "
    "with the images in Images/"
)

_NAME = "Stanford Dogs"
# As unpacked from images.tar, and as the Kaggle copy nests them.
_IMAGE_FOLDERS = ("Images", "images/Images", "images")
_BOX_FOLDERS = ("Annotation", "annotations/Annotation", "annotation/Annotation")
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def locate(folder: Path) -> Path | None:
    """The folder with the .mat lists, in `folder` or up to two levels deeper."""
    return find_root(
        folder, lambda root: (root / "train_list.mat").is_file() or (root / "file_list.mat").is_file()
    )


def read(folder: Path) -> Listing:
    """All images in the order of file_list.mat; image id = `n02085620_10074`.

    Raises:
        RawDataError: the lists are absent, damaged or contradict each other.
    """
    root = locate(folder)
    if root is None and folder.is_dir() and any((folder / name).is_dir() for name in _IMAGE_FOLDERS):
        raise RawDataError(
            f"{folder}: expected {EXPECTED}; {describe_folder(folder)}.",
            remedy=f"only the lists are missing: {_unpacked_alone('lists.tar', folder)}",
        )
    root = require_root(folder, root, EXPECTED)
    whole_path = root / "file_list.mat"
    whole = _read_list(whole_path)
    split_of: dict[str, str] = {}
    for split in ("train", "test"):
        path = root / f"{split}_list.mat"
        for file, label in _read_list(path).items():
            if file in split_of:
                raise RawDataError(f"{path}: {file!r} is also in train_list.mat.")
            if whole.get(file) != label:
                raise RawDataError(
                    f"{path}: {file!r} has label {label}; file_list.mat has {whole.get(file)}."
                )
            split_of[file] = split
    names = _class_names(whole, whole_path)
    images = next((name for name in _IMAGE_FOLDERS if (root / name).is_dir()), _IMAGE_FOLDERS[0])
    records = []
    for file, label in whole.items():
        if file not in split_of:
            raise RawDataError(f"{whole_path}: {file!r} is neither in train_list.mat nor in test_list.mat.")
        records.append(
            ImageRecord(
                image_id=PurePosixPath(file).stem,
                path=f"{images}/{file}",
                label=label - 1,
                class_name=names[label - 1],
                class_id=str(label),
                official_split=split_of[file],
            )
        )
    lists = (whole_path, root / "train_list.mat", root / "test_list.mat")
    return Listing(root, tuple(records), names, lists)


def read_boxes(root: Path) -> dict[str, Box]:
    """The boxes of Annotation/<class folder>/<image id> by image id; of several dogs, one around them all.

    Only the numbers of these XML files are read: 624 of them have `%s` in place of their names.

    Raises:
        RawDataError: there are no such files, or one is damaged.
    """
    folder = next((root / name for name in _BOX_FOLDERS if (root / name).is_dir()), None)
    if folder is None:
        raise RawDataError(
            f"{root}: expected the boxes in Annotation/ (annotation.tar); {describe_folder(root)}.",
            remedy=f"only the boxes are missing: {_unpacked_alone('annotation.tar', root)}",
        )
    return {path.name: _box_of(path) for path in sorted(folder.glob("*/*")) if path.name[0] not in "._"}


def _unpacked_alone(filename: str, folder: Path) -> str:
    url = next(archive.url for archive in get_dataset(_NAME).archives if archive.filename == filename)
    return f'download {url}, then: tar -xf {filename} -C "{folder}"'


def _box_of(path: Path) -> Box:
    text = path.read_text(encoding="utf-8", errors="replace")
    edges = {
        side: [int(value) for value in re.findall(rf"<{side}>\s*(\d+)\s*</{side}>", text)] for side in _EDGES
    }
    if not edges["xmin"] or len({len(values) for values in edges.values()}) != 1:
        raise RawDataError(f"{path}: expected boxes of xmin, ymin, xmax and ymax, found {text[:80]!r}.")
    return min(edges["xmin"]), min(edges["ymin"]), max(edges["xmax"]), max(edges["ymax"])


def _read_list(path: Path) -> dict[str, int]:
    """`<class folder>/<file>` -> label from 1."""
    files, labels = read_mat(path, "file_list", "labels")
    if len(files) != len(labels):
        raise RawDataError(f"{path}: {len(files)} files and {len(labels)} labels; expected as many of each.")
    table: dict[str, int] = {}
    pairs = zip(mat_texts(files, path, "file"), mat_integers(labels, path, "label"), strict=True)
    for position, (file, label) in enumerate(pairs, start=1):
        name = safe_path(file, f"{path}: file {position}")
        if len(PurePosixPath(name).parts) != 2 or label < 1:
            raise RawDataError(
                f"{path}: file {position} is ({name!r}, {label}); "
                f"expected '<class folder>/<file>' and a label from 1."
            )
        if name in table:
            raise RawDataError(f"{path}: {name!r} occurs twice.")
        table[name] = label
    return table


def _class_names(whole: dict[str, int], path: Path) -> tuple[str, ...]:
    """Display names by label, from folders `<WordNet id>-<name>`; the name may hold dashes."""
    folder_of: dict[int, str] = {}
    for file, label in whole.items():
        folder = PurePosixPath(file).parts[0]
        if folder_of.setdefault(label, folder) != folder:
            raise RawDataError(f"{path}: label {label} is both {folder_of[label]!r} and {folder!r}.")
    labels = sorted(folder_of)
    if labels != list(range(1, len(labels) + 1)) or len(set(folder_of.values())) != len(labels):
        raise RawDataError(f"{path}: expected labels 1 to {len(labels)}, one for each of the class folders.")
    names = []
    for label in labels:
        _, dash, name = folder_of[label].partition("-")
        if not dash or not name:
            raise RawDataError(
                f"{path}: expected a folder '<WordNet id>-<name>', found {folder_of[label]!r}."
            )
        names.append(name.replace("_", " "))
    return tuple(names)
