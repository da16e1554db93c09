"""What earlier runs found in a dataset's files, so that a file that has not changed is not read again.

Kept in `processed/<dataset>/.seen.parquet`, one row per image file, with the receipt of the last run that
finished (receipt.py). A file counts as unchanged if its size and its time of last change are. Without what is
kept here everything is read again, and the result is the same.
"""

import importlib.metadata
import os
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from embeddings_assets.datasets.stamps import Stamp, stamp_of
from embeddings_assets.errors import ImageError, Reason, StoreError
from embeddings_assets.io.images import ImageFacts
from embeddings_assets.store.parquet import read_footer, replace_table
from embeddings_assets.store.schema import MANIFEST_RULES

SEEN_NAME = ".seen.parquet"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # but found on the path, as on a machine that only has a checkout


# Another release of either may read lists or files differently, and so may other rules of the same release.
_VERSIONS = {
    "embeddings-assets": _version("embeddings-assets"),
    "Pillow": _version("Pillow"),
    "rules": str(MANIFEST_RULES),
}
_FACTS = ("sha256", "bytes", "width", "height", "format", "mode")
_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("decoded", pa.bool_()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
# What can change without the file's size or time changing.
_NOT_KEPT = (Reason.MISSING, Reason.UNREADABLE)


class Sight(NamedTuple):
    """What was found in a file when it had this stamp, and whether its pixels were decoded."""

    stamp: Stamp
    found: ImageFacts | ImageError
    decoded: bool


class SeenFiles:
    """The sights of one dataset in one raw folder, by path relative to that folder."""

    def __init__(self, place: Path, folder: Path) -> None:
        """
        Args:
            place: `processed/<dataset>`; folder: what the paths are relative to.
        """
        self._file = place / SEEN_NAME
        self._folder = folder
        self._sights: dict[str, Sight] = {}

    @classmethod
    def load(cls, place: Path, folder: Path) -> "SeenFiles":
        """What is kept of this folder; nothing if it is of another folder, of another version or damaged."""
        seen = cls(place, folder)
        seen._sights = {path: sight for path, sight in seen._kept() if sight is not None}
        return seen

    def count(self, *, decoded: bool) -> int:
        """How many files `find` knows, if none has changed."""
        return sum(_tells(sight, decoded) for sight in self._sights.values())

    def find(self, path: str, file: str, *, decoded: bool) -> ImageFacts | ImageError | None:
        """What a look at a file would find, if it has not changed; None if it must be read.

        Args:
            path: relative to the folder; file: as the operating system takes it.
            decoded: whether the look would decode it. What decodes also opens, so only errors depend on it.
        """
        sight = self._sights.get(path)
        if sight is None or not _tells(sight, decoded) or sight.stamp != stamp_of(file):
            return None
        return sight.found

    def put(self, path: str, sight: Sight, now_ns: int) -> bool:
        """Keep a sight of this moment, unless the file could change unseen; whether it was kept."""
        lasting = not (isinstance(sight.found, ImageError) and sight.found.reason in _NOT_KEPT)
        if lasting and sight.stamp.settled(now_ns):
            self._sights[path] = sight
            return True
        self._sights.pop(path, None)
        return False

    def forget_all_but(self, paths: Set[str]) -> None:
        """Drop what is kept of files that are gone."""
        self._sights = {path: sight for path, sight in self._sights.items() if path in paths}

    def save(self, receipt: Mapping[str, Any] | None) -> None:
        """Replace what is kept, in one rename."""
        sights = self._sights.values()
        facts = [sight.found if isinstance(sight.found, ImageFacts) else None for sight in sights]
        errors = [sight.found if isinstance(sight.found, ImageError) else None for sight in sights]
        columns: dict[str, list[Any]] = {
            "path": list(self._sights),
            "size": [sight.stamp.size for sight in sights],
            "mtime_ns": [sight.stamp.mtime_ns for sight in sights],
            "decoded": [sight.decoded for sight in sights],
            **{name: [getattr(found, name, None) for found in facts] for name in _FACTS},
            "reason": [None if error is None else error.reason.value for error in errors],
            "detail": [None if error is None else error.detail for error in errors],
        }
        header = {"versions": _VERSIONS, "folder": os.fspath(self._folder), "receipt": receipt}
        replace_table(pa.table(columns, schema=_SCHEMA), self._file, header)

    def receipt(self) -> dict[str, Any] | None:
        """What the last finished run left, if every file that it saw still has its stamp; none is read."""
        header = self._header()
        if header is None or not isinstance(header.get("receipt"), dict):
            return None
        try:
            with pq.ParquetFile(self._file) as file:
                table = file.read(columns=["path", "size", "mtime_ns"])
        except (OSError, pa.ArrowException):
            return None
        folder = os.path.join(self._folder, "")  # noqa: PTH118
        paths, sizes, times = (column.to_pylist() for column in table.columns)
        stat = os.stat
        try:
            for path, size, mtime_ns in zip(paths, sizes, times, strict=True):
                status = stat(folder + path)
                if status.st_mtime_ns != mtime_ns or status.st_size != size:
                    return None
        except OSError:
            return None
        receipt: dict[str, Any] = header["receipt"]
        return receipt

    def _header(self) -> dict[str, Any] | None:
        try:
            header = read_footer(self._file)
        except (OSError, pa.ArrowException, StoreError):
            return None
        same = header.get("versions") == _VERSIONS and header.get("folder") == os.fspath(self._folder)
        return header if same else None

    def _kept(self) -> Iterable[tuple[str, Sight | None]]:
        if self._header() is None:
            return
        try:
            with pq.ParquetFile(self._file) as file:
                table = file.read()
        except (OSError, pa.ArrowException):
            return
        if not table.schema.remove_metadata().equals(_SCHEMA):
            return
        for values in zip(*(column.to_pylist() for column in table.columns), strict=True):
            row = dict(zip(_SCHEMA.names, values, strict=True))
            yield row["path"], _sight(row)


def _tells(sight: Sight, decoded: bool) -> bool:
    """Whether a look, which would decode the file or not, would find the same."""
    return sight.decoded == decoded or (sight.decoded and isinstance(sight.found, ImageFacts))


def _sight(row: Mapping[str, Any]) -> Sight | None:
    stamp = Stamp(row["size"], row["mtime_ns"])
    if row["reason"] is None:
        return Sight(stamp, ImageFacts(**{name: row[name] for name in _FACTS}), row["decoded"])
    try:
        return Sight(stamp, ImageError(Reason(row["reason"]), row["detail"]), row["decoded"])
    except ValueError:
        return None  # a reason of another version
