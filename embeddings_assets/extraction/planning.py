"""What a split still needs: its shards, which of them are staged, which rows can be reused."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from embeddings_assets.errors import StoreError
from embeddings_assets.extraction.standing import usable_again
from embeddings_assets.store.footer import digest
from embeddings_assets.store.manifest import Manifest
from embeddings_assets.store.parquet import open_parquet, read_footer
from embeddings_assets.store.reading import norm_errors, part_files, vectors_of
from embeddings_assets.store.schema import UNIT_NORM_TOLERANCE
from embeddings_assets.store.shards import Shard, read_shard

_DAMAGED = (OSError, ValueError, KeyError, pa.ArrowException)
_KEY_COLUMNS = ("image_id", "sha256")


@dataclass(frozen=True)
class ShardPlan:
    """The fixed cut of a manifest into shards, kept in a folder named by everything it depends on."""

    folder: Path
    manifest: Manifest
    shard_rows: int

    @classmethod
    def create(
        cls, staging: Path, manifest: Manifest, made_by: Sequence[object], shard_rows: int
    ) -> "ShardPlan":
        """
        Args:
            made_by: what else the bytes of a vector depend on, as JSON: the recipe and the libraries.
        """
        key = digest([*made_by, manifest.fingerprint, shard_rows])[:16]
        return cls(staging / key, manifest, shard_rows)

    @property
    def count(self) -> int:
        return -(-self.manifest.rows // self.shard_rows)

    def range(self, index: int) -> tuple[int, int]:
        return index * self.shard_rows, min((index + 1) * self.shard_rows, self.manifest.rows)

    def path(self, index: int) -> Path:
        return self.folder / f"shard-{index:06d}"

    def staged(self, index: int, width: int) -> Shard | None:
        """The shard as an earlier run left it, or None if it must be computed.

        It must be, too, if an image can be used by now that could not be then.

        Raises:
            EmbeddingsError: the machine cannot look at such an image now.
        """
        try:
            shard = self.require(index)
        except (StoreError, OSError):  # damaged, or on a bad sector
            return None
        if shard.vectors.shape[1] != width or usable_again(shard.ledger, self.manifest, *self.range(index)):
            return None
        return shard

    def require(self, index: int) -> Shard:
        """A shard that has just been staged.

        Raises:
            StoreError: it has been damaged or removed since, or is not of these rows of the manifest.
        """
        start, stop = self.range(index)
        try:
            shard = read_shard(self.path(index))
        except FileNotFoundError as error:
            raise StoreError(
                f"{self.path(index)}: the staged shard has vanished.", remedy="run again"
            ) from error
        at = shard.positions - start
        is_whole = len(at) + shard.ledger.num_rows == stop - start
        if is_whole and (not len(at) or (at[0] >= 0 and at[-1] < stop - start)):
            expected = self.manifest.slice(start, stop, ["sha256"]).column(0).take(pa.array(at))
            if expected.combine_chunks().equals(shard.sha256):
                return shard
        raise StoreError(
            f"{self.path(index)}: not the vectors of rows {start} to {stop - 1} of {self.manifest.path}.",
            remedy="run again",
        )


class StandingVectors:
    """Vectors of the split that stands, found by image sha256; holds one digest per row and no vector.

    Reads the row group that holds a wanted vector, and keeps the last one read. What is damaged is not found:
    it is computed again.

    Args:
        same_images: find vectors under the image's own id only, for where the digest of a file does not tell
            which part of it was embedded. Otherwise the id decides only between files of the same content,
            whose vectors may differ in their last bits.
    """

    def __init__(self, folder: Path, *, same_images: bool = False) -> None:
        self._place: dict[bytes, tuple[Path, int, int]] = {}
        for path in _parts_of_one_split(folder):
            with contextlib.suppress(*_DAMAGED), open_parquet(path) as file:
                for group in range(file.num_row_groups):
                    columns = file.read_row_group(group, columns=_KEY_COLUMNS)
                    pairs = zip(*(columns.column(name).to_pylist() for name in _KEY_COLUMNS), strict=True)
                    for row, (image_id, sha256) in enumerate(pairs):
                        digest_alone, both = _keys(image_id, sha256)
                        key = both if same_images or digest_alone in self._place else digest_alone
                        self._place[key] = (path, group, row)
        self._cached: tuple[Path, int] | None = None
        self._vectors: dict[int, np.ndarray] = {}

    def find(self, image_id: str, sha256: str) -> np.ndarray | None:
        """The float32 [width] vector of an image with this digest, or None."""
        digest_alone, both = _keys(image_id, sha256)
        place = self._place.get(both) or self._place.get(digest_alone)
        if place is None:
            return None
        path, group, row = place
        if self._cached != (path, group):
            self._vectors = _sound_vectors(path, group)
            self._cached = (path, group)
        return self._vectors.get(row)


def _keys(image_id: str, sha256: str) -> tuple[bytes, bytes]:
    file = bytes.fromhex(sha256)
    return file, file + image_id.encode()


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
        with open_parquet(path, page_checksum_verification=True) as file:
            column = file.read_row_group(group, columns=["embedding"]).column(0)
    except _DAMAGED:
        return {}
    vectors = vectors_of(column.combine_chunks())
    sound = np.flatnonzero(norm_errors(vectors) <= UNIT_NORM_TOLERANCE)
    return {int(row): vectors[row] for row in sound}
