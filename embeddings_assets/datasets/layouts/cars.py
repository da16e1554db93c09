"""Stanford Cars, in the two layouts that are in circulation. Class order is cars_meta's, not alphabetical.

Separate: cars_train/ and cars_test/, labels in devkit/ and cars_test_annos_withlabels.mat. Joined: car_ims/
with cars_annos.mat. The two number the same photographs differently, so lists and images never mix.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from embeddings_assets.datasets.layouts.listing import Box, ImageRecord, Listing
from embeddings_assets.datasets.layouts.parsing import (
    describe_folder,
    find_root,
    mat_field,
    mat_integers,
    mat_texts,
    read_mat,
    require_root,
    safe_path,
)
from embeddings_assets.errors import RawDataError

EXPECTED = (
    "devkit/cars_meta.mat, devkit/cars_train_annos.mat and cars_test_annos_withlabels.mat "
    "with cars_train/ and cars_test/, or cars_annos.mat with car_ims/"
)

_LIST_FOLDERS = ("", "devkit", "car_devkit", "car_devkit/devkit")
_JOINED_IMAGES = "car_ims"
_BOX_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def locate(folder: Path) -> Path | None:
    """The folder with `devkit/` or cars_annos.mat, in `folder` or up to two levels deeper."""
    return find_root(
        folder, lambda root: bool(_find(root, "cars_train_annos.mat") or _find(root, "cars_annos.mat"))
    )


def read(folder: Path) -> Listing:
    """Train, then test, each in the order of its annotations; image id = `cars_train/00001` or
    `car_ims/000001`.

    Raises:
        RawDataError: the lists are absent or damaged, or number other images than those that are there.
    """
    root = require_root(folder, locate(folder), EXPECTED)
    joined = _joined_list(root)
    return _read_separate(root) if joined is None else _read_joined(root, joined)


def read_boxes(root: Path) -> dict[str, Box]:
    """The boxes of the annotations by image id; in the files they count from 1 and hold their last pixel.

    Raises:
        RawDataError: the annotations are absent or damaged.
    """
    joined = _joined_list(root)
    if joined is not None:
        return _boxes_of(joined, "relative_im_path", "")
    train, test = _separate_lists(root)
    return _boxes_of(train, "fname", "cars_train/") | _boxes_of(test, "fname", "cars_test/")


def _boxes_of(path: Path, name_field: str, prefix: str) -> dict[str, Box]:
    (annotations,) = read_mat(path, "annotations")
    files = mat_texts(mat_field(annotations, name_field, path), path, name_field)
    left, top, right, bottom = (
        mat_integers(mat_field(annotations, name, path), path, name) for name in _BOX_FIELDS
    )
    boxes = zip((x - 1 for x in left), (y - 1 for y in top), right, bottom, strict=True)
    ids = (f"{prefix}{PurePosixPath(file).with_suffix('')}" for file in files)
    return dict(zip(ids, boxes, strict=True))


def _joined_list(root: Path) -> Path | None:
    """cars_annos.mat, where the folder is in the joined layout.

    Raises:
        RawDataError: its images are not those that this list numbers.
    """
    separate, joined = _find(root, "cars_train_annos.mat"), _find(root, "cars_annos.mat")
    separate_images = (root / "cars_train").is_dir() or (root / "cars_test").is_dir()
    joined_images = (root / _JOINED_IMAGES).is_dir()
    if joined is None or (separate is not None and (separate_images or not joined_images)):
        return None
    if separate_images and not joined_images:
        raise RawDataError(
            f"{joined}: numbers the images of {_JOINED_IMAGES}/, but {root} holds cars_train/ or cars_test/, "
            f"which are numbered differently; expected devkit/ and cars_test_annos_withlabels.mat.",
            remedy=f"unpack car_devkit.tgz in {root} and put cars_test_annos_withlabels.mat beside it",
        )
    return joined


def _separate_lists(root: Path) -> tuple[Path, Path]:
    # The spelling of the second varies; the devkit's own cars_test_annos.mat has no labels.
    test = _find(root, "cars_test_annos*with*labels*.mat") or _require(root, "cars_test_annos_withlabels.mat")
    return _require(root, "cars_train_annos.mat"), test


def _read_separate(root: Path) -> Listing:
    meta = _require(root, "cars_meta.mat")
    train, test = _separate_lists(root)
    (class_names,) = read_mat(meta, "class_names")
    names = mat_texts(class_names, meta, "class name")
    records: list[ImageRecord] = []
    for path, split in ((train, "train"), (test, "test")):
        (annotations,) = read_mat(path, "annotations")
        files = mat_texts(mat_field(annotations, "fname", path), path, "fname")
        classes = mat_integers(mat_field(annotations, "class", path), path, "class")
        folder = f"cars_{split}"
        nested = f"{folder}/{folder}" if (root / folder / folder).is_dir() else folder
        for position, (file, class_id) in enumerate(zip(files, classes, strict=True), start=1):
            name = safe_path(file, f"{path}: fname {position}")
            image_id = f"{folder}/{PurePosixPath(name).with_suffix('')}"
            _require_class(class_id, names, path, position)
            records.append(_record(image_id, f"{nested}/{name}", class_id, names, split))
    return Listing(root, tuple(records), tuple(names), (train, test, meta))


def _read_joined(root: Path, path: Path) -> Listing:
    annotations, class_names = read_mat(path, "annotations", "class_names")
    names = mat_texts(class_names, path, "class name")
    files = mat_texts(mat_field(annotations, "relative_im_path", path), path, "relative_im_path")
    classes = mat_integers(mat_field(annotations, "class", path), path, "class")
    is_test = mat_integers(mat_field(annotations, "test", path), path, "test")
    of_split: dict[str, list[ImageRecord]] = {"train": [], "test": []}
    for position, (file, class_id, test) in enumerate(zip(files, classes, is_test, strict=True), start=1):
        name = safe_path(file, f"{path}: relative_im_path {position}")
        if PurePosixPath(name).parts[0] != _JOINED_IMAGES or test not in (0, 1):
            raise RawDataError(
                f"{path}: record {position} is ({name!r}, test {test}); "
                f"expected {_JOINED_IMAGES}/..., test 0 or 1."
            )
        _require_class(class_id, names, path, position)
        split = "test" if test else "train"
        of_split[split].append(
            _record(str(PurePosixPath(name).with_suffix("")), name, class_id, names, split)
        )
    return Listing(root, (*of_split["train"], *of_split["test"]), tuple(names), (path,))


def _record(image_id: str, path: str, class_id: int, names: Sequence[str], split: str) -> ImageRecord:
    return ImageRecord(
        image_id=image_id,
        path=path,
        label=class_id - 1,
        class_name=names[class_id - 1],
        class_id=str(class_id),
        official_split=split,
    )


def _require_class(class_id: int, names: Sequence[str], path: Path, position: int) -> None:
    if not 1 <= class_id <= len(names):
        raise RawDataError(f"{path}: record {position} has class {class_id}; expected 1 to {len(names)}.")


def _find(root: Path, pattern: str) -> Path | None:
    """The first match in the folders where lists of this dataset are met."""
    return next((path for place in _LIST_FOLDERS for path in sorted((root / place).glob(pattern))), None)


def _require(root: Path, name: str) -> Path:
    path = _find(root, name)
    if path is None:
        raise RawDataError(
            f"{root}: expected {name} here or in devkit/; {describe_folder(root)}.",
            remedy=f"put {name} into {root / 'devkit'}",
        )
    return path
