"""Staged shards: the vectors of consecutive manifest rows, kept until the whole split is committed.

A shard file is its own sha256 (32 bytes) followed by an Arrow IPC stream. A file cut short or altered by
a crash, a full disk or a bad sector fails its digest and is computed again, so no fsync is needed.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embeddings_assets.errors import StoreError
from embeddings_assets.io.files import naming
from embeddings_assets.store.schema import LEDGER_SCHEMA

_DIGEST_BYTES = 32
_COLUMNS = ["position", "sha256", "vector"]


@dataclass(frozen=True)
class Shard:
    """Vectors of some manifest rows.

    Attributes:
        positions: int64 [n], ascending row numbers in the manifest.
        sha256: string [n], digests of the image files that the vectors were made of.
        vectors: float32 [n, width], one row per position.
        ledger: LEDGER_SCHEMA, the rows of the shard's range that have no vector.
    """

    positions: np.ndarray
    sha256: pa.Array
    vectors: np.ndarray
    ledger: pa.Table


def write_shard(path: Path, shard: Shard) -> None:
    """Write a shard beside `path` and rename it into place."""
    width = shard.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(shard.vectors.reshape(-1)), width)
    rows = pa.table([pa.array(shard.positions), shard.sha256, vectors], names=_COLUMNS)
    stream = io.BytesIO()
    for table in (rows, shard.ledger.cast(LEDGER_SCHEMA)):
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
    payload = stream.getbuffer()
    temporary = path.with_name(f"{path.name}.tmp")
    with naming(path), temporary.open("wb") as file:
        file.write(hashlib.sha256(payload).digest())
        file.write(payload)
    temporary.replace(path)


def read_shard(path: Path) -> Shard:
    """Read a staged shard.

    Raises:
        FileNotFoundError: there is no such shard.
        StoreError: the file is not what was written.
    """
    content = path.read_bytes()
    payload = memoryview(content)[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != content[:_DIGEST_BYTES]:
        raise StoreError(f"{path}: the staged shard is damaged (its digest does not match).")
    stream = pa.BufferReader(payload)
    rows = pa.ipc.open_stream(stream).read_all()
    # A copy, so that to keep the ledger does not keep the vectors in memory.
    ledger = pa.ipc.open_stream(payload[stream.tell() :].tobytes()).read_all()
    if rows.column_names != _COLUMNS:
        raise StoreError(f"{path}: staged by another version.")
    vectors = rows.column("vector").combine_chunks()
    matrix = vectors.flatten().to_numpy().reshape(len(vectors), vectors.type.list_size)
    return Shard(rows.column("position").to_numpy(), rows.column("sha256").combine_chunks(), matrix, ledger)
