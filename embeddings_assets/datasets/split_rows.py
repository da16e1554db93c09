"""The manifest rows and ledger rows of one split, gathered while its images are looked at."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from embeddings_assets.datasets.inspection import inspect_images
from embeddings_assets.datasets.listing import ImageRecord
from embeddings_assets.errors import ImageError, Reason
from embeddings_assets.images import ImageFacts
from embeddings_assets.store.schema import LEDGER_SCHEMA, MANIFEST_SCHEMA


class ListedImage(NamedTuple):
    """A record, and its path from the listing's folder as it stands on disk; None where there is no file."""

    record: ImageRecord
    path_on_disk: str | None


@dataclass
class SplitRows:
    """Columns of the manifest and of the ledger, in official order.

    `present` counts the files that are there; `bad` names those of them that cannot be used, with the reason.
    """

    rows: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in MANIFEST_SCHEMA.names})
    ledger: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in LEDGER_SCHEMA.names})
    bad: list[str] = field(default_factory=list)
    present: int = 0
    seconds: float = 0.0

    @property
    def usable(self) -> int:
        return len(self.rows["image_id"])

    @property
    def reasons(self) -> dict[str, int]:
        """Ledger rows by reason."""
        return dict(sorted(Counter(self.ledger["reason"]).items()))

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """The manifest's rows and the ledger's."""
        return pa.table(self.rows, schema=MANIFEST_SCHEMA), pa.table(self.ledger, schema=LEDGER_SCHEMA)

    def add(self, record: ImageRecord, image_path: str, facts: ImageFacts) -> None:
        values = {
            "image_path": image_path,
            **{name: getattr(record, name) for name in _FROM_RECORD},
            **{name: getattr(facts, name) for name in _FROM_FILE},
        }
        for name, column in self.rows.items():
            column.append(values[name])

    def refuse(self, record: ImageRecord, image_path: str, error: ImageError) -> None:
        values = {
            "image_id": record.image_id,
            "image_path": image_path,
            "reason": error.reason.value,
            "detail": error.detail,
        }
        for name, column in self.ledger.items():
            column.append(values[name])


_FROM_RECORD = ("image_id", "label", "class_name", "class_id", "official_split")
_FROM_FILE = ("sha256", "bytes", "width", "height", "format", "mode")


def look_at(
    images: Sequence[ListedImage],
    folder: Path,
    image_prefix: str,
    *,
    workers: int | None,
    on_image: Callable[[], None],
) -> SplitRows:
    """Look at every image of one split.

    Args:
        folder: what the images' paths are relative to.
        image_prefix: what `image_path` values begin with instead.
        on_image: called once for each file that is there.
    """
    started = time.monotonic()
    split = SplitRows()
    inspected = inspect_images((folder / path for _, path in images if path is not None), workers)
    for record, path in images:
        if path is None:
            missing = ImageError(Reason.MISSING, "listed, but no such file")
            split.refuse(record, image_prefix + record.path, missing)
            continue
        facts = next(inspected)
        split.present += 1
        if isinstance(facts, ImageError):
            split.refuse(record, image_prefix + path, facts)
            split.bad.append(f"{image_prefix}{path} ({facts.reason.value}: {facts.detail})")
        else:
            split.add(record, image_prefix + path, facts)
        on_image()
    split.seconds = time.monotonic() - started
    return split
