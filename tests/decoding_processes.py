"""The decoding processes that a process has started."""

from pathlib import Path


def children(pid: int | str = "self") -> list[int]:
    """Decoding processes that a process, by default this one, has started and that still run."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in found if b"extraction.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]
