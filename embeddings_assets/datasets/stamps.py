"""Telling from the outside whether a file has changed."""

import os
from pathlib import Path
from typing import NamedTuple

# Clocks of file systems tick up to 10 ms apart: a file written this shortly before it was looked at may be
# written again without its time changing.
_UNSETTLED_NS = 100_000_000


class Stamp(NamedTuple):
    """Size in bytes and time of last change in nanoseconds of a file or folder."""

    size: int
    mtime_ns: int

    def settled(self, now_ns: int) -> bool:
        """Whether a change after `now_ns` is sure to give another stamp."""
        return self.mtime_ns < now_ns - _UNSETTLED_NS


def stamp_of(path: str | Path) -> Stamp | None:
    """The stamp of what is at `path`, links followed; None if nothing can be seen there."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of 100,000 files costs more than the call
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns)
