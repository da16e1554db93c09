"""The process's heap between batches: kept while a model computes on the CPU, given back after it.

glibc returns large freed blocks to the system at once, and every batch then faults the same pages in anew: up
to 980,000 faults for 32 images of a ViT-B/14, a tenth to a fifth of its time. Whether it does depends on what
happens to lie behind them in the heap, so that equal runs differed by that much. See mallopt(3).
"""

import ctypes
import sys

from embeddings_assets.settings import malloc_is_set_up

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
# Bytes of the largest block that is kept; of a batch of 32 it is 101 MB. glibc before 2.35 takes 32 MB.
_LARGEST_KEPT = (1 << 30, 32 << 20)
_MOST_KEPT = (1 << 31) - 1  # bytes at the end of the heap; mallopt takes an int


def keep_freed_memory() -> bool:
    """Let malloc keep what is freed for the next batch; whether it will.

    Process-wide and for good. Not where the environment sets malloc up itself, nor without glibc. In threads
    beside the main one it holds for blocks well below 64 MB, the size of their heaps.
    """
    libc = _glibc()
    if libc is None or malloc_is_set_up():
        return False
    # The first call must have succeeded: the second alone would freeze the threshold of the first at 128 kB.
    return (
        any(libc.mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_KEPT)
        and libc.mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT) == 1
    )


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
