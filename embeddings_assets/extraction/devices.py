"""One split on several devices of this machine: a process for each, all over the same plan of shards.

Batches never straddle shards, so which device fills a shard decides nothing. This process hands out the
shards, counts, and commits what lies staged in the end. A process tells of every batch; one that falls silent
for longer than anything takes that it does between two batches is given up, and the run with it.
"""

import base64
import contextlib
import logging
import pickle
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

from embeddings_assets.errors import EmbeddingsError, ImageError, Reason, unpacked_error
from embeddings_assets.extraction.filling import Filled, StageClock, check_bad
from embeddings_assets.extraction.job import Job
from embeddings_assets.extraction.memory import peak_bytes
from embeddings_assets.extraction.report import Progress
from embeddings_assets.extraction.source import EncoderSource
from embeddings_assets.workers.process import Child, close_all

log = logging.getLogger(__name__)

# Of a request: few enough to share the work evenly, enough to keep the pauses between requests rare.
_MOST_SHARDS = 8
_REQUESTS_PER_DEVICE = 4

# More than loading weights from a slow disk, an image that hangs, or a large batch on a slow CPU take.
SECONDS_OF_SILENCE = 900.0


def fill_on_devices(
    job: Job,
    source: EncoderSource,
    devices: Sequence[str],
    most_bad: int,
    clock: StageClock,
    progress: Progress,
) -> Filled:
    """Stage every shard that is not, with one process per device (`cuda:0`, `cuda:1`, ...).

    Raises:
        BadImagesError: as soon as more images are unusable than allowed.
        EmbeddingsError: what stopped a device.
    """
    coordinator = _Coordinator(job, most_bad, len(devices), clock, progress)
    if coordinator.resume():
        job = replace(job, workers=max(1, job.workers // len(devices)))
        sent = [_sent(job, source.on(device)) for device in devices]
        with _children(len(devices)) as children, ThreadPoolExecutor(len(children), "device") as pool:
            try:
                working = [
                    pool.submit(coordinator.work, number, device, children[number], sent[number])
                    for number, device in enumerate(devices)
                ]
                _await(working)
            except BaseException:
                for child in children:
                    child.kill()  # ends the waiting threads
                raise
    filled = coordinator.filled
    return replace(
        filled,
        device=", ".join(devices) if filled.computed else "",
        workers=job.workers * len(devices),
        peak_bytes=filled.peak_bytes + peak_bytes(),
    )


def _await(working: "Sequence[Future[None]]") -> None:
    done, _ = wait(working, return_when=FIRST_EXCEPTION)
    for one in done:
        one.result()


class _Coordinator:
    """Hands out requests for shards and adds up what the processes tell, which counts from their start."""

    def __init__(self, job: Job, most_bad: int, devices: int, clock: StageClock, progress: Progress) -> None:
        self._job = job
        self._most_bad = most_bad
        self._clock = clock
        self._progress = progress
        self._requests: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self._resumed = self._bad_resumed = 0
        self._parts = [Filled()] * devices
        self._done = [0] * devices
        self._bad: list[list[tuple[str, ImageError]]] = [[] for _ in range(devices)]
        self._lock = threading.Lock()

    @property
    def filled(self) -> Filled:
        """What all processes together have done so far."""
        return Filled(
            computed=sum(part.computed for part in self._parts),
            reused=sum(part.reused for part in self._parts),
            resumed=self._resumed,
            batch_size=min((part.batch_size for part in self._parts if part.batch_size), default=0),
            peak_bytes=sum(part.peak_bytes for part in self._parts),
            peak_device_bytes=max(part.peak_device_bytes for part in self._parts),
        )

    def resume(self) -> bool:
        """Count what is staged, and make requests of the rest, if there is any."""
        plan = self._job.shards
        missing = []
        for index in range(plan.count):
            shard = plan.staged(index, self._job.width)
            if shard is None:
                missing.append(index)
            else:
                self._resumed += len(shard.positions)
                self._bad_resumed += shard.ledger.num_rows
        self._tell()
        check_bad(self._job.manifest, [], self._bad_resumed, self._most_bad)
        size = max(1, min(_MOST_SHARDS, len(missing) // (len(self._parts) * _REQUESTS_PER_DEVICE)))
        for first in range(0, len(missing), size):
            self._requests.put(missing[first : first + size])
        return bool(missing)

    def work(self, number: int, device: str, child: Child, sent: str) -> None:
        """Let one process fill shards as long as there are any."""
        seconds: dict[str, float] = {}
        self._answer(number, device, child, sent)
        while (shards := self._next()) is not None:
            answer = self._answer(number, device, child, shards)
            seconds = answer["seconds"]
            with self._lock:
                self._parts[number] = Filled(**answer["filled"])
                self._bad[number] = [
                    (path, ImageError(Reason(reason), detail)) for path, reason, detail in answer["bad"]
                ]
                bad = [one for found in self._bad for one in found]
                check_bad(self._job.manifest, bad, self._bad_resumed, self._most_bad)
        with self._lock:
            self._clock.add(seconds, 1 / len(self._parts))

    def _next(self) -> list[int] | None:
        try:
            return self._requests.get_nowait()
        except queue.Empty:
            return None

    def _answer(self, number: int, device: str, child: Child, request: object) -> dict[str, Any]:
        """The last line of what a process tells about a request; passes on what it tells before."""
        child.send(request)
        while True:
            try:
                said: dict[str, Any] | None = child.listen(SECONDS_OF_SILENCE)
            except TimeoutError:
                raise EmbeddingsError(
                    f"{device}: not heard of for {SECONDS_OF_SILENCE:g} seconds.",
                    remedy="look at the device (nvidia-smi), then run the same command again",
                ) from None
            if said is None:
                end = " ".join([child.how_it_ended()[1], child.last_words()]).strip()
                raise EmbeddingsError(
                    f"{device}: the process that was using it has ended ({end}).",
                    remedy="if memory was short, use a smaller --batch-size; then run the same command again",
                )
            if "log" in said:
                level, text = said["log"]
                log.log(level, "%s: %s", device, text)
            elif "done" in said:
                with self._lock:
                    self._done[number] = max(self._done[number], said["done"])
                    self._tell()
            elif "broken" in said:
                raise RuntimeError(f"{device}: the process that was using it failed:\n{said['broken']}")
            elif "error" in said:
                raise unpacked_error(said["error"])
            else:
                return said

    def _tell(self) -> None:
        done = self._resumed + self._bad_resumed + sum(self._done)
        self._progress(done, self._job.manifest.rows)


@contextlib.contextmanager
def _children(count: int) -> Iterator[list[Child]]:
    children: list[Child] = []
    try:
        for _ in range(count):
            code = "from embeddings_assets.extraction.device_process import serve\nserve(requests, answers)"
            children.append(Child(code, single_threaded=False))
        yield children
    finally:
        close_all(children)


def _sent(job: Job, source: EncoderSource) -> str:
    return base64.b64encode(pickle.dumps((job, source))).decode("ascii")
