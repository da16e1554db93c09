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
from embeddings_assets.store.schema import LEDGER_SCHEMA

_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Shard:
    """Vectors of some manifest rows.

    Attributes:
        positions: int64 [n], ascending row numbers in the manifest.
        vectors: float32 [n, width], one row per position.
        ledger: LEDGER_SCHEMA, the rows of the shard's range that have no vector.
    """

    positions: np.ndarray
    vectors: np.ndarray
    ledger: pa.Table


def write_shard(path: Path, shard: Shard) -> None:
    """Write a shard beside `path` and rename it into place."""
    width = shard.vectors.shape[1]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(shard.vectors.reshape(-1)), width)
    rows = pa.table({"position": pa.array(shard.positions), "vector": vectors})
    stream = io.BytesIO()
    for table in (rows, shard.ledger.cast(LEDGER_SCHEMA)):
        with pa.ipc.new_stream(stream, table.schema) as writer:
            writer.write_table(table)
    payload = stream.getbuffer()
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
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
    rows = pa.ipc.open_stream(stream).read_all().combine_chunks()
    ledger = pa.ipc.open_stream(stream).read_all()
    vectors = rows.column("vector").combine_chunks()
    matrix = vectors.flatten().to_numpy().reshape(len(vectors), vectors.type.list_size)
    return Shard(rows.column("position").to_numpy(), matrix, ledger)
