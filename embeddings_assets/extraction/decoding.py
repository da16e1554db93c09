"""Decoding ahead of the device: manifest rows in, batches of pixels in row order out.

Images are decoded by processes of our own (see `worker.py`): a decoder that crashes or hangs takes nothing
with it, and the interpreter lock of this process is left to the device.
"""

import contextlib
import os
import queue
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np

from embeddings_assets.errors import EmbeddingsError, ImageError, Reason, unpacked_error
from embeddings_assets.extraction.memory import peak_bytes
from embeddings_assets.extraction.worker import (
    MEMORY_BYTES,
    MOST_IMAGES,
    PIXELS_AT,
    ToPixels,
    in_hand,
    packed,
    set_in_hand,
)
from embeddings_assets.store.manifest import Crop
from embeddings_assets.workers.process import Child, close_all

_BATCHES_AHEAD = 2
_ATTEMPTS = 3  # at images whose worker is killed from outside
_LOOKS_PER_TIMEOUT = 10  # at which image a silent worker has in hand


@dataclass(frozen=True)
class ImageTask:
    """One image to decode: its row in the manifest, file, expected digest, and the part that is used."""

    position: int
    path: Path
    sha256: str
    crop: Crop | None = None


@dataclass(frozen=True)
class PixelBatch:
    """One decoded batch of a shard.

    Attributes:
        shard: number of the shard it belongs to.
        positions: manifest rows of `pixels`.
        pixels: uint8 [n, size, size, 3].
        failures: (manifest row, error) of the images that could not be used.
    """

    shard: int
    positions: list[int]
    pixels: np.ndarray | None
    failures: list[tuple[int, ImageError]]


