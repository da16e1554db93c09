"""Writing one split: rows in, part files and ledger out, all in a folder that nobody sees yet."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embeddings_assets.errors import StoreError
from embeddings_assets.io.files import flush, naming, sync_folder
from embeddings_assets.store.parquet import open_parquet, open_writer, replace_table
from embeddings_assets.store.reading import norm_errors, part_files, vectors_of
from embeddings_assets.store.schema import (
    CARRIED_COLUMNS,
    LEDGER_NAME,
    LEDGER_SCHEMA,
    PART_PATTERN,
    ROWS_PER_GROUP,
    ROWS_PER_PART,
    UNIT_NORM_TOLERANCE,
    embedding_schema,
)

# Small splits get zstd's thorough mode: 24 rows of 512 floats then stay below their raw size, fixed
# costs included. Above, level 1 is within 0.5 % of level 19 on float planes and 60 times as fast.
_SMALL_SPLIT_ROWS = 1024
_SMALL_SPLIT_LEVEL = 15
_LARGE_SPLIT_LEVEL = 1

# At once; by row groups it would take more memory than anything else in a run.
_ROWS_READ_BACK = 1024
_BYTES_READ_BACK = 2**20


class SplitWriter:
    """Writes the rows of one split in order; part and row-group limits depend on the row number alone.

    At most one row group is held in memory. Use it as a context manager, and call `finish` at the end.

    Args:
        folder: an empty folder.
        footer: the footer's fields but `rows`, `part` and `parts`.
        rows: rows the split will have.
    """

    def __init__(self, folder: Path, footer: Mapping[str, Any], rows: int) -> None:
        self._folder = folder
        self._footer = {**footer, "rows": rows, "parts": max(1, -(-rows // ROWS_PER_PART))}
        self._rows = rows
        self._schema = embedding_schema(int(footer["width"]))
        self._identity = {name: str(footer[name]) for name in ("dataset", "split", "model")}
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._written = 0
        self._part: tuple[BinaryIO, pq.ParquetWriter] | None = None
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._part is not None:
            stream, writer = self._part
            with naming(self._folder), stream:
                writer.close()

    def append(self, carried: pa.Table, vectors: np.ndarray) -> None:
        """Add rows.

        Args:
            carried: the columns CARRIED_COLUMNS, n rows.
            vectors: float32 [n, width], finite, of unit norm.

        Raises:
            StoreError: vectors of another shape or type, not finite, or not of unit norm.
        """
        _check_vectors(vectors, carried.num_rows, int(self._footer["width"]))
        self._digest.update(np.ascontiguousarray(vectors).data)
        self._pending.append(self._table(carried, vectors))
        self._pending_rows += carried.num_rows
        while self._pending_rows >= ROWS_PER_GROUP:
            self._write_group(ROWS_PER_GROUP)

    def finish(self, ledger: pa.Table) -> None:
        """Write what is left and the ledger, flush everything, and read the vectors back.

        Raises:
            StoreError: another number of rows than announced, or the files do not hold what was written.
        """
        if self._pending_rows:
            self._write_group(self._pending_rows)
        self._close_part()
        if self._written != self._rows:
            raise StoreError(f"{self._folder}: {self._written} rows written, {self._rows} expected.")
        replace_table(ledger.cast(LEDGER_SCHEMA), self._folder / LEDGER_NAME, self._identity)
        sync_folder(self._folder)
        self._read_back()

    def _table(self, carried: pa.Table, vectors: np.ndarray) -> pa.Table:
        columns: dict[str, pa.Array | pa.ChunkedArray] = {
            name: pa.repeat(pa.scalar(value, pa.string()), carried.num_rows)
            for name, value in self._identity.items()
        }
        columns |= {name: carried.column(name) for name in CARRIED_COLUMNS}
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(
            pa.array(vectors.reshape(-1)), type=self._schema.field("embedding").type
        )
        return pa.Table.from_arrays([columns[name] for name in self._schema.names], schema=self._schema)

    def _write_group(self, rows: int) -> None:
        pending = pa.concat_tables(self._pending)
        rest = pending.slice(rows)
        self._pending, self._pending_rows = [rest], rest.num_rows
        if self._written % ROWS_PER_PART == 0:
            self._close_part()
            self._open_part(self._written // ROWS_PER_PART)
        assert self._part is not None
        with naming(self._folder):
            self._part[1].write_table(pending.slice(0, rows), row_group_size=ROWS_PER_GROUP)
        self._written += rows
        del pending
        pa.default_memory_pool().release_unused()

    def _open_part(self, index: int) -> None:
        stream = (self._folder / PART_PATTERN.format(index)).open("wb")
        writer = open_writer(
            stream,
            self._schema,
            {**self._footer, "part": index},
            compression_level=_SMALL_SPLIT_LEVEL if self._rows <= _SMALL_SPLIT_ROWS else _LARGE_SPLIT_LEVEL,
            use_dictionary=["class_name", "dataset", "split", "model", "label"],
            column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"},
            write_statistics=["label"],
            write_page_checksum=True,
        )
        self._part = (stream, writer)

    def _close_part(self) -> None:
        if self._part is not None:
            stream, writer = self._part
            with naming(self._folder):
                writer.close()
                flush(stream)
                stream.close()
            self._part = None

    def _read_back(self) -> None:
        digest = hashlib.sha256()
        for path in part_files(self._folder):
            with open_parquet(path, page_checksum_verification=True, buffer_size=_BYTES_READ_BACK) as file:
                batches = file.iter_batches(_ROWS_READ_BACK, columns=["embedding"], use_threads=False)
                for batch in batches:
                    digest.update(np.ascontiguousarray(vectors_of(batch.column(0))).data)
        if digest.digest() != self._digest.digest():
            raise StoreError(f"{self._folder}: the files read back differ from what was written.")


def _check_vectors(vectors: np.ndarray, rows: int, width: int) -> None:
    if vectors.dtype != np.float32 or vectors.shape != (rows, width):
        raise StoreError(
            f"Vectors of type {vectors.dtype} and shape {vectors.shape}; expected float32 {(rows, width)}."
        )
    if rows == 0:
        return
    if not np.isfinite(vectors).all():
        raise StoreError(
            f"{int((~np.isfinite(vectors)).any(axis=1).sum())} of {rows} vectors hold NaN or infinity."
        )
    error = float(norm_errors(vectors).max())
    if error > UNIT_NORM_TOLERANCE:
        raise StoreError(
            f"A vector's norm is off by {error:.1e}; at most {UNIT_NORM_TOLERANCE:.0e} is allowed."
        )
