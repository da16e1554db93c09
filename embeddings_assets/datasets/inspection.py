"""Hash and look at many image files at once, in order, with bounded memory.

Whatever needs a decoder is looked at in processes: there a file that brings its reader down is named instead
of ending the whole. Headers of JPEG and PNG need none; a few of them are read by threads, many by processes
too, because reading them holds the interpreter lock.
"""

import contextlib
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from embeddings_assets.datasets.reader import Looked, glance, unpacked
from embeddings_assets.datasets.stamps import stamp_of
from embeddings_assets.errors import EmbeddingsError, ImageError, Reason
from embeddings_assets.workers.process import Child, close_all, default_workers

# Below this, starting processes (0.1 s each) costs more than they save.
_LEAST_FILES_FOR_PROCESSES = 1024
_LEAST_FILES_PER_PROCESS = 64
_LEAST_FILES_TO_DECODE_PER_PROCESS = 16
_FILES_PER_REQUEST = 128
_FILES_TO_DECODE_PER_REQUEST = 16
# Enough to keep every worker busy while the consumer is behind; never more requests than this are in flight,
# and as many that wait for what threads have left.
_REQUESTS_PER_WORKER = 3
_MOST_WORKERS = 64
_SECONDS_PER_FILE = 120.0  # as long as an image may take to decode when it is embedded

_Item = TypeVar("_Item")
_Answer = Callable[[Sequence[str]], Sequence[Looked | None]]


class Inspector:
    """Looks at image files with as many threads or processes as pay.

    Where many files are expected, processes start at once, to be ready by the time the files are known.

    Args:
        expected: about how many files there will be.
        workers: files looked at at once, 64 at most; by default one for each core.
        decode: decode the pixels of every file (see `inspect_image`).
        timeout: seconds that a process may take for one file; those of a request that takes longer are asked
            for one by one.

    Raises:
        EmbeddingsError: the system cannot start a process.
    """

    def __init__(
        self,
        expected: int,
        workers: int | None = None,
        *,
        decode: bool = False,
        timeout: float = _SECONDS_PER_FILE,
    ) -> None:
        self._workers = min(workers or default_workers(_MOST_WORKERS), _MOST_WORKERS)
        self._decode = decode
        self._timeout = timeout
        self._idle: queue.SimpleQueue[_Reader] = queue.SimpleQueue()
        self._readers: list[_Reader] = []
        self._left = 0  # files that threads have left to processes
        if expected >= _LEAST_FILES_FOR_PROCESSES:
            self._start_readers(expected)

    def inspect(self, files: Sequence[str]) -> Generator[Looked, None, None]:
        """What is found in each file, in the order given. To stop before the end ends the processes.

        Raises:
            EmbeddingsError: the machine cannot read a file now, or not in time, or a reading process cannot
                be started or is ended by something other than a file.
        """
        if not self._readers and (self._decode or len(files) >= _LEAST_FILES_FOR_PROCESSES):
            self._start_readers(len(files))
        answer: _Answer = self._ask_a_reader if self._readers else _glances
        workers = len(self._readers) or self._workers
        most = workers * _REQUESTS_PER_WORKER
        limit = _FILES_TO_DECODE_PER_REQUEST if self._decode else _FILES_PER_REQUEST
        at_once = max(1, min(limit, len(files) // most))  # few files: some for every worker
        requests = (files[start : start + at_once] for start in range(0, len(files), at_once))
        with ThreadPoolExecutor(workers, thread_name_prefix="inspect") as pool:
            try:
                asked = _ahead(((paths, pool.submit(answer, paths)) for paths in requests), most)
                answered = ((paths, future.result()) for paths, future in asked)
                completed = ((found, self._ask_for_rest(pool, paths, found)) for paths, found in answered)
                # Processes leave nothing: there is no rest to wait for.
                for found, rest in _ahead(completed, most if answer is _glances else 1):
                    others = iter(rest.result() if rest else ())
                    for looked in found:
                        yield next(others) if looked is None else looked
            except BaseException:
                for reader in self._readers:
                    reader.child.kill()  # so that nothing waits for a file that hangs
                pool.shutdown(cancel_futures=True)
                raise

    def dismiss(self) -> None:
        """Let the processes end, without waiting for it."""
        for reader in self._readers:
            reader.child.dismiss()

    def close(self) -> None:
        """End the processes."""
        close_all([reader.child for reader in self._readers])

    def _start_readers(self, files: int) -> None:
        """See to it that there are as many processes as pay for so many files, at least one."""
        least = _LEAST_FILES_TO_DECODE_PER_PROCESS if self._decode else _LEAST_FILES_PER_PROCESS
        paying = max(1, min(self._workers, files // least))
        with contextlib.ExitStack() as on_error:
            on_error.callback(self.close)
            while len(self._readers) < paying:
                self._readers.append(_Reader(self._decode, self._timeout))
                self._idle.put(self._readers[-1])
            on_error.pop_all()

    def _ask_for_rest(
        self, pool: ThreadPoolExecutor, paths: Sequence[str], found: Sequence[Looked | None]
    ) -> Future[list[Looked]] | None:
        """Let processes look at what threads have left of a request, if anything.

        How many files need a process is not known before; there are more processes as there are more files.
        """
        left = [path for path, looked in zip(paths, found, strict=True) if looked is None]
        if not left:
            return None
        self._left += len(left)
        self._start_readers(self._left)
        return pool.submit(self._ask_a_reader, left)

    def _ask_a_reader(self, paths: Sequence[str]) -> list[Looked]:
        reader = self._idle.get()
        try:
            return reader.ask(paths)
        finally:
            self._idle.put(reader)


def _ahead(items: Iterable[_Item], most: int) -> Iterator[_Item]:
    """The items in order, each once up to `most` are drawn."""
    drawn: deque[_Item] = deque()
    for item in items:
        drawn.append(item)
        if len(drawn) >= most:
            yield drawn.popleft()
    while drawn:
        yield drawn.popleft()


def _glances(paths: Sequence[str]) -> list[Looked | None]:
    return [glance(path) for path in paths]


class _Reader:
    """One reading process, started again when a file ends it or holds it up."""

    def __init__(self, decode: bool, timeout: float) -> None:
        self._timeout = timeout
        self.child = Child(
            "from embeddings_assets.datasets.reader import serve\n"
            f"serve(requests, answers, decode={decode!r})"
        )

    def ask(self, paths: Sequence[str]) -> list[Looked]:
        """What the process finds, in the order of `paths`."""
        stamp = stamp_of(paths[0])
        try:
            reply = self.child.ask(list(paths), self._timeout)
        except TimeoutError:
            if len(paths) == 1:
                raise EmbeddingsError(
                    f"{paths[0]}: not read after {self._timeout:g} seconds.",
                    remedy="look at the disk or network it lies on, or remove the file; then run again",
                ) from None
            reply = None
        if reply is not None:
            return list(unpacked(reply))
        if len(paths) > 1:
            self.child.restart()
            return [found for path in paths for found in self.ask([path])]
        crashed, end = self.child.how_it_ended()
        if not crashed:
            raise EmbeddingsError(
                f"{paths[0]}: the process that was reading it was ended from outside ({end}).",
                remedy="if memory was short, use fewer --workers; then run the same command again",
            )
        self.child.restart()
        return [Looked(ImageError(Reason.CORRUPT, f"crashes its reader ({end})"), stamp)]
