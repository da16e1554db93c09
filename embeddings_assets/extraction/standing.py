"""The split that stands: what it was made with, and whether it is already what a run would make."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embeddings_assets.errors import StoreError
from embeddings_assets.store.files import read_footer
from embeddings_assets.store.reading import load_ledger, part_files, read_split_footer
from embeddings_assets.store.staging import refuse_foreign_files


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
