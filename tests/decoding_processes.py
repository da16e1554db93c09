"""The decoding processes that a process has started."""

from collections.abc import Callable
from pathlib import Path

import pytest


def children(pid: int | str = "self") -> list[int]:
    """Decoding processes that a process, by default this one, has started and that still run."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return [child for child in found if b"extraction.worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.fixture
def decoding() -> Callable[[], list[int]]:
    """Those of this test; fixtures of the session may keep others."""
    others = set(children())
    return lambda: [pid for pid in children() if pid not in others]
