"""Decoding ahead of the device: manifest rows in, batches of pixels in row order out.

Pillow releases the interpreter lock while it decodes and resizes, so threads keep every core busy.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from embeddings_assets.errors import ImageError
from embeddings_assets.images import decode_image

ToPixels = Callable[[Image.Image], np.ndarray]

_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class ImageTask:
    """One image to decode: its row number in the manifest, file and expected digest."""

    position: int
    path: Path
    sha256: str


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


def decode_batches(
    batches: Iterable[tuple[int, list[ImageTask]]], to_pixels: ToPixels, workers: int
) -> Iterator[PixelBatch]:
    """Decode `(shard, tasks)` batches with `workers` threads, at most two batches ahead of the consumer."""
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[int, list[ImageTask], list[Future[np.ndarray]]]] = deque()
        try:
            for shard, tasks in batches:
                waiting.append((shard, tasks, [pool.submit(_pixels, task, to_pixels) for task in tasks]))
                if len(waiting) > _BATCHES_AHEAD:
                    yield _collect(*waiting.popleft())
            while waiting:
                yield _collect(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _pixels(task: ImageTask, to_pixels: ToPixels) -> np.ndarray:
    with decode_image(task.path, sha256=task.sha256) as image:
        return to_pixels(image)


def _collect(shard: int, tasks: list[ImageTask], futures: list[Future[np.ndarray]]) -> PixelBatch:
    positions: list[int] = []
    arrays: list[np.ndarray] = []
    failures: list[tuple[int, ImageError]] = []
    for task, future in zip(tasks, futures, strict=True):
        try:
            arrays.append(future.result())
            positions.append(task.position)
        except ImageError as error:
            failures.append((task.position, error))
    return PixelBatch(shard, positions, np.stack(arrays) if arrays else None, failures)
