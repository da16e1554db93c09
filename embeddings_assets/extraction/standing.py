"""The split that stands: what it was made with, whether it is what a run would make, what can be reused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embeddings_assets.errors import ImageError, Reason, StoreError
from embeddings_assets.io.images import read_bytes
from embeddings_assets.store.manifest import BOXES_FINGERPRINT, Manifest
from embeddings_assets.store.parquet import open_parquet, read_footer
from embeddings_assets.store.reading import load_ledger, part_files, read_split_footer
from embeddings_assets.store.schema import ROWS_PER_GROUP
from embeddings_assets.store.staging import refuse_foreign_files

# Not the content that the manifest describes, but what was found in its place. It may be back.
_MAY_PASS = frozenset((Reason.MISSING, Reason.UNREADABLE, Reason.EMPTY, Reason.CHANGED))


def standing_footer(folder: Path, *, replace: bool) -> dict[str, Any] | None:
    """The footer of the split at `folder`; None where there is none, or a damaged one that may be replaced.

    Raises:
        StoreError: files stand there that are not ours, or that are damaged and `replace` is off.
    """
    if folder.exists():
        refuse_foreign_files(folder)
    try:
        return read_split_footer(folder)
    except StoreError as error:
        if replace:
            return None
        raise StoreError(
            f"A split that cannot be read stands in the way. {error.problem}",
            remedy="add --replace to compute it again",
        ) from error


def is_current(folder: Path, footer: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether the split at `folder` was made from the same recipe and manifest, and is all there.

    Reads footers only; `embeddings-assets verify` is what reads every vector.
    """
    if any(footer.get(name) != value for name, value in expected.items()):
        return False
    try:
        rows = 0
        for index, path in enumerate(part_files(folder)):
            part = read_footer(path)
            if part.pop("part", None) != index or part != footer:
                return False
            rows += pq.read_metadata(path).num_rows
        load_ledger(folder)
    except (OSError, pa.ArrowException, StoreError):
        return False
    return rows == footer.get("rows") and len(part_files(folder)) == footer.get("parts")


def usable_again(ledger: pa.Table, manifest: Manifest, start: int, stop: int) -> frozenset[int]:
    """Rows of the manifest, from `start` to `stop` (exclusive), that a ledger excludes without a reason now.

    Opens only files that were not as the manifest describes them: absent, refused, or of another content.

    Raises:
        EmbeddingsError: the machine cannot read such a file now.
    """
    rows = zip(ledger.column("image_id").to_pylist(), ledger.column("reason").to_pylist(), strict=True)
    excluded = {image_id for image_id, reason in rows if reason in _MAY_PASS}
    found = set()
    for first in range(start, stop, ROWS_PER_GROUP):
        if not excluded:
            break
        some = manifest.slice(first, min(first + ROWS_PER_GROUP, stop), ["image_id", "image_path", "sha256"])
        for offset, image_id in enumerate(some.column("image_id").to_pylist()):
            if image_id in excluded:
                path, sha256 = (some.column(name)[offset].as_py() for name in ("image_path", "sha256"))
                if _is_as_described(manifest.resolve(path), sha256):
                    found.add(first + offset)
                excluded.remove(image_id)
    return frozenset(found)


def recovered(folder: Path, manifest: Manifest) -> frozenset[int]:
    """Rows of the manifest that the split at `folder` excludes without a reason now (see `usable_again`)."""
    try:
        ledger = load_ledger(folder)
    except (OSError, pa.ArrowException, StoreError):
        return frozenset()
    return usable_again(ledger, manifest, 0, manifest.rows)


def has_same_boxes(folder: Path, footer: Mapping[str, Any], manifest: Manifest) -> bool:
    """Whether each image of the split at `folder` was cropped to the box that the manifest gives it now.

    A row of the split does not say which box it was cropped to, but its footer has a hash over all of them.
    It can be compared as long as no image has been removed.
    """
    try:
        known: set[str] = set(load_ledger(folder).column("image_id").to_pylist())
        for path in part_files(folder):
            with open_parquet(path) as file:
                for batch in file.iter_batches(ROWS_PER_GROUP, columns=["image_id"]):
                    known.update(batch.column(0).to_pylist())
    except (OSError, pa.ArrowException, StoreError):
        return False
    return footer.get(BOXES_FINGERPRINT) == manifest.boxes_fingerprint(known)


def _is_as_described(path: Path, sha256: str) -> bool:
    try:
        read_bytes(path, sha256)
    except ImageError:
        return False
    return True
