"""Whether a dataset's images are there, told from its lists and one scan per folder; no image is opened."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from embeddings_assets.catalog import get_dataset
from embeddings_assets.datasets.presence import find_images
from embeddings_assets.datasets.sources import AbsentDataError, find_source
from embeddings_assets.datasets.stamps import stamp_of
from embeddings_assets.datasets.synthetic.writer import is_synthetic
from embeddings_assets.errors import RawDataError
from embeddings_assets.settings import DataPaths


@dataclass(frozen=True)
class RawStatus:
    """Whether a dataset's images are there; no image is opened.

    `state`: `present` (every listed image), `processed-tree` (class folders instead of a raw folder),
    `partial` (lists, but not every image), `wrong` (a folder whose lists cannot be read), `missing`.
    `problem` says in one sentence what is wrong, or which counts differ from the official ones, or that it is
    drawn data; `remedy` is the next step where images are not there.
    `version` changes with what `prepare` would read: the lists and the listed images, by name, size and time
    of last change, and with the state.
    """

    state: Literal["present", "partial", "missing", "wrong", "processed-tree"]
    found: int
    listed: int
    folder: Path | None
    problem: str | None
    remedy: str | None
    version: str


def raw_status(
    dataset: str,
    paths: DataPaths,
    raw_dir: Path | None = None,
    *,
    official: Mapping[str, int] | None = None,
) -> RawStatus:
    """Whether a dataset's images are there, from its lists and one look per file; never a RawDataError.

    Args:
        official: images per official split; by default those of the catalog.
    """
    spec = get_dataset(dataset)
    try:
        source = find_source(dataset, paths, raw_dir)
    except AbsentDataError as error:
        return RawStatus("missing", 0, 0, None, error.problem, error.remedy, _version("missing", {}))
    except RawDataError as error:
        return _wrong(raw_dir or paths.raw_folder(dataset), error)
    try:
        listing = source.read()
        images = [path for path in find_images(listing) if path is not None]
    except RawDataError as error:
        return _wrong(source.folder, error)
    found, listed = len(images), len(listing.records)
    lists = [str(path) for path in listing.lists if path.is_file()]
    stamps = {path: stamp_of(listing.folder / path) for path in (*lists, *images)}
    if found < listed:
        missing = f"{listed - found:,} of {listed:,} listed images are missing"
        remedy = f"complete {listing.folder}"
        if found:
            remedy += (
                f', or take what is there: embeddings-assets prepare --dataset "{dataset}" --allow-missing'
            )
        version = _version("partial", stamps)
        return RawStatus("partial", found, listed, listing.folder, missing, remedy, version)
    state: Literal["processed-tree", "present"] = "processed-tree" if source.is_processed_tree else "present"
    counts = Counter(record.official_split for record in listing.records)
    expected = spec.counts if official is None else official
    differing = [
        f"{split} {counts[split]:,} instead of {count:,}"
        for split, count in expected.items()
        if counts[split] != count
    ]
    notes = ["drawn data of the demo, not the dataset itself"] if is_synthetic(source.folder) else []
    notes += [f"other counts than the official lists: {', '.join(differing)}"] if differing else []
    problem = "; ".join(notes) or None
    return RawStatus(state, found, listed, listing.folder, problem, None, _version(state, stamps))


def _wrong(folder: Path, error: RawDataError) -> RawStatus:
    remedy = error.remedy or f"see to {folder}, then ask again"
    return RawStatus("wrong", 0, 0, folder, error.problem, remedy, _version("wrong", {"": error.problem}))


def _version(state: str, seen: Mapping[str, object]) -> str:
    running = hashlib.sha256(state.encode())
    for name in sorted(seen):
        running.update(f"\0{name}\0{seen[name]}".encode(errors="surrogateescape"))
    return f"{state}-{running.hexdigest()[:16]}"
