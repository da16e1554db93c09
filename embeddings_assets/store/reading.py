"""Reading committed splits: files, footer, table, matrix, data frame."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from embeddings_assets.errors import StoreError
from embeddings_assets.store.manifest import read_ledger
from embeddings_assets.store.parquet import open_parquet, read_footer
from embeddings_assets.store.schema import LEDGER_NAME, PART_NAME

if TYPE_CHECKING:
    import pandas as pd


def part_files(folder: Path) -> list[Path]:
    """The part files of a split in order; empty where there is no split."""
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if PART_NAME.fullmatch(path.name)),
        key=lambda path: int(path.stem.removeprefix("part-")),
    )


def read_split_footer(folder: Path) -> dict[str, Any] | None:
    """The footer of a committed split, without its part number; None where there is no split.

    Raises:
        StoreError: the first part cannot be read.
    """
    files = part_files(folder)
    if not files:
        return None
    try:
        footer = read_footer(files[0])
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{files[0]}: not a readable parquet file ({error}).") from error
    footer.pop("part", None)
    return footer


def require_parts(folder: Path) -> list[Path]:
    """The part files of a split.

    Raises:
        StoreError: there is no split at `folder`.
    """
    files = part_files(folder)
    if not files:
        raise StoreError(
            f"{folder}: no embeddings here.", remedy="embeddings-assets extract --model ... --dataset ..."
        )
    return files


def load_table(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a split as an Arrow table.

    Raises:
        StoreError: there is no split at `folder`, it cannot be read, or it has no such columns.
    """
    return pa.concat_tables(_read(path, columns) for path in require_parts(folder))


def load_matrix(folder: Path) -> np.ndarray:
    """All vectors of a split as one float32 [n, width] array, in row order."""
    column = load_table(folder, ["embedding"]).column("embedding")
    chunks = [vectors_of(chunk) for chunk in column.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)


def load_frame(folder: Path, columns: Sequence[str] | None = None) -> "pd.DataFrame":
    """All rows of a split; `embedding` holds float32 [width] views of one matrix."""
    table = load_table(folder, columns)
    if "embedding" not in table.column_names:
        return table.to_pandas()
    index = table.column_names.index("embedding")
    matrix = np.concatenate([vectors_of(chunk) for chunk in table.column("embedding").chunks])
    frame = table.remove_column(index).to_pandas()
    frame.insert(index, "embedding", list(matrix))
    return frame


def load_ledger(folder: Path) -> pa.Table:
    """Images of the split that could not be embedded (LEDGER_SCHEMA); raises as `read_ledger`."""
    return read_ledger(folder / LEDGER_NAME)


def split_sha256(folder: Path) -> str:
    """sha256 over the bytes of every file of a committed split, in name order."""
    running = hashlib.sha256()
    for path in [*require_parts(folder), folder / LEDGER_NAME]:
        with path.open("rb") as stream:
            running.update(hashlib.file_digest(stream, "sha256").digest())
    return running.hexdigest()


def split_bytes(folder: Path) -> int:
    """Size on disk of a split's part files."""
    return sum(path.stat().st_size for path in part_files(folder))


def vectors_of(array: pa.FixedSizeListArray) -> np.ndarray:
    """A fixed-size-list array as float32 [n, width], without a copy."""
    return array.flatten().to_numpy().reshape(len(array), array.type.list_size)


def norm_errors(vectors: np.ndarray) -> np.ndarray:
    """How far the norm of each float32 [n, width] vector is from 1, float64 [n]; NaN or infinity stay."""
    return np.abs(np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)) - 1)


def _read(path: Path, columns: Sequence[str] | None) -> pa.Table:
    try:
        with open_parquet(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            wanted = names if columns is None else list(columns)
            if not wanted or isinstance(columns, str) or not set(wanted) <= set(names):
                raise StoreError(f"{path}: columns {columns!r} asked for; it has {names}.")
            if "embedding" in wanted and not pa.types.is_fixed_size_list(
                file.schema_arrow.field("embedding").type
            ):
                raise StoreError(f"{path}: embedding is no fixed-size list.")
            return file.read(columns=wanted)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{path}: cannot be read ({error}).", remedy=f'embeddings-assets verify "{path.parent}"'
        ) from error
