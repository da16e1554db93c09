"""The worker processes that a process has started and that still run."""

import contextlib
import os
from pathlib import Path


def children(pid: int | None = None) -> list[int]:
    """Decoding processes that a process, by default this one, has started and that still run."""
    return started_by(os.getpid() if pid is None else pid, "extraction.worker")


def started_by(pid: int, code: str) -> list[int]:
    """Running children of a process whose command line holds `code`.

    Asked of every process for its parent: the lists of children are a thread's, which may end meanwhile.
    """
    found = []
    for place in Path("/proc").iterdir():
        if not place.name.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid and code.encode() in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found
