"""Hash and look at many image files at once, in order, with bounded memory.

A few files are looked at by threads. Many are given to processes, because reading a header holds the
interpreter lock; and there a file that brings its reader down is named instead of ending the whole.
"""

import contextlib
import queue
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from embeddings_assets.children import Child, close_all, default_workers
from embeddings_assets.datasets.reader import Looked, look, unpacked
from embeddings_assets.errors import EmbeddingsError, ImageError, Reason

# Below this, starting processes (0.1 s each) costs more than they save.
_LEAST_FILES_FOR_PROCESSES = 1024
_LEAST_FILES_PER_PROCESS = 64
_FILES_PER_REQUEST = 128
_FILES_TO_DECODE_PER_REQUEST = 16
# Enough to keep every worker busy while the consumer is behind; never more requests than this are in flight.
_REQUESTS_PER_WORKER = 3
_MOST_WORKERS = 64
_SECONDS_PER_FILE = 120.0  # as long as an image may take to decode when it is embedded


class Inspector:
    """Looks at image files with as many threads or processes as pay.

    Processes start at once, so that they are ready by the time the files are known.

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
        self._idle: queue.SimpleQueue[_Reader] = queue.SimpleQueue()
        self._readers: list[_Reader] = []
        if expected >= _LEAST_FILES_FOR_PROCESSES and self._workers > 1:
            self._workers = min(self._workers, expected // _LEAST_FILES_PER_PROCESS)
            with contextlib.ExitStack() as on_error:
                on_error.callback(self.close)
                for _ in range(self._workers):
                    self._readers.append(_Reader(decode, timeout))
                    self._idle.put(self._readers[-1])
                on_error.pop_all()

    def inspect(self, files: Sequence[str]) -> Generator[Looked, None, None]:
        """What is found in each file, in the order given. To stop before the end ends the processes.

        Raises:
            EmbeddingsError: the machine cannot read a file now, or not in time, or a reading process cannot
                be started or is ended by something other than a file.
        """
        pending: deque[Future[list[Looked]]] = deque()
        answer = self._ask_a_reader if self._readers else self._look
        most = self._workers * _REQUESTS_PER_WORKER
        limit = _FILES_TO_DECODE_PER_REQUEST if self._decode else _FILES_PER_REQUEST
        at_once = max(1, min(limit, len(files) // most))  # few files: some for every worker
        with ThreadPoolExecutor(self._workers, thread_name_prefix="inspect") as pool:
            try:
                for start in range(0, len(files), at_once):
                    pending.append(pool.submit(answer, files[start : start + at_once]))
                    if len(pending) >= most:
                        yield from pending.popleft().result()
                while pending:
                    yield from pending.popleft().result()
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

    def _look(self, paths: Sequence[str]) -> list[Looked]:
        return [look(path, self._decode) for path in paths]

    def _ask_a_reader(self, paths: Sequence[str]) -> list[Looked]:
        reader = self._idle.get()
        try:
            return reader.ask(paths)
        finally:
            self._idle.put(reader)


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
        return [Looked(ImageError(Reason.CORRUPT, f"crashes its reader ({end})"), None)]
