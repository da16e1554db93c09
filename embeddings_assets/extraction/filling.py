"""Filling the shards of a split: resume what is staged, reuse what stands, embed the rest."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from embeddings_assets.errors import BadImagesError, ImageError
from embeddings_assets.extraction.decoding import ImageTask, PixelBatch, decode_batches
from embeddings_assets.extraction.planning import ShardPlan, StandingVectors
from embeddings_assets.extraction.report import Progress
from embeddings_assets.extraction.source import Encoder, EncoderSource
from embeddings_assets.store.manifest import Manifest
from embeddings_assets.store.schema import LEDGER_SCHEMA
from embeddings_assets.store.shards import Shard, write_shard

_CPU_BATCH = 32
_GPU_BATCH = 256


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

    def seconds_of(self, total: float) -> dict[str, float]:
        """Seconds per stage, and `other` for what is left of `total`."""
        stages = {name: self._seconds[name] for name in ("load", "decode", "forward", "write")}
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
        return Shard((local + self._start).astype(np.int64), self._vectors[local], ledger)


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
        batch_size: int | None,
        workers: int,
        most_bad: int,
        clock: StageClock,
        progress: Progress,
    ) -> None:
        self.batch_size = batch_size
        self.workers = workers
        self.device = ""
        self.computed = self.reused = self.resumed = 0
        self._manifest = manifest
        self._shards = shards
        self._width = width
        self._source = source
        self._reusable = reusable
        self._most_bad = most_bad
        self._clock = clock
        self._progress = progress
        self._open: dict[int, _OpenShard] = {}
        self._bad: list[tuple[str, ImageError]] = []
        self._bad_resumed = 0
        self._done = 0

    def fill(self) -> None:
        """Stage every shard.

        Raises:
            BadImagesError: as soon as more images are unusable than allowed.
        """
        self._progress(0, self._manifest.rows)
        batches = decode_batches(self._batches(), self._source.pixels, self.workers)
        encoder: Encoder | None = None
        while True:
            with self._clock.stage("decode"):
                batch = next(batches, None)
            if batch is None:
                return
            if encoder is None and batch.pixels is not None:
                with self._clock.stage("load"):
                    encoder = self._source.load()
            self._absorb(batch, encoder)

    def _batches(self) -> Iterator[tuple[int, list[ImageTask]]]:
        """Batches never straddle shards, so a resumed run forms the same ones as an undisturbed run."""
        for index in range(self._shards.count):
            staged = self._shards.staged(index, self._width)
            if staged is not None:
                self.resumed += len(staged.positions)
                self._bad_resumed += staged.ledger.num_rows
                self._check_bad()
                self._advance(len(staged.positions) + staged.ledger.num_rows)
                continue
            tasks = self._open_shard(index)
            size = self._choose_batch_size() if tasks else 1
            for first in range(0, len(tasks), size):
                yield index, tasks[first : first + size]

    def _choose_batch_size(self) -> int:
        if not self.device:
            with self._clock.stage("load"):
                self.device = self._source.device()
        if self.batch_size is None:
            self.batch_size = _CPU_BATCH if self.device == "cpu" else _GPU_BATCH
        return self.batch_size

    def _open_shard(self, index: int) -> list[ImageTask]:
        """Start a shard with the rows that can be reused; returns those to embed."""
        start, stop = self._shards.range(index)
        rows = self._manifest.slice(start, stop, ["image_id", "image_path", "sha256"])
        shard = self._open[index] = _OpenShard(rows, start, self._width)
        tasks: list[ImageTask] = []
        found: list[int] = []
        for offset, (path, sha256) in enumerate(
            zip(rows.column("image_path").to_pylist(), rows.column("sha256").to_pylist(), strict=True)
        ):
            vector = self._reusable.find(sha256) if self._reusable else None
            if vector is None:
                tasks.append(ImageTask(start + offset, self._manifest.resolve(path), sha256))
            else:
                shard.put([start + offset], vector[None])
                found.append(start + offset)
        self.reused += len(found)
        self._advance(len(found))
        self._stage_if_complete(index)
        return tasks

    def _absorb(self, batch: PixelBatch, encoder: Encoder | None) -> None:
        shard = self._open[batch.shard]
        if batch.pixels is not None and encoder is not None:
            with self._clock.stage("forward"):
                vectors = encoder.encode(batch.pixels)
            shard.put(batch.positions, vectors)
            self.computed += len(batch.positions)
        self._bad += [shard.fail(position, error) for position, error in batch.failures]
        self._check_bad()
        self._advance(len(batch.positions) + len(batch.failures))
        self._stage_if_complete(batch.shard)

    def _stage_if_complete(self, index: int) -> None:
        if self._open[index].complete:
            with self._clock.stage("write"):
                write_shard(self._shards.path(index), self._open.pop(index).close())

    def _advance(self, images: int) -> None:
        self._done += images
        self._progress(self._done, self._manifest.rows)

    def _check_bad(self) -> None:
        bad = len(self._bad) + self._bad_resumed
        if bad > self._most_bad:
            first = "; ".join(f"{path} ({error})" for path, error in self._bad[:3])
            raise BadImagesError(
                f"{self._manifest.dataset}/{self._manifest.split}: {bad} images cannot be used so far; "
                f"at most {self._most_bad} of {self._manifest.rows} are allowed: {first}",
                remedy="replace these files and run `embeddings-assets prepare`, or raise --max-bad-share",
            )
