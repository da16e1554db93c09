"""Byte-identical images: within a split, across splits (leakage), across datasets. Reads manifests only."""

import contextlib
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from embeddings_assets.catalog import SPLITS
from embeddings_assets.errors import StoreError
from embeddings_assets.io.files import disk_errors
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import Manifest, open_manifest
from embeddings_assets.store.schema import MANIFEST_NAME

_COLUMNS = ("image_id", "image_path", "label", "class_name", "sha256")


@dataclass(frozen=True)
class Member:
    """One image of a group."""

    dataset: str
    split: str
    image_id: str
    image_path: str
    label: int
    class_name: str


@dataclass(frozen=True)
class DuplicateGroup:
    """Images whose files have the same content, in the order of the catalog, then of the manifests."""

    sha256: str
    members: tuple[Member, ...]

    @property
    def across_datasets(self) -> bool:
        return len({member.dataset for member in self.members}) > 1

    @property
    def across_splits(self) -> bool:
        """Whether a dataset has the image in more than one of its splits."""
        places = {(member.dataset, member.split) for member in self.members}
        return len(places) > len({member.dataset for member in self.members})

    @property
    def labels_differ(self) -> bool:
        """Whether a dataset gives the image more than one label."""
        labels = {(member.dataset, member.label) for member in self.members}
        return len(labels) > len({member.dataset for member in self.members})


def find_duplicates(
    paths: DataPaths,
    datasets: Sequence[str],
    *,
    among: Sequence[str] | None = None,
    unreadable: dict[Path, StoreError] | None = None,
) -> list[DuplicateGroup]:
    """Every group of identical images with a member in these datasets, in order of first member.

    Holds one digest per image, and details of the repeated ones only. What is not prepared is left out.

    Args:
        among: the datasets whose images are compared; by default `datasets` alone.
        unreadable: is given the manifests that are damaged or cannot be read, which are then left out too.

    Raises:
        StoreError: a manifest is damaged or cannot be read, and no `unreadable` was given.
    """
    manifests = []
    counts: Counter[bytes] = Counter()
    for manifest in _manifests(paths, datasets if among is None else among, unreadable):
        with _noting_damage(manifest.path, manifest.dataset, unreadable):
            counts.update(_digests(manifest))
            manifests.append(manifest)
    repeated = {digest for digest, count in counts.items() if count > 1}
    groups: dict[str, list[Member]] = {}
    for manifest in manifests if repeated else ():
        with _noting_damage(manifest.path, manifest.dataset, unreadable):
            for digest, member in list(_members(manifest, repeated)):
                groups.setdefault(digest, []).append(member)
    return [
        DuplicateGroup(digest, tuple(members))
        for digest, members in groups.items()
        if len(members) > 1 and any(member.dataset in datasets for member in members)
    ]


def are_prepared(paths: DataPaths, datasets: Sequence[str]) -> bool:
    """Whether any split of these datasets has a manifest."""
    return any(
        (paths.processed_split(dataset, split) / MANIFEST_NAME).is_file()
        for dataset in datasets
        for split in SPLITS
    )


def describe(group: DuplicateGroup) -> str:
    """A group in one line: `image_08067 (test) = image_08077 (validation)`, with what differs beside."""
    parts = []
    for member in group.members:
        dataset = f"{member.dataset}/" if group.across_datasets else ""
        label = f", {member.class_name}" if group.labels_differ else ""
        parts.append(f"{member.image_id} ({dataset}{member.split}{label})")
    return " = ".join(parts)


def _digests(manifest: Manifest) -> Counter[bytes]:
    counts: Counter[bytes] = Counter()
    for batch in manifest.batches(["sha256"]):
        counts.update(map(bytes.fromhex, batch.column(0).to_pylist()))
    return counts


def _members(manifest: Manifest, repeated: Container[bytes]) -> Iterator[tuple[str, Member]]:
    for batch in manifest.batches(_COLUMNS):
        for row in batch.to_pylist():
            digest = row.pop("sha256")
            if bytes.fromhex(digest) in repeated:
                yield digest, Member(manifest.dataset, manifest.split, **row)


def _manifests(
    paths: DataPaths, datasets: Sequence[str], unreadable: dict[Path, StoreError] | None
) -> Iterator[Manifest]:
    for dataset in datasets:
        for split in SPLITS:
            path = paths.processed_split(dataset, split) / MANIFEST_NAME
            manifest = None
            with _noting_damage(path, dataset, unreadable):
                manifest = open_manifest(paths, dataset, split) if path.is_file() else None
            if manifest is not None:
                yield manifest


@contextlib.contextmanager
def _noting_damage(path: Path, dataset: str, unreadable: dict[Path, StoreError] | None) -> Iterator[None]:
    try:
        with disk_errors():
            try:
                yield
            except (OSError, pa.ArrowException) as error:
                if isinstance(error, OSError) and error.filename:
                    raise
                raise StoreError(
                    f"{path}: its rows cannot be read ({error}).",
                    remedy=f'embeddings-assets prepare --dataset "{dataset}"',
                ) from error
    except StoreError as error:
        if unreadable is None:
            raise
        unreadable[path] = error
