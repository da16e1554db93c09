"""What a split still needs: its shards, which of them are staged, which rows can be reused."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embeddings_assets.errors import StoreError
from embeddings_assets.store.files import read_footer
from embeddings_assets.store.footer import digest
from embeddings_assets.store.manifest import Manifest
from embeddings_assets.store.reading import part_files, vectors_of
from embeddings_assets.store.schema import UNIT_NORM_TOLERANCE
from embeddings_assets.store.shards import Shard, read_shard

_DAMAGED = (OSError, ValueError, KeyError, pa.ArrowException)


@dataclass(frozen=True)
class ShardPlan:
    """The fixed cut of a manifest into shards, kept in a folder named by everything it depends on."""

    folder: Path
    rows: int
    shard_rows: int

    @classmethod
    def create(
        cls, staging: Path, manifest: Manifest, recipe_fingerprint: str, shard_rows: int
    ) -> "ShardPlan":
        key = digest([recipe_fingerprint, manifest.fingerprint, shard_rows])[:16]
        return cls(staging / key, manifest.rows, shard_rows)

    @property
    def count(self) -> int:
        return -(-self.rows // self.shard_rows)

    def range(self, index: int) -> tuple[int, int]:
        return index * self.shard_rows, min((index + 1) * self.shard_rows, self.rows)

    def path(self, index: int) -> Path:
        return self.folder / f"shard-{index:06d}"

    def staged(self, index: int, width: int) -> Shard | None:
        """The shard as an earlier run left it, or None if it must be computed."""
        start, stop = self.range(index)
        try:
            shard = read_shard(self.path(index))
        except (FileNotFoundError, StoreError):
            return None
        complete = len(shard.positions) + shard.ledger.num_rows == stop - start
        inside = not len(shard.positions) or (shard.positions[0] >= start and shard.positions[-1] < stop)
        return shard if complete and inside and shard.vectors.shape[1] == width else None

    def require(self, index: int) -> Shard:
        """A shard that has just been staged.

        Raises:
            StoreError: it has been damaged or removed since.
        """
        try:
            return read_shard(self.path(index))
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.path(index)}: the staged shard has vanished.", remedy="run again"
            ) from error


class StandingVectors:
    """Vectors of the split that stands, found by image sha256; holds one digest per row and no vector.

    Reads the row group that holds a wanted vector, and keeps the last one read. What is damaged is not found:
    it is computed again.
    """

    def __init__(self, folder: Path) -> None:
        self._place: dict[bytes, tuple[Path, int, int]] = {}
        for path in _parts_of_one_split(folder):
            with contextlib.suppress(*_DAMAGED), pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    column = file.read_row_group(group, columns=["sha256"]).column(0)
                    for row, value in enumerate(column.to_pylist()):
                        self._place.setdefault(bytes.fromhex(value), (path, group, row))
        self._cached: tuple[Path, int] | None = None
        self._vectors: dict[int, np.ndarray] = {}

    def find(self, sha256: str) -> np.ndarray | None:
        """The float32 [width] vector of an image with this digest, or None."""
        place = self._place.get(bytes.fromhex(sha256))
        if place is None:
            return None
        path, group, row = place
        if self._cached != (path, group):
            self._vectors = _sound_vectors(path, group)
            self._cached = (path, group)
        return self._vectors.get(row)


def _parts_of_one_split(folder: Path) -> list[Path]:
    """The part files whose footers agree with the first one's."""
    found: list[Path] = []
    first: dict[str, object] | None = None
    for path in part_files(folder):
        try:
            footer = read_footer(path)
        except (*_DAMAGED, StoreError):
            continue
        footer.pop("part", None)
        first = footer if first is None else first
        if footer == first:
            found.append(path)
    return found


def _sound_vectors(path: Path, group: int) -> dict[int, np.ndarray]:
    """The vectors of a row group by row; without those that are not finite or not of unit norm."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read_row_group(group, columns=["embedding"]).combine_chunks()
    except _DAMAGED:
        return {}
    vectors = vectors_of(table.column(0).combine_chunks())
    off = np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1)
    return {int(row): vectors[row] for row in np.flatnonzero(off <= UNIT_NORM_TOLERANCE)}
