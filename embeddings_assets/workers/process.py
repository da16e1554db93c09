"""Processes of our own module that answer requests: one JSON line in, one or more JSON lines out.

Not those of `multiprocessing`, which would import the caller's script again. Such a process ends when its
input does, so it does not outlive the one that asks; and whatever ends it or holds it up is told, not shared.
"""

import contextlib
import json
import logging
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from embeddings_assets.errors import EmbeddingsError

READY = "ready"

# A file cannot be blamed for other ends, such as a kill for want of memory, or SIGBUS: no file is mapped, but
# the memory is that pixels are written to.
_CRASHES = frozenset(-number for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE))
_SECONDS_TO_START = 120.0  # of a machine that is busy
_ATTEMPTS_TO_START = 3  # of a process that is killed meanwhile
_SECONDS_TO_END = 5.0  # then a process that cannot even be killed is left to the system
_SECONDS_TO_LOOK_UP = 1.0  # a killed process on a disk that hangs keeps its pipes open

_PREAMBLE = """import os, sys
sys.path[:] = {!r}
requests, answers = os.fdopen({}), os.fdopen({}, "w")
"""


class KilledError(Exception):
    """`Child.kill` was called while something waited for an answer."""


class Child:
    """One process, started at once; started again by `restart`.

    Args:
        code: Python source that answers the lines of the stream `requests` on the stream `answers`, once it
            has written READY there. It imports what this process can import. What it prints goes where its
            errors go, and is no answer.
        share: file descriptors that the process inherits.
        single_threaded: numerical libraries use one thread; off for a process with a device to itself.
        start_timeout: seconds after which a process that has not said READY is given up.

    Raises:
        EmbeddingsError: the system cannot start a process.
    """

    def __init__(
        self,
        code: str,
        *,
        share: Sequence[int] = (),
        single_threaded: bool = True,
        start_timeout: float = _SECONDS_TO_START,
    ) -> None:
        self._code = code
        self._share = share
        # Where there is a process for each core, threads of their own only fight.
        self._limits = {"OMP_NUM_THREADS": "1"} if single_threaded else {}
        self._start_timeout = start_timeout
        self._is_killed = False
        self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_stopped(self) -> bool:
        """Whether something has stopped the process (SIGSTOP), so that its work is not why it is silent."""
        if not hasattr(os, "waitid"):
            return False
        try:
            state = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return state is not None

    def ask(self, request: object, timeout: float | None = None) -> Any:
        """The first answer to a request (see `send` and `listen`)."""
        self.send(request)
        return self.listen(timeout)

    def send(self, request: object) -> None:
        """Send one request, once the process is ready.

        Raises:
            EmbeddingsError: the process cannot be started; the next request tries again.
            KilledError: `kill` was called.
        """
        if self._is_closed:
            self._start()
        if not self._is_ready:
            self._await_ready()
        with contextlib.suppress(BrokenPipeError):  # `listen` tells
            self._requests.write(json.dumps(request).encode("ascii") + b"\n")
            self._requests.flush()

    def listen(self, timeout: float | None = None) -> Any:
        """The next line of the answer; None if the process ended instead.

        Raises:
            TimeoutError: nothing for so many seconds. The process goes on; listen again, or restart it.
            KilledError: `kill` was called.
        """
        line = self._read_line(timeout)
        return json.loads(line) if line else None

    def how_it_ended(self) -> tuple[bool, str]:
        """Whether the process crashed of itself, and the name of its end; for one that answers no more."""
        try:
            code = self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return code in _CRASHES, _name_of(code)

    def last_words(self) -> str:
        """The end of what a process has printed that has ended."""
        self._printed.seek(0)
        return self._printed.read()[-500:].decode(errors="replace").strip()

    def restart(self) -> None:
        """End the process at once and start another.

        Raises:
            EmbeddingsError: the system cannot start a process.
        """
        self._process.kill()
        self.close()
        self._start()

    def kill(self) -> None:
        """End the process at once and for good; may be called while another thread waits for an answer."""
        self._is_killed = True
        self._process.kill()

    def dismiss(self) -> None:
        """Close the input, which ends the process when it has answered."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()

    def close(self) -> None:
        """End the process and free what belongs to it. Closing twice is allowed."""
        close_all([self])

    def _start(self) -> None:
        try:
            with contextlib.ExitStack() as mine, contextlib.ExitStack() as theirs:
                self._printed = mine.enter_context(tempfile.TemporaryFile())
                requests, into = os.pipe()
                theirs.callback(os.close, requests)
                self._requests = mine.enter_context(os.fdopen(into, "wb"))
                out, answers = os.pipe()
                theirs.callback(os.close, answers)
                self._answers = mine.enter_context(os.fdopen(out, "rb"))
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _PREAMBLE.format(sys.path, requests, answers) + self._code],
                    stdin=subprocess.DEVNULL,
                    stdout=self._printed,
                    stderr=self._printed,
                    start_new_session=True,  # Ctrl-C is the asking process's business
                    pass_fds=[*self._share, requests, answers],
                    env={**os.environ, **self._limits},
                )
                self._files = mine.pop_all()
        except OSError as error:
            raise EmbeddingsError(f"A process cannot be started ({error}).") from error
        self._received = b""
        self._is_ready = self._is_closed = False
        if self._is_killed:
            self._process.kill()

    def _await_ready(self) -> None:
        """Wait for READY. A process that is killed meanwhile is started again, a few times."""
        for attempt in range(_ATTEMPTS_TO_START):
            if attempt:
                self.restart()
            try:
                line = self._read_line(self._start_timeout)
                if line.strip() == READY.encode():
                    self._is_ready = True
                    return
            except TimeoutError:
                self._process.kill()
                end = f"not ready after {self._start_timeout:g} seconds"
                break
            if line:
                self._process.kill()  # it speaks out of turn
            _, end = self.how_it_ended()
            if self._process.returncode >= 0:
                break
        said = self.last_words()
        self.close()
        raise EmbeddingsError(f"A process cannot be started ({end}): {said or 'it has printed nothing.'}")

    def _read_line(self, timeout: float | None) -> bytes:
        """The next line; empty at the end."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        handle = self._answers.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            while b"\n" not in self._received:
                left = min(deadline - time.monotonic(), _SECONDS_TO_LOOK_UP)
                is_readable = selector.select(max(0.0, left))
                if self._is_killed:
                    raise KilledError
                if is_readable:
                    data = os.read(handle, 1 << 16)
                    if not data:
                        return b""
                    self._received += data
                elif time.monotonic() >= deadline:
                    raise TimeoutError
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _free(self) -> None:
        self._files.close()
        self._is_closed = True


