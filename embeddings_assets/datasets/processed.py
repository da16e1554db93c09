"""Raw datasets to manifests: find the folder, read its lists, look at every image, write each split.

Nothing is written before every image of every wanted split has been looked at and the policies hold.
"""

import contextlib
import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from embeddings_assets.catalog import SPLITS, DatasetSpec, get_dataset, get_split
from embeddings_assets.datasets.crops import cropper
from embeddings_assets.datasets.inspection import Inspector
from embeddings_assets.datasets.options import (
    changes,
    check_use,
    chosen_options,
    manifest_options,
    refuse_mixture,
    standing_options,
)
from embeddings_assets.datasets.presence import find_images
from embeddings_assets.datasets.receipt import receipt_of, reports_that_stand
from embeddings_assets.datasets.report import PrepareReport
from embeddings_assets.datasets.seen import SEEN_NAME, SeenFiles
from embeddings_assets.datasets.sources import Source, find_source
from embeddings_assets.datasets.split_rows import ListedImage, Lookout, SplitRows
from embeddings_assets.datasets.splits import HoldOut, assign_splits
from embeddings_assets.errors import BadImagesError, RawDataError, SettingsError, StoreError
from embeddings_assets.io.files import disk_errors, remove_leftovers
from embeddings_assets.io.locks import exclusive
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest, write_manifest
from embeddings_assets.store.schema import (
    BOUNDING_BOX,
    LEDGER_NAME,
    MANIFEST_NAME,
    manifest_schema,
)

log = logging.getLogger(__name__)

_NAMED_IN_ERRORS = 5


@disk_errors()
def prepare_dataset(
    dataset: str,
    paths: DataPaths,
    *,
    raw_dir: Path | None = None,
    splits: Sequence[str] = SPLITS,
    allow_missing: bool = False,
    max_bad_share: float = 0.01,
    strict: bool = False,
    hold_out: HoldOut | None = None,
    crop: str | None = None,
    decode: bool = False,
    reread: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_wait: Callable[[], None] | None = None,
    on_unused_hold_out: Callable[[str], None] | None = None,
) -> list[PrepareReport]:
    """Write the manifest and the ledger of each of `splits`, in the order of the catalog.

    Files that have the size and time of last change that an earlier run saw are not opened again.

    Args:
        raw_dir: the folder that holds the dataset's official folder, or that folder itself; found by
            `find_source` otherwise.
        allow_missing: make listed images that are absent ledger rows, instead of refusing the dataset.
        max_bad_share: largest share of a split's present images that may be bad.
        strict: allow no bad image at all.
        hold_out: the rule for a dataset without a published validation split; by default that of the
            manifests that stand, else a tenth.
        crop: the part of each image that is used: `none` (all of it), `banner` or `bounding_box` (crops.py);
            by default that of the manifests that stand, else `none`.
        decode: decode every image, which also finds damage in the middle of a file.
        reread: open every file, changed or not.
        workers: images looked at at once; by default one for each core.
        progress: called with (images looked at, images in all) after each image.
        on_wait: called before waiting for another process that prepares the dataset.
        on_unused_hold_out: called with what to say where a `hold_out` is given and validation is published;
            without it, that is refused.

    Raises:
        RawDataError: no raw folder, unreadable lists, missing images, or a split without a usable image.
        BadImagesError: more bad images than the policy allows.
        SettingsError: an argument out of range or without use, or options that other splits were not prepared
            with.
        StoreError: the manifests cannot be written.

    Whatever is raised, the manifests that stood before still stand.
    """
    started, now_ns = time.monotonic(), time.time_ns()
    spec = get_dataset(dataset)
    wanted = [split for split in SPLITS if split in {get_split(split) for split in splits}]
    if not 0 <= max_bad_share <= 1:
        raise SettingsError(f"max_bad_share is {max_bad_share}; expected 0 to 1.")
    place = paths.processed / spec.name
    most_bad = 0.0 if strict else max_bad_share
    if not place.exists():
        find_source(spec.name, paths, raw_dir)  # where there is none, no folder is made
    with _alone_in(place, on_wait), _without_collection(), contextlib.ExitStack() as leaving:
        _remove_leftovers(place)
        # Only now: whoever held the folder until here may have recorded other options, or another source.
        recorded_hold_out, crop = chosen_options(paths, spec.name, crop=crop)
        given, hold_out = hold_out, hold_out or recorded_hold_out
        source = find_source(spec.name, paths, raw_dir)
        folder = source.folder.resolve()
        asked = {
            "source": [str(folder), source.image_prefix, str(source.raw_folder)],
            "official": dict(spec.counts),
            "hold_out": asdict(hold_out),
            "crop": crop,
            "allow_missing": allow_missing,
            "most_bad": most_bad,
            "decode": decode,
        }
        # A hold-out that no manifest records may be of no use: only the lists can tell.
        look_again = reread or (given is not None and standing_options(paths, spec.name)[0] is None)
        standing = {} if look_again else reports_that_stand(SeenFiles(place, folder), asked, spec, paths)
        if all(split in standing for split in wanted):
            seconds = (time.monotonic() - started) / len(wanted)
            return [replace(standing[split], seconds=seconds) for split in wanted]
        seen = SeenFiles(place, folder) if reread else SeenFiles.load(place, folder)
        listing = source.read()
        if given is not None:
            check_use(spec.name, listing.records, on_unused_hold_out)
        expected = len(listing.records) - seen.count(decoded=decode)
        inspector = leaving.enter_context(contextlib.closing(Inspector(expected, workers, decode=decode)))
        options = manifest_options(listing.records, hold_out, crop)
        crop_of = cropper(crop, source, listing)
        refuse_mixture(paths, spec.name, wanted, options)
        by_split: dict[str, list[ListedImage]] = {split: [] for split in SPLITS}
        split_of = assign_splits(listing.records, hold_out)
        for split, record, path in zip(split_of, listing.records, find_images(listing), strict=True):
            by_split[split].append(ListedImage(record, path))
        if not allow_missing:
            _refuse_missing(spec.name, listing.folder, raw_dir, by_split)

        lookout = Lookout(
            [by_split[split] for split in wanted],
            listing.folder,
            source.image_prefix,
            seen,
            crop_of=crop_of,
            inspector=inspector,
            decode=decode,
            progress=progress or (lambda done, total: None),
            now_ns=now_ns,
        )
        looked_at: dict[str, SplitRows] = {}
        with lookout:
            for split in wanted:
                looked_at[split] = lookout.look_at(by_split[split])
                _hold_policy(spec.name, split, looked_at[split], most_bad, source.folder)
        inspector.dismiss()
        reports = {
            split: _write(
                spec, split, rows, listed=len(by_split[split]), source=source, paths=paths, options=options
            )
            for split, rows in looked_at.items()
        }
        present = (path for images in by_split.values() for _, path in images if path is not None)
        seen.forget_all_but(set(present))
        receipt = None
        # Boxes are lists of their own, some in a file for each image: they are read in every run.
        if lookout.all_kept and crop != BOUNDING_BOX:
            receipt = receipt_of(asked, listing, place, (standing | reports).values(), now_ns)
        seen.save(receipt)
        return list(reports.values())


