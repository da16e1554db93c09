"""Runs of the engine that can be killed, each forked from a process that has imported everything."""

import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Self

import numpy as np
from stub_encoder import StubEncoder
from test_extraction_faults import run

from embeddings_assets.settings import DataPaths
from embeddings_assets.store import staging

# pyarrow would import pandas, and numpy its dice, in every run anew.
_SERVER = """
import json, os, sys
import numpy.random, pandas
sys.path.insert(0, sys.argv[1])
from forked_runs import run_and_exit
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        run_and_exit(json.loads(line))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
_DISK_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "fcntl.flock")


class StallingEncoder(StubEncoder):
    """Embeds until so many images are in the log, and then never again."""

    def __init__(self, *, log: Path, stall_at: int) -> None:
        super().__init__(seconds=0.01, log=log)
        self._written = log
        self._stall_at = stall_at

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        if self._written.stat().st_size >= self._stall_at:
            time.sleep(3600)
        return super().encode(pixels)


class ForkedRuns:
    """Starts runs one after the other; ends with the process that uses it."""

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def start(self, root: Path, log: Path, **how: Any) -> int:
        """Start a run (see `run_and_exit`); its process id."""
        request = {"root": str(root), "log": str(log), **how}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return self._line()

    def exit_code(self) -> int:
        """How the run that was started last ends; as `subprocess` tells it."""
        return self._line()

    def _line(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())


def run_and_exit(request: dict[str, Any]) -> None:
    """Run the engine as the request says, and end the process.

    root, log: the data root, and a file that gets one byte for each image embedded
    stall_at: the encoder does nothing more after so many images
    kill_at: the process kills itself before this event of the disk, counted from the beginning of the commit
    can_exchange: whether the file system can exchange two folders
    """
    code = 1
    try:
        if not request.get("can_exchange", True):
            staging._exchange = lambda first, second: False
        if "kill_at" in request:
            _kill_at(request["kill_at"], request["root"])
        encoder = StallingEncoder(log=Path(request["log"]), stall_at=request.get("stall_at", sys.maxsize))
        run(DataPaths.from_root(Path(request["root"])), encoder, workers=2)
        code = 0
    except BaseException:  # noqa: BLE001 - told by the exit code
        traceback.print_exc()
    finally:
        os._exit(code)


def _kill_at(number: int, root: str) -> None:
    seen = 0

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in _DISK_EVENTS:
            return
        path = arguments[0] if arguments and isinstance(arguments[0], str | os.PathLike) else ""
        begins = event == "os.mkdir" and os.fspath(path).endswith("assembled")
        if begins or seen:
            # Where a whole tree is removed, names are relative to an open folder.
            if begins or event in ("os.remove", "os.rmdir", "fcntl.flock") or root in os.fspath(path):
                seen += 1
            if seen == number:
                os.kill(os.getpid(), 9)

    sys.addaudithook(look)
