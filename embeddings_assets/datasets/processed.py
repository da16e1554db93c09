"""Raw datasets to manifests: find the folder, read its lists, look at every image, write each split.

Nothing is written before every image of every wanted split has been looked at and the policies hold.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from embeddings_assets.catalog import SPLITS, get_dataset, get_split
from embeddings_assets.datasets.listing import Listing
from embeddings_assets.datasets.presence import find_images
from embeddings_assets.datasets.sources import AbsentDataError, find_source
from embeddings_assets.datasets.split_rows import ListedImage, SplitRows, look_at
from embeddings_assets.datasets.splits import HoldOut, assign_splits, split_options
from embeddings_assets.errors import BadImagesError, RawDataError, SettingsError, StoreError
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest, write_manifest

_DEFAULT_HOLD_OUT = HoldOut()
_NAMED_IN_ERRORS = 5


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare_dataset` did for one split.

    `listed` = `rows` + the sum of `ledger`, which counts reasons. `official` is what the catalog says of the
    official split of that name; where validation is held out of train, that is train and validation together.
    `changed` says whether the fingerprint differs from the manifest that stood before.
    """

    dataset: str
    split: str
    rows: int
    ledger: Mapping[str, int]
    fingerprint: str
    classes: int
    listed: int
    official: int | None
    changed: bool
    seconds: float


@dataclass(frozen=True)
class RawStatus:
    """Whether a dataset's images are there; no image is opened.

    `state`: `present` (every listed image), `processed-tree` (class folders instead of a raw folder),
    `partial` (lists, but not every image), `wrong` (a folder whose lists cannot be read), `missing`.
    `problem` says in one sentence what is wrong, or which counts differ from the official ones.
    """

    state: Literal["present", "partial", "missing", "wrong", "processed-tree"]
    found: int
    listed: int
    folder: Path | None
    problem: str | None


