"""Hash and look at many image files at once, in order, with bounded memory.

Threads: reading and hashing release the interpreter lock. Only the facts of an image are kept.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from embeddings_assets.errors import ImageError
from embeddings_assets.images import ImageFacts, inspect_image

Item = TypeVar("Item")
Result = TypeVar("Result")

# Enough to keep every thread busy while the consumer is behind; never more files than this are in flight.
_IN_FLIGHT_PER_WORKER = 16
_MOST_IN_FLIGHT = 256


def inspect_images(files: Iterable[Path], workers: int | None = None) -> Iterator[ImageFacts | ImageError]:
    """The facts of each file, or why it cannot be used, in the order given."""
    return _map_bounded(_inspect, files, workers or default_workers())


def default_workers() -> int:
    """One thread per core that this process may use, and as many again to wait for the disk."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(32, 2 * cores)


def _inspect(file: Path) -> ImageFacts | ImageError:
    try:
        return inspect_image(file)
    except ImageError as error:
        return error


def _map_bounded(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    window = min(_MOST_IN_FLIGHT, workers * _IN_FLIGHT_PER_WORKER)
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="inspect") as pool:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