def close_all(children: Sequence[Child]) -> None:
    """End processes and free what belongs to them; those that do not end by themselves are killed.

    All of them together are waited for no longer than one of them would be.
    """
    for child in children:
        child.dismiss()
    _wait_for(children)
    for child in children:
        child._process.kill()
    _wait_for(children)
    for child in children:
        child._free()


def _wait_for(children: Sequence[Child]) -> None:
    deadline = time.monotonic() + _SECONDS_TO_END
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child._process.wait(max(0.0, deadline - time.monotonic()))


@contextlib.contextmanager
def logs_told(say: Callable[..., object], gone: type[Exception]) -> Iterator[None]:
    """What the package logs is also told to the process that asks, as `say(log=[level, text])`.

    Args:
        gone: what `say` raises where nobody listens any more; that shows at the next answer.
    """
    package = logging.getLogger("embeddings_assets")
    handler = _Teller(say, gone)
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)


class _Teller(logging.Handler):
    def __init__(self, say: Callable[..., object], gone: type[Exception]) -> None:
        super().__init__(logging.INFO)
        self._say = say
        self._gone = gone

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(self._gone):
            self._say(log=[record.levelno, record.getMessage()])


def default_workers(most: int) -> int:
    """One for each core that this process may use, but not more than `most`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(most, cores)


def _name_of(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"
