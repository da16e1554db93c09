"""The receipt of a finished run: with it, a run that has nothing to do returns at once.

It names what was asked, the stamp of every list and folder that was read, and what was reported.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from embeddings_assets.catalog import DatasetSpec
from embeddings_assets.datasets.layouts.listing import Listing
from embeddings_assets.datasets.report import PrepareReport
from embeddings_assets.datasets.seen import SeenFiles
from embeddings_assets.datasets.stamps import Stamp, stamp_of
from embeddings_assets.errors import StoreError
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest


def receipt_of(
    asked: Mapping[str, Any], listing: Listing, place: Path, reports: Iterable[PrepareReport], now_ns: int
) -> dict[str, Any] | None:
    """The receipt of a run that began at `now_ns`; None if a list is so new that it may change unseen.

    Args:
        asked: every option of the run that decides what it writes, as JSON.
        place: `processed/<dataset>`.
    """
    if not listing.lists:
        return None
    inner = {record.path.rpartition("/")[0] for record in listing.records}
    places = {listing.folder, *(listing.folder / folder for folder in inner)}
    places |= {*listing.lists, *(path.parent for path in listing.lists if path.is_file())}
    paths = sorted(str(path.absolute()) for path in places)  # whatever the data root is called next time
    stamps = {path: _stamp(path, place.absolute()) for path in paths}
    if any(isinstance(stamp, Stamp) and not stamp.settled(now_ns) for stamp in stamps.values()):
        return None
    return {
        "asked": dict(asked),
        "stamps": stamps,
        "reports": {report.split: asdict(report) for report in reports},
    }


def reports_that_stand(
    seen: SeenFiles, asked: Mapping[str, Any], spec: DatasetSpec, paths: DataPaths
) -> dict[str, PrepareReport]:
    """By split, what earlier runs reported and a run now would find and write again, byte for byte."""
    receipt = seen.receipt()
    if receipt is None or receipt["asked"] != dict(asked):
        return {}
    place = (paths.processed / spec.name).absolute()
    for path, stamp in receipt["stamps"].items():
        now = _stamp(path, place)
        if now is None or stamp != (list(now) if isinstance(now, Stamp) else now):
            return {}
    standing = {}
    for split, values in receipt["reports"].items():
        report = PrepareReport(**values | {"changed": False, "read": 0, "options_changed": ()})
        with contextlib.suppress(StoreError):
            if open_manifest(paths, spec.name, split).fingerprint == report.fingerprint:
                standing[split] = report
    return standing


def _stamp(path: str, place: Path) -> Stamp | str | None:
    """A stamp; of a folder that we write into, the names in it that are not ours."""
    if Path(path) != place and Path(path).parent != place:
        return stamp_of(path)
    try:
        names = sorted(name for name in os.listdir(path) if name[0] not in "._")  # noqa: PTH208
    except OSError:
        return None
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()