@contextlib.contextmanager
def _alone_in(place: Path, on_wait: Callable[[], None] | None) -> Iterator[None]:
    """Hold `processed/<dataset>`, and remove it again if nothing came into it."""

    def tell() -> None:
        log.info("%s: waiting for another process that prepares it", place)
        if on_wait is not None:
            on_wait()

    place.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive(place, tell):
            yield
    finally:
        with contextlib.suppress(OSError):
            place.rmdir()
            place.parent.rmdir()


def _remove_leftovers(place: Path) -> None:
    """Delete what runs of this dataset that were killed have left, also where nothing is to be written."""
    remove_leftovers(place / SEEN_NAME)
    for split in SPLITS:
        for name in (LEDGER_NAME, MANIFEST_NAME):
            remove_leftovers(place / split / name)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Without searches for garbage in cycles: a tenth of the time, over many small objects and no cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _write(
    spec: DatasetSpec,
    split: str,
    gathered: SplitRows,
    *,
    listed: int,
    source: Source,
    paths: DataPaths,
    options: Mapping[str, Any],
) -> PrepareReport:
    started = time.monotonic()
    before = _standing_footer(paths, spec.name, split)
    rows, ledger = gathered.tables(manifest_schema(options["crop"]))
    manifest = write_manifest(
        paths, spec.name, split, rows, ledger, options=options, raw_folder=source.raw_folder
    )
    return PrepareReport(
        dataset=spec.name,
        split=split,
        rows=manifest.rows,
        ledger=gathered.reasons,
        fingerprint=manifest.fingerprint,
        classes=gathered.classes,
        listed=listed,
        official=spec.counts.get(split),
        changed=manifest.fingerprint != before.get("fingerprint"),
        read=gathered.read,
        seconds=gathered.seconds + time.monotonic() - started,
        options_changed=changes(before.get("options", {}), options),
    )


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


def _hold_policy(dataset: str, split: str, rows: SplitRows, max_bad_share: float, folder: Path) -> None:
    if len(rows.bad) > max_bad_share * rows.present:
        raise BadImagesError(
            f"{dataset}/{split}: {len(rows.bad):,} of {rows.present:,} images cannot be used; "
            f"at most {max_bad_share:.3g} of them may. First: {'; '.join(rows.bad[:_NAMED_IN_ERRORS])}.",
            remedy="replace the files named, then prepare again",
        )
    if not rows.rows:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rows.reasons.items())
        raise RawDataError(
            f"{dataset}/{split}: no usable image ({reasons or 'none listed'}).",
            remedy=f"put images of {split} into {folder}, then: "
            f'embeddings-assets prepare --dataset "{dataset}"{" --allow-missing" if rows.reasons else ""}',
        )


def _standing_footer(paths: DataPaths, dataset: str, split: str) -> Mapping[str, Any]:
    try:
        return open_manifest(paths, dataset, split).footer
    except StoreError:
        return {}
