"""How much memory there is, and the most that processes have held of it. Numbers in bytes; 0 if unknown."""

import contextlib
import os
import sys
from pathlib import Path

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_RESET_PEAK = "5"  # man 5 proc: /proc/pid/clear_refs


def host_memory() -> int:
    """Memory of the machine, or of the container that this process is confined to."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            total = min(total, int(Path(name).read_text()))
    return total


def reset_peak() -> None:
    """Let `peak_bytes` of this process count from now, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)


def peak_bytes(pid: int | None = None) -> int:
    """The most resident memory that a process has held; this one by default."""
    try:
        status = Path(f"/proc/{pid or os.getpid()}/status").read_text()
    except OSError:
        return _peak_of_this_process() if pid is None else 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def _peak_of_this_process() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