class Decoders:
    """Decoding processes, started when the first image is to be decoded and kept until `close`.

    Args:
        timeout: seconds after which a worker that is still at the same image counts as stuck.
    """

    def __init__(self, timeout: float = 120.0) -> None:
        self._timeout = timeout
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batches(
        self, batches: Iterable[tuple[int, list[ImageTask]]], to_pixels: ToPixels, workers: int
    ) -> Generator[PixelBatch, None, None]:
        """Decode `(shard, tasks)` batches with so many workers, at most two batches ahead of the consumer.

        Whatever ends this before the last batch ends the workers at once, at whatever file they are; others
        are started when they are needed again.

        Raises:
            EmbeddingsError: a worker cannot be started, a file holds one up or has it killed, or the machine
                cannot read it now.
        """
        how = packed(to_pixels)
        idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
            waiting: deque[_Batch] = deque()
            started = False
            try:
                for shard, tasks in batches:
                    if not started:
                        started = True
                        for worker in self._started(workers):
                            idle.put(worker)
                    size = min(MOST_IMAGES, -(-len(tasks) // workers))
                    waiting.append(_Batch(shard, tasks, how, idle, pool, size))
                    if len(waiting) > _BATCHES_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BaseException:
                for worker in self._workers:
                    worker.child.kill()  # so that nothing waits for a file that hangs
                pool.shutdown(wait=True, cancel_futures=True)
                self.close()
                raise

    def peak_bytes(self) -> int:
        """The most memory that each worker has held, added up."""
        return sum(peak_bytes(worker.child.pid) for worker in self._workers)

    def close(self) -> None:
        """End the processes."""
        workers, self._workers = self._workers, []
        close_all([worker.child for worker in workers])
        for worker in workers:
            worker.close()

    def _started(self, count: int) -> "Sequence[_Worker]":
        while len(self._workers) < count:
            self._workers.append(_Worker(self._timeout))
        return self._workers[:count]


class _Batch:
    """A batch being decoded, as requests of a few images each that any worker can take."""

    def __init__(
        self,
        shard: int,
        tasks: list[ImageTask],
        how: str,
        idle: "queue.SimpleQueue[_Worker]",
        pool: ThreadPoolExecutor,
        size: int,
    ) -> None:
        self._shard = shard
        self._tasks = tasks
        self._how = how
        self._idle = idle
        self._requests = [
            pool.submit(self._decode, tasks[first : first + size]) for first in range(0, len(tasks), size)
        ]

    def result(self) -> PixelBatch:
        pixels, failures = _joined([request.result() for request in self._requests])
        return PixelBatch(
            self._shard,
            [task.position for task in self._tasks if task.position not in failures],
            pixels,
            sorted(failures.items()),
        )

    def _decode(self, tasks: Sequence[ImageTask]) -> "_Decoded":
        worker = self._idle.get()
        try:
            return worker.decode(tasks, self._how)
        finally:
            self._idle.put(worker)


_Decoded = tuple[np.ndarray | None, dict[int, ImageError]]
"""uint8 [n, size, size, 3] of the images that could be used, and the errors of the others by manifest row."""


def _joined(parts: Sequence[_Decoded]) -> _Decoded:
    arrays = [pixels for pixels, _ in parts if pixels is not None]
    failures = {position: error for _, failed in parts for position, error in failed.items()}
    return np.concatenate(arrays) if arrays else None, failures


class _Worker:
    """One decoding process and the memory it shares with this one."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        with contextlib.ExitStack() as kept:
            handle = _unnamed_file()
            kept.callback(os.close, handle)
            os.ftruncate(handle, MEMORY_BYTES)
            self._memory = kept.enter_context(mmap(handle, MEMORY_BYTES))
            self.child = Child(
                f"from embeddings_assets.extraction.worker import serve\nserve(requests, answers, {handle})",
                share=(handle,),
            )
            kept.callback(self.child.close)
            self._kept = kept.pop_all()

    def decode(self, tasks: Sequence[ImageTask], how: str) -> _Decoded:
        """Decode a few images; what a crash or a stop interrupts is tried again, one image at a time.

        Raises:
            EmbeddingsError: one image holds the process up, has it killed again and again, or cannot be read
                now.
        """
        try:
            return self._ask(tasks, how)
        except _EndedError:
            self.child.restart()
        return _joined([self._alone(task, how) for task in tasks])

    def close(self) -> None:
        self._kept.close()

    def _alone(self, task: ImageTask, how: str) -> _Decoded:
        end = ""
        for _ in range(_ATTEMPTS):
            try:
                return self._ask([task], how)
            except _EndedError as error:
                crashed, end = error.crashed, error.end
                self.child.restart()
            if crashed:
                found = ImageError(Reason.CORRUPT, f"crashes its decoder ({end})")
                return None, {task.position: found}
        raise EmbeddingsError(
            f"{task.path}: the process that was decoding it was ended from outside ({end}).",
            remedy="if memory was short, use fewer --workers; then run the same command again",
        )

    def _ask(self, tasks: Sequence[ImageTask], how: str) -> _Decoded:
        files = [(os.fspath(task.path), task.sha256, task.crop) for task in tasks]
        set_in_hand(self._memory, None)
        self.child.send({"to_pixels": how, "files": files})
        answer = self._answer(tasks)
        if answer is None:
            raise _EndedError(*self.child.how_it_ended())
        if "error" in answer:
            raise unpacked_error(answer["error"])
        if "broken" in answer:
            raise RuntimeError(f"{answer['path']}: decoding it failed:\n{answer['broken']}")
        failed = {
            tasks[index].position: ImageError(Reason(reason), detail)
            for index, reason, detail in answer["failed"]
        }
        if len(failed) == len(tasks):
            return None, failed
        shape = (len(tasks) - len(failed), *answer["shape"])
        pixels = np.frombuffer(self._memory, np.uint8, int(np.prod(shape)), PIXELS_AT).reshape(shape)
        return pixels.copy(), failed

    def _answer(self, tasks: Sequence[ImageTask]) -> dict[str, Any] | None:
        """What the process answers; waited for as long as it gets on from image to image."""
        at: int | None = None
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                answer: dict[str, Any] | None = self.child.listen(self._timeout / _LOOKS_PER_TIMEOUT)
                return answer
            except TimeoutError:
                before, at = at, in_hand(self._memory)
            if at != before:
                deadline = time.monotonic() + self._timeout
            elif time.monotonic() >= deadline:
                break
        if at is None or self.child.is_stopped:
            raise _EndedError(crashed=False, end=f"not heard of for {self._timeout:g} seconds")
        raise EmbeddingsError(
            f"{tasks[at].path}: not decoded after {self._timeout:g} seconds.",
            remedy="look at the disk or network it lies on, or remove the file and run `prepare`",
        )


class _EndedError(Exception):
    def __init__(self, crashed: bool, end: str) -> None:
        super().__init__(end)
        self.crashed = crashed
        self.end = end


def _unnamed_file() -> int:
    """A handle of a file without a name: nothing is left behind, however the processes end."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("pixels")
    with tempfile.TemporaryFile() as stream:
        return os.dup(stream.fileno())
