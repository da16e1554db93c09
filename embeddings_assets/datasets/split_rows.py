"""The manifest rows and ledger rows of the splits, gathered while their images are looked at."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import pyarrow as pa

from embeddings_assets.datasets.crops import Cropper
from embeddings_assets.datasets.inspection import Inspector
from embeddings_assets.datasets.layouts.listing import ImageRecord
from embeddings_assets.datasets.seen import SeenFiles, Sight
from embeddings_assets.errors import ImageError, Reason
from embeddings_assets.io.images import ImageFacts
from embeddings_assets.store.manifest import Crop
from embeddings_assets.store.schema import CROP_COLUMNS, LEDGER_SCHEMA, MANIFEST_SCHEMA

_FROM_RECORD = ("image_id", "label", "class_name", "class_id", "official_split")
_SECONDS_BETWEEN_SAVES = 30.0  # what a killed run can lose


class ListedImage(NamedTuple):
    """A record, and its path from the listing's folder as it stands on disk; None where there is no file."""

    record: ImageRecord
    path_on_disk: str | None


class _Row(NamedTuple):
    record: ImageRecord
    image_path: str
    facts: ImageFacts
    crop: Crop | None


@dataclass
class SplitRows:
    """Rows of the manifest and of the ledger of one split, in official order.

    `present` counts the files that are there, `read` those that were opened; `bad` names those that cannot be
    used, with the reason.
    """

    rows: list[_Row] = field(default_factory=list)
    ledger: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in LEDGER_SCHEMA.names})
    bad: list[str] = field(default_factory=list)
    present: int = 0
    read: int = 0
    seconds: float = 0.0

    @property
    def classes(self) -> int:
        return len({row.record.label for row in self.rows})

    @property
    def reasons(self) -> dict[str, int]:
        """Ledger rows by reason."""
        return dict(sorted(Counter(self.ledger["reason"]).items()))

    def tables(self, schema: pa.Schema) -> tuple[pa.Table, pa.Table]:
        """The manifest's rows in the columns of `schema`, and the ledger's."""
        columns: dict[str, Sequence[Any]] = {name: [] for name in MANIFEST_SCHEMA.names}
        for name in schema.names:
            if name in CROP_COLUMNS:
                side = CROP_COLUMNS.index(name)
                columns[name] = [row.crop[side] for row in self.rows if row.crop is not None]
            elif name == "image_path":
                columns[name] = [row.image_path for row in self.rows]
            elif name in _FROM_RECORD:
                columns[name] = [getattr(row.record, name) for row in self.rows]
            else:
                columns[name] = [getattr(row.facts, name) for row in self.rows]
        return pa.table(columns, schema=schema), pa.table(self.ledger, schema=LEDGER_SCHEMA)

    def refuse(self, record: ImageRecord, image_path: str, error: ImageError) -> None:
        if error.reason is not Reason.MISSING:
            self.bad.append(f"{image_path} ({error.reason.value}: {error.detail})")
        values = {
            "image_id": record.image_id,
            "image_path": image_path,
            "reason": error.reason.value,
            "detail": error.detail,
        }
        for name, column in self.ledger.items():
            column.append(values[name])


class Lookout:
    """Looks at the images of a dataset, split by split; opens only files that are new or have changed.

    `all_kept` says whether the next run can tell of every file whether it has changed.
    """

    def __init__(
        self,
        images: Sequence[Sequence[ListedImage]],
        folder: Path,
        image_prefix: str,
        seen: SeenFiles,
        *,
        crop_of: Cropper | None,
        inspector: Inspector,
        decode: bool,
        progress: Callable[[int, int], None],
        now_ns: int,
    ) -> None:
        """
        Args:
            images: those of each split that will be asked for, in that order.
            folder: what the images' paths are relative to.
            image_prefix: what `image_path` values begin with instead.
            now_ns: when the run began.
        """
        self._image_prefix = image_prefix
        self._seen = seen
        self._crop_of = crop_of
        self._decode = decode
        self._progress = progress
        self._now_ns = now_ns
        self.all_kept = True
        self._done = 0
        self._saved = time.monotonic()
        self._known: dict[str, ImageFacts | ImageError] = {}
        paths = [path for split in images for _, path in split if path is not None]
        root = f"{folder}/"
        unknown = []
        for path in paths:
            known = seen.find(path, root + path, decoded=decode)
            if known is None:
                unknown.append(root + path)
            else:
                self._known[path] = known
        self._total = len(paths)
        self._reading = inspector.inspect(unknown)

    def look_at(self, images: Sequence[ListedImage]) -> SplitRows:
        """The rows of the next split."""
        started = time.monotonic()
        split = SplitRows()
        known, prefix, crop_of, add = self._known, self._image_prefix, self._crop_of, split.rows.append
        for record, path in images:
            if path is None:
                missing = ImageError(Reason.MISSING, "listed, but no such file")
                split.refuse(record, prefix + record.path, missing)
                continue
            split.present += 1
            found = known.get(path) or self._read(path, split)
            try:
                if isinstance(found, ImageError):
                    raise found
                crop = None if crop_of is None else crop_of(record, found)
                add(_Row(record, prefix + path, found, crop))
            except ImageError as error:
                split.refuse(record, prefix + path, error)
            self._done += 1
            self._progress(self._done, self._total)
        split.seconds = time.monotonic() - started
        return split

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """End the reading; what was found is kept for the next run, whatever stopped this one."""
        self._reading.close()
        if kind is not None:
            self._seen.save(None)

    def _read(self, path: str, split: SplitRows) -> ImageFacts | ImageError:
        found, stamp = next(self._reading)
        split.read += 1
        if stamp is None or not self._seen.put(path, Sight(stamp, found, self._decode), self._now_ns):
            self.all_kept = False
        if time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
            self._seen.save(None)
            self._saved = time.monotonic()
        return found
