"""The process's heap between batches: kept while a model computes on the CPU, given back after it.

glibc returns large freed blocks to the system at once, and every batch then faults the same pages in anew: up
to 980,000 faults for 32 images of a ViT-B/14, a tenth to a fifth of its time. Whether it does depends on what
happens to lie behind them in the heap, so that equal runs differed by that much. See mallopt(3).
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_KEPT = 1 << 30  # bytes of one block; the largest of a batch of 32 is 101 MB
_MOST_KEPT = (1 << 31) - 1  # bytes at the end of the heap; mallopt takes an int
_USERS_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed for the next batch; whether it will.

    Process-wide. Not where the environment sets malloc up itself, nor without glibc.
    """
    libc = _glibc()
    if libc is None or any(name in os.environ for name in _USERS_OWN):
        return False
    kept = [libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT), libc.mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)]
    return all(kept)


def give_freed_memory_back() -> None:
    """Return what malloc keeps to the system. It keeps what is freed later as before."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
