"""A process that keeps encoders from one run to the next, and how to ask it.

A Dagster run is a process of its own, and importing torch and loading four models would take each of them
longer than a small split takes to embed. So a run asks a resident process, started by the first run that
needs one; it ends by itself some time after the last. There is one per data root, version of the code, and
settings of CUDA and threads. It listens on a socket that its user alone can reach; both speak JSON lines.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embeddings_assets.errors import EmbeddingsError, unpacked_error
from embeddings_assets.extraction.report import Progress, SplitReport
from embeddings_assets.pipeline import SplitRequest
from embeddings_assets.workers.process import compute_environment

log = logging.getLogger(__name__)

IDLE_SECONDS = 120.0
_SECONDS_TO_START = 120.0  # of a machine that is busy; importing torch is not part of it
_SECONDS_UNTIL_BUSY = 5.0
_ATTEMPTS = 2  # the process may just be ending, for want of requests, when it is asked
_LONGEST_NAME = 100  # of a socket, in bytes; Linux takes 107, macOS 103
_KEY_LENGTH = 16
_PACKAGE = Path(__file__).parent


class Resident:
    """Where the resident process of a data root is found, and how it is started.

    Args:
        root: the data root.
        idle_seconds: how long a process that this object starts waits for another request before it ends.

    Raises:
        EmbeddingsError: the folder of its socket is not this user's alone.
    """

    def __init__(self, root: Path, *, idle_seconds: float = IDLE_SECONDS) -> None:
        folder = _private_folder()
        self.socket = folder / f"{_key(root)}.sock"
        self.log_file = folder / f"{_key(root)}.log"
        self._idle_seconds = idle_seconds

    def embed(self, request: SplitRequest, progress: Progress | None = None) -> SplitReport:
        """What `EncoderCache.embed` of the resident process does; what it logs is logged here.

        Raises:
            EmbeddingsError: what that raises, or the process cannot be started or ended meanwhile. A split
                that was interrupted resumes at its next request.
        """
        for _ in range(_ATTEMPTS):
            taken_up = False
            for answer in self._answers(request):
                taken_up = True
                if "log" in answer:
                    level, text = answer["log"]
                    log.log(level, "%s", text)
                elif "progress" in answer and progress is not None:
                    progress(*answer["progress"])
                elif "report" in answer:
                    return SplitReport.from_dict(answer["report"])
                elif "error" in answer:
                    raise unpacked_error(answer["error"])
                elif "broken" in answer:
                    raise RuntimeError(f"the resident process failed:\n{answer['broken']}")
            if taken_up:
                break
        raise EmbeddingsError(
            f"The process that keeps the encoders has ended. {self._last_words()}",
            remedy="run it again: it goes on where it stopped; if memory was short, use a smaller batch_size",
        )

    def _answers(self, request: SplitRequest) -> Iterator[dict[str, Any]]:
        """What the process says to a request, line by line, until it has said all or has ended."""
        ended = contextlib.suppress(ConnectionError, json.JSONDecodeError)  # a line may be cut off
        with ended, self._connected() as connection, connection.makefile("rw", encoding="utf-8") as stream:
            stream.write(json.dumps(request.as_dict()) + "\n")
            stream.flush()
            self._wait_until_served(connection)
            for line in stream:
                yield json.loads(line)

    def _wait_until_served(self, connection: socket.socket) -> None:
        """Say why nothing happens, where another run's split is being embedded."""
        connection.settimeout(_SECONDS_UNTIL_BUSY)
        try:
            connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            log.info("the encoders are busy with another run's split; waiting")
        finally:
            connection.settimeout(None)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        deadline = time.monotonic() + _SECONDS_TO_START
        child: subprocess.Popen[bytes] | None = None
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                if connection.connect_ex(str(self.socket)) == 0:
                    yield connection
                    return
            ended = None if child is None else child.poll()
            if child is not None and (ended or time.monotonic() > deadline):
                child.kill()
                raise EmbeddingsError(
                    f"The process that keeps the encoders cannot be started. {self._last_words()}",
                    remedy="look at the log named, or set gpu.engine to local",
                )
            if child is None or ended == 0:  # 0: another was serving, and has just ended
                child = self._start()
            time.sleep(0.05)

    def _start(self) -> "subprocess.Popen[bytes]":
        code = (
            f"import sys; sys.path[:] = {sys.path!r}\n"
            "from embeddings_assets.resident_process import main\n"
            f"main({str(self.socket)!r}, {self._idle_seconds!r})"
        )
        with self.log_file.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # it outlives the run, and Ctrl-C is the run's business
            )

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            said = self.log_file.read_bytes()[-500:].decode(errors="replace").strip()
            return f"Its log {self.log_file} ends: {said}" if said else f"Its log {self.log_file} is empty."
        return ""


def is_supported() -> bool:
    """Whether this system has what it takes: sockets with a name in the file system, and a place for one."""
    name = _folder() / f"{'0' * _KEY_LENGTH}.sock"
    return hasattr(socket, "AF_UNIX") and len(os.fsencode(name)) <= _LONGEST_NAME


@contextlib.contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether this process is the one that serves the socket at `path`; until it ends, however it does."""
    with path.with_suffix(".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"embeddings-assets-{os.getuid()}"


def _private_folder() -> Path:
    folder = _folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise EmbeddingsError(
            f"{folder}: not a folder that only its user can enter.",
            remedy=f"delete {folder}, or set gpu.engine to local",
        )
    return folder


def _key(root: Path) -> str:
    """Names what a resident process must not be shared across."""
    stamps = []
    for path in sorted(_PACKAGE.rglob("*.py")):
        status = path.stat()
        stamps.append((str(path), status.st_size, status.st_mtime_ns))
    identity = [str(root.resolve()), sys.executable, stamps, compute_environment()]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:_KEY_LENGTH]
