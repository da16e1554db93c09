"""Filling the shards of a split: resume what is staged, reuse what stands, embed the rest.

The last bits of a vector depend on the size of its batch. So an image that can be used again is not embedded
alone, but with the whole batch that it would have been in: then nothing tells that it was ever away.
"""

import contextlib
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from embeddings_assets.errors import BadImagesError, ImageError
from embeddings_assets.extraction.batching import Batcher, choose_batch_size
from embeddings_assets.extraction.decoding import Decoders, ImageTask, PixelBatch
from embeddings_assets.extraction.memory import peak_bytes
from embeddings_assets.extraction.planning import ShardPlan, StandingVectors
from embeddings_assets.extraction.report import Progress
from embeddings_assets.extraction.source import Encoder, EncoderSource, Vectors
from embeddings_assets.store.manifest import Manifest
from embeddings_assets.store.schema import LEDGER_SCHEMA
from embeddings_assets.store.shards import Shard, write_shard

_STAGES = ("load", "decode", "forward", "write")


class StageClock:
    """Adds up the time the driving thread spends in each stage; an inner stage pauses the outer one."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._inner = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started, before = time.perf_counter(), self._inner
        self._inner = 0.0
        try:
            yield
        finally:
            elapsed = time.perf_counter() - started
            self._seconds[name] += elapsed - self._inner
            self._inner = before + elapsed

    def add(self, seconds: Mapping[str, float], share: float) -> None:
        """Add a share of what another clock has counted."""
        for name, value in seconds.items():
            self._seconds[name] += value * share

    def seconds_of(self, total: float) -> dict[str, float]:
        """Seconds per stage, and `other` for what is left of `total`; `compare` only where it took place."""
        names = [*_STAGES, *(name for name in ("compare",) if name in self._seconds)]
        stages = {name: self._seconds[name] for name in names}
        return {**stages, "other": max(0.0, total - sum(stages.values()))}


class _OpenShard:
    """A shard in the making. Every row ends either with a vector or in the ledger, or `close` refuses."""

    def __init__(self, rows: pa.Table, start: int, width: int) -> None:
        self.rows = rows
        self._start = start
        self._vectors = np.empty((rows.num_rows, width), dtype=np.float32)
        self._filled = np.zeros(rows.num_rows, dtype=bool)
        self._failures: dict[int, ImageError] = {}

    def put(self, positions: list[int], vectors: np.ndarray) -> None:
        local = np.asarray(positions) - self._start
        self._vectors[local] = vectors
        self._filled[local] = True

    def fail(self, position: int, error: ImageError) -> tuple[str, ImageError]:
        self._failures[position - self._start] = error
        return self.rows.column("image_path")[position - self._start].as_py(), error

    @property
    def complete(self) -> bool:
        return int(self._filled.sum()) + len(self._failures) == self.rows.num_rows

    def close(self) -> Shard:
        local = np.flatnonzero(self._filled)
        sha256 = self.rows.column("sha256").take(pa.array(local)).combine_chunks()
        bad = sorted(self._failures)
        rows = self.rows.take(pa.array(bad, pa.int64()))
        ledger = pa.table(
            {
                "image_id": rows.column("image_id"),
                "image_path": rows.column("image_path"),
                "reason": pa.array([self._failures[row].reason.value for row in bad], pa.string()),
                "detail": pa.array([self._failures[row].detail for row in bad], pa.string()),
            }
        ).cast(LEDGER_SCHEMA)
        return Shard((local + self._start).astype(np.int64), sha256, self._vectors[local], ledger)


@dataclass(frozen=True)
class Filled:
    """What it took to stage the shards (attributes as in `SplitReport`)."""

    computed: int = 0
    reused: int = 0
    resumed: int = 0
    device: str = ""
    batch_size: int = 0
    workers: int = 0
    peak_bytes: int = 0
    peak_device_bytes: int = 0


class ShardFiller:
    """Runs decode and forward over the rows that need it and stages each shard as it completes."""

    def __init__(
        self,
        *,
        manifest: Manifest,
        shards: ShardPlan,
        width: int,
        source: EncoderSource,
        reusable: StandingVectors | None,
        usable_again: frozenset[int],
        batch_size: int | None,
        workers: int,
        decoders: Decoders,
        most_bad: int,
        clock: StageClock,
        progress: Progress,
    ) -> None:
        self.bad: list[tuple[str, ImageError]] = []
        self._workers = workers
        self._device = ""
        self._encoder: Encoder | None = None
        self._computed = self._reused = self._resumed = 0
        self._manifest = manifest
        self._shards = shards
        self._width = width
        self._source = source
        self._reusable = reusable
        self._usable_again = usable_again
        self._batch_size = batch_size
        self._batcher: Batcher | None = None
        self._decoders = decoders
        self._most_bad = most_bad
        self._clock = clock
        self._progress = progress
        self._open: dict[int, _OpenShard] = {}
        self._bad_resumed = 0
        self._done = 0

    def fill(self, shards: Sequence[int] | None = None) -> Filled:
        """Stage every shard, or those of these numbers.

        Raises:
            BadImagesError: as soon as more images are unusable than allowed.
        """
        self._progress(0, self._manifest.rows)
        self._numbers = range(self._shards.count) if shards is None else shards
        with ThreadPoolExecutor(1, thread_name_prefix="load") as self._loader:
            self._fill()
        return Filled(
            computed=self._computed,
            reused=self._reused,
            resumed=self._resumed,
            device=self._device,
            batch_size=self._batcher.size if self._batcher else 0,
            workers=self._workers,
            peak_bytes=peak_bytes() + self._decoders.peak_bytes(),
            peak_device_bytes=self._encoder.peak_device_bytes() if self._encoder else 0,
        )

    def _fill(self) -> None:
        ahead: tuple[PixelBatch, Vectors | None] | None = None
        # Closed at once where an error ends the loop: the decoding threads end before their processes do.
        with contextlib.closing(self._decoded()) as decoded:
            for batch in decoded:
                now = batch, self._submit(batch)
                if ahead is not None:
                    self._absorb(*ahead)
                ahead = now
        if ahead is not None:
            self._absorb(*ahead)

    def _decoded(self) -> Generator[PixelBatch, None, None]:
        """Decoded batches; the time spent waiting for them counts as `decode`."""
        batches = self._decoders.batches(self._batches(), self._source.to_pixels(), self._workers)
        with contextlib.closing(batches):
            while True:
                with self._clock.stage("decode"):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

    def _submit(self, batch: PixelBatch) -> Vectors | None:
        if batch.pixels is None or self._batcher is None:
            return None
        if self._encoder is None:
            with self._clock.stage("load"):
                self._encoder = self._loading.result()
        with self._clock.stage("forward"):
            return self._batcher.submit(self._encoder, batch.pixels)

    def _batches(self) -> Iterator[tuple[int, list[ImageTask]]]:
        """Batches never straddle shards, so a resumed run forms the same ones as an undisturbed run."""
        for index in self._numbers:
            staged = self._shards.staged(index, self._width)
            if staged is not None:
                self._resumed += len(staged.positions)
                self._bad_resumed += staged.ledger.num_rows
                self._check_bad()
                self._advance(len(staged.positions) + staged.ledger.num_rows)
                continue
            for tasks in self._open_shard(index):
                yield index, tasks

    def _choose_batch_size(self) -> int:
        """Batches are formed alike to the end; where memory is short, the batcher cuts them."""
        if self._batch_size is None or not self._device:
            with self._clock.stage("load"):
                self._device = self._source.device()
                self._batch_size = self._batch_size or choose_batch_size(self._source)
            self._batcher = Batcher(self._batch_size)
            # Beside the start of the decoding processes and their first images.
            self._loading = self._loader.submit(self._source.load)
        return self._batch_size

    def _open_shard(self, index: int) -> list[list[ImageTask]]:
        """Start a shard with the rows that can be reused; returns batches of those to embed."""
        start, stop = self._shards.range(index)
        rows = self._manifest.slice(start, stop, ["image_id", "image_path", "sha256"])
        shard = self._open[index] = _OpenShard(rows, start, self._width)
        again = [position for position in range(start, stop) if position in self._usable_again]
        size = self._choose_batch_size() if again else 1
        whole = {(position - start) // size for position in again}
        tasks: list[ImageTask] = []
        apart: defaultdict[int, list[ImageTask]] = defaultdict(list)
        found = 0
        values = (column.to_pylist() for column in rows.columns)
        for offset, (image_id, path, sha256, crop) in enumerate(
            zip(*values, self._manifest.crops(start, stop), strict=True)
        ):
            in_whole = offset // size in whole
            vector = self._reusable.find(image_id, sha256) if self._reusable and not in_whole else None
            if vector is None:
                task = ImageTask(start + offset, self._manifest.resolve(path), sha256, crop)
                (apart[offset // size] if in_whole else tasks).append(task)
            else:
                shard.put([start + offset], vector[None])
                found += 1
        self._reused += found
        self._stage_if_complete(index)
        self._advance(found)
        size = self._choose_batch_size() if tasks else 1
        return [*apart.values(), *(tasks[first : first + size] for first in range(0, len(tasks), size))]

    def _absorb(self, batch: PixelBatch, vectors: Vectors | None) -> None:
        shard = self._open[batch.shard]
        if vectors is not None:
            with self._clock.stage("forward"):
                shard.put(batch.positions, vectors())
        self._computed += len(batch.positions)
        self.bad += [shard.fail(position, error) for position, error in batch.failures]
        self._check_bad()
        self._stage_if_complete(batch.shard)
        self._advance(len(batch.positions) + len(batch.failures))

    def _stage_if_complete(self, index: int) -> None:
        if self._open[index].complete:
            with self._clock.stage("write"):
                write_shard(self._shards.path(index), self._open.pop(index).close())

    def _advance(self, images: int) -> None:
        self._done += images
        self._progress(self._done, self._manifest.rows)

    def _check_bad(self) -> None:
        check_bad(self._manifest, self.bad, self._bad_resumed, self._most_bad)


def check_bad(manifest: Manifest, found: Sequence[tuple[str, ImageError]], resumed: int, most: int) -> None:
    """Raise BadImagesError if more images are unusable than allowed: those found now and those resumed."""
    bad = len(found) + resumed
    if bad > most:
        first = "; ".join(f"{path} ({error})" for path, error in found[:3])
        raise BadImagesError(
            f"{manifest.dataset}/{manifest.split}: {bad} images cannot be used so far; "
            f"at most {most} of {manifest.rows} are allowed: {first}",
            remedy="replace these files and run `embeddings-assets prepare` (--reread where only "
            "their content has changed), or raise --max-bad-share",
        )