def prepare_dataset(
    dataset: str,
    paths: DataPaths,
    *,
    raw_dir: Path | None = None,
    splits: Sequence[str] = SPLITS,
    allow_missing: bool = False,
    max_bad_share: float = 0.01,
    strict: bool = False,
    hold_out: HoldOut = _DEFAULT_HOLD_OUT,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[PrepareReport]:
    """Write the manifest and the ledger of each of `splits`, in the order of the catalog.

    Args:
        raw_dir: the folder that holds the dataset's official folder, or that folder itself; found by
            `find_source` otherwise.
        allow_missing: make listed images that are absent ledger rows, instead of refusing the dataset.
        max_bad_share: largest share of a split's present images that may be bad.
        strict: allow no bad image at all.
        hold_out: the rule for datasets without an official validation split.
        workers: threads that read images; by default twice the cores.
        progress: called with (images looked at, images in all) after each image.

    Raises:
        RawDataError: no raw folder, unreadable lists, missing images, or a split without a usable image.
        BadImagesError: more bad images than the policy allows.
        SettingsError: an argument out of range.

    Whatever is raised, the manifests that stood before still stand.
    """
    spec = get_dataset(dataset)
    wanted = {get_split(split) for split in splits}
    if not 0 <= max_bad_share <= 1:
        raise SettingsError(f"max_bad_share is {max_bad_share}; expected 0 to 1.")
    source = find_source(spec.name, paths, raw_dir)
    listing = source.read()
    by_split: dict[str, list[ListedImage]] = {split: [] for split in SPLITS}
    split_of = assign_splits(listing.records, hold_out)
    for split, record, path in zip(split_of, listing.records, find_images(listing), strict=True):
        by_split[split].append(ListedImage(record, path))
    if not allow_missing:
        _refuse_missing(spec.name, listing.folder, raw_dir, by_split)

    total = sum(image.path_on_disk is not None for split in wanted for image in by_split[split])
    done = 0

    def count_image() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    looked_at: dict[str, SplitRows] = {}
    for split in SPLITS:
        if split in wanted:
            looked_at[split] = look_at(
                by_split[split], listing.folder, source.image_prefix, workers=workers, on_image=count_image
            )
            _hold_policy(spec.name, split, looked_at[split], 0.0 if strict else max_bad_share)

    options = split_options(listing.records, hold_out)
    reports = []
    for split, gathered in looked_at.items():
        started = time.monotonic()
        before = _standing_fingerprint(paths, spec.name, split)
        rows, ledger = gathered.tables()
        manifest = write_manifest(
            paths, spec.name, split, rows, ledger, options=options, raw_folder=source.raw_folder
        )
        reports.append(
            PrepareReport(
                dataset=spec.name,
                split=split,
                rows=manifest.rows,
                ledger=gathered.reasons,
                fingerprint=manifest.fingerprint,
                classes=len(set(gathered.rows["label"])),
                listed=len(by_split[split]),
                official=spec.counts.get(split),
                changed=manifest.fingerprint != before,
                seconds=gathered.seconds + time.monotonic() - started,
            )
        )
    return reports


def read_listing(dataset: str, paths: DataPaths, raw_dir: Path | None = None) -> Listing:
    """All listed images of a dataset, without looking at any.

    Raises:
        RawDataError: no raw folder, or lists that cannot be read.
    """
    return find_source(dataset, paths, raw_dir).read()


def raw_status(dataset: str, paths: DataPaths, raw_dir: Path | None = None) -> RawStatus:
    """Whether a dataset's images are there, from its lists and one scan per folder; never a RawDataError."""
    try:
        source = find_source(dataset, paths, raw_dir)
    except AbsentDataError as error:
        return RawStatus("missing", 0, 0, None, error.problem)
    except RawDataError as error:
        return RawStatus("wrong", 0, 0, raw_dir or paths.raw_folder(dataset), error.problem)
    try:
        listing = source.read()
        found = sum(path is not None for path in find_images(listing))
    except RawDataError as error:
        return RawStatus("wrong", 0, 0, source.folder, error.problem)
    listed = len(listing.records)
    if found < listed:
        problem = f"{listed - found:,} of {listed:,} listed images are missing"
        return RawStatus("partial", found, listed, listing.folder, problem)
    state: Literal["processed-tree", "present"] = "processed-tree" if source.is_processed_tree else "present"
    counts = Counter(record.official_split for record in listing.records)
    differing = [
        f"{split} {counts[split]:,} instead of {official:,}"
        for split, official in get_dataset(dataset).counts.items()
        if counts[split] != official
    ]
    note = f"other counts than the official lists: {', '.join(differing)}" if differing else None
    return RawStatus(state, found, listed, listing.folder, note)


def _refuse_missing(
    dataset: str, folder: Path, raw_dir: Path | None, by_split: Mapping[str, Sequence[ListedImage]]
) -> None:
    counts, first = [], []
    missing_in_all = 0
    for split, images in by_split.items():
        missing = [image.record.path for image in images if image.path_on_disk is None]
        missing_in_all += len(missing)
        first += missing[:_NAMED_IN_ERRORS]
        if missing:
            counts.append(f"{split} {len(missing):,} of {len(images):,}")
    if missing_in_all:
        listed = sum(len(images) for images in by_split.values())
        given = "" if raw_dir is None else f'--raw-dir "{raw_dir}" '
        raise RawDataError(
            f"{dataset}: {missing_in_all:,} of {listed:,} listed images are missing from {folder} "
            f"({'; '.join(counts)}). First: {', '.join(first[:_NAMED_IN_ERRORS])}.",
            remedy=f"complete {folder}, or take what is there: "
            f'embeddings-assets prepare --dataset "{dataset}" {given}--allow-missing',
        )


def _hold_policy(dataset: str, split: str, rows: SplitRows, max_bad_share: float) -> None:
    if len(rows.bad) > max_bad_share * rows.present:
        raise BadImagesError(
            f"{dataset}/{split}: {len(rows.bad):,} of {rows.present:,} images cannot be used; "
            f"at most {max_bad_share:.3g} of them may. First: {'; '.join(rows.bad[:_NAMED_IN_ERRORS])}.",
            remedy="replace the files named, then prepare again",
        )
    if not rows.usable:
        raise RawDataError(
            f"{dataset}/{split}: no usable image ({dict(rows.reasons) or 'none listed'}).",
            remedy=f'embeddings-assets prepare --dataset "{dataset}" with images of {split} in place',
        )


def _standing_fingerprint(paths: DataPaths, dataset: str, split: str) -> str | None:
    try:
        return open_manifest(paths, dataset, split).fingerprint
    except StoreError:
        return None
