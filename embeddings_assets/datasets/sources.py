"""Where a dataset's images are: the raw folder in its official layout, or a class-folder tree.

Decides which folder is read; the layout modules read it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from embeddings_assets import catalog
from embeddings_assets.catalog import SPLITS, DatasetSpec, get_dataset
from embeddings_assets.datasets.layouts import aircraft, cars, cub, dogs, flowers, image_folder, nabirds
from embeddings_assets.datasets.layouts.listing import Box, Listing
from embeddings_assets.datasets.layouts.parsing import cannot_read, describe_folder, require_utf8
from embeddings_assets.errors import RawDataError, StoreError
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest


class Layout(Protocol):
    """What a layout module offers. `EXPECTED` says which files it looks for, for error texts."""

    EXPECTED: str

    def locate(self, folder: Path) -> Path | None: ...

    def read(self, folder: Path) -> Listing: ...


LAYOUTS: Mapping[str, Layout] = {
    "aircraft": aircraft,
    "cars": cars,
    "cub": cub,
    "dogs": dogs,
    "flowers": flowers,
    "image_folder": image_folder,
    "nabirds": nabirds,
}


class AbsentDataError(RawDataError):
    """There is no folder of the dataset at all, as opposed to one that is not in order."""


@dataclass(frozen=True)
class Source:
    """The folder a dataset is read from.

    `image_prefix` begins every `image_path`, whatever the folder is called on this machine. `raw_folder` is
    the folder that stands in for `raw/<official folder>` beside `processed`, or None if it is that folder or
    is not used.
    """

    dataset: str
    folder: Path
    layout: Layout
    image_prefix: str
    raw_folder: Path | None

    @property
    def is_processed_tree(self) -> bool:
        return self.image_prefix.startswith("processed/")

    def read(self) -> Listing:
        """The listing of the folder.

        Raises:
            RawDataError: the lists are absent, damaged or contradict each other.
        """
        with self._mendable(
            f"move {self.folder} away and get the dataset again: "
            f"{how_to_get(get_dataset(self.dataset), self.folder)}; or give another copy with --raw-dir DIR"
        ):
            return self.layout.read(self.folder)

    def read_boxes(self, root: Path) -> Mapping[str, Box] | None:
        """The boxes of the images by image id; None where the dataset has none.

        Args:
            root: the folder of the listing.

        Raises:
            RawDataError: the lists of boxes are absent or damaged.
        """
        read: Callable[[Path], Mapping[str, Box]] | None = getattr(self.layout, "read_boxes", None)
        if read is None:
            return None
        with self._mendable(
            "put the published list there, or use the whole images: "
            f'embeddings-assets prepare --dataset "{self.dataset}" --crop none'
        ):
            return read(root)

    @contextlib.contextmanager
    def _mendable(self, remedy: str) -> Iterator[None]:
        """Make every error name a remedy, and an OSError one of ours."""
        try:
            yield
        except OSError as error:
            raise cannot_read(error.filename or self.folder, error) from error
        except RawDataError as error:
            raise RawDataError(error.problem, remedy=error.remedy or remedy) from error


def find_source(dataset: str, paths: DataPaths, raw_dir: Path | None = None) -> Source:
    """The folder to read a dataset from.

    With `raw_dir`: `<raw_dir>/<official folder>`, or `raw_dir` itself. Without: the raw folder elsewhere that
    a standing manifest records, else `raw/<official folder>`, else the class tree in `processed/<dataset>`.

    Raises:
        AbsentDataError: none of them exists.
        RawDataError: the folder cannot be read.
    """
    spec = get_dataset(dataset)
    layout = LAYOUTS[spec.layout]
    try:
        if raw_dir is not None:
            return _given(spec, layout, paths, raw_dir)
        return _standing(spec, layout, paths)
    except OSError as error:
        raise cannot_read(error.filename, error) from error


def how_to_get(spec: DatasetSpec, place: Path) -> str:
    """The next step to a dataset at `place`."""
    if not spec.archives:
        return f"place your copy at {place}"
    archives = "" if spec.can_be_fetched else " --archives DIR"
    return f'embeddings-assets datasets fetch "{spec.name}"{archives} (or place a copy at {place})'


def _given(spec: DatasetSpec, layout: Layout, paths: DataPaths, raw_dir: Path) -> Source:
    official = raw_dir / spec.raw_folder
    if _holds_something(official):
        return _raw_source(spec, layout, paths, official)
    root = layout.locate(raw_dir)
    if root is not None and _owner_of(root, raw_dir, spec) is None:
        return _raw_source(spec, layout, paths, raw_dir)
    raise AbsentDataError(
        f"{spec.name}: no raw data. Looked for {layout.EXPECTED} in {official} "
        f"({describe_folder(official)}) and in {raw_dir} ({describe_folder(raw_dir)}).",
        remedy=f"give the folder that holds {spec.raw_folder}: "
        f'embeddings-assets prepare --dataset "{spec.name}" --raw-dir DIR',
    )


def _standing(spec: DatasetSpec, layout: Layout, paths: DataPaths) -> Source:
    official = paths.raw_folder(spec.name)
    recorded = _recorded_folders(spec, paths)
    for folder in (*recorded, official):
        if _holds_something(folder):
            return _raw_source(spec, layout, paths, folder)
    tree = paths.processed / spec.name
    if image_folder.locate(tree) == tree:
        return Source(spec.name, tree, image_folder, f"processed/{spec.name}/", None)
    looked = "".join(f", in {folder}, where a manifest found it (now absent)" for folder in recorded)
    raise AbsentDataError(
        f"{spec.name}: no raw data. Looked for {layout.EXPECTED} in {official} "
        f"({describe_folder(official)}){looked}, and for class folders in {tree}/<split>/ "
        f"({describe_folder(tree)}).",
        remedy=f"{how_to_get(spec, official)}; or name its folder with --raw-dir DIR",
    )


def _raw_source(spec: DatasetSpec, layout: Layout, paths: DataPaths, folder: Path) -> Source:
    root = layout.locate(folder) or folder
    owner = _owner_of(root, folder, spec)
    if owner is not None:
        raise RawDataError(
            f"{folder}: expected {spec.name}, found {owner.raw_folder}, the folder of {owner.name}.",
            remedy=f"move it to {paths.raw / owner.raw_folder}",
        )
    require_utf8(root.resolve())
    official = paths.processed.parent / "raw" / spec.raw_folder  # where the paths in manifests begin
    is_official = official.exists() and root.samefile(official)
    return Source(spec.name, root, layout, f"raw/{spec.raw_folder}/", None if is_official else root.resolve())


def _owner_of(root: Path, folder: Path, spec: DatasetSpec) -> DatasetSpec | None:
    """Another dataset whose official folder was entered on the way from `folder` down to `root`, if any.

    Several datasets have lists of the same names. A layout whose lists lie in a folder of their own may
    have its root above `folder`; nothing was entered then.
    """
    if not root.is_relative_to(folder):
        return None
    entered = set(root.relative_to(folder).parts) - {spec.raw_folder}
    return next((other for other in catalog.DATASETS if other.raw_folder in entered), None)


def _recorded_folders(spec: DatasetSpec, paths: DataPaths) -> list[Path]:
    """Raw folders that the dataset's standing manifests record, without repeats."""
    folders: dict[Path, None] = {}
    for split in SPLITS:
        try:
            recorded = open_manifest(paths, spec.name, split, alone=True).raw_folder
        except StoreError:
            continue
        if recorded is not None:
            folders[recorded] = None
    return list(folders)


def _holds_something(folder: Path) -> bool:
    """Whether the folder exists and holds anything visible; an empty one is as good as none."""
    return folder.is_dir() and any(not child.name.startswith(".") for child in folder.iterdir())
