"""Reference material where it is present, and how the suite is spread over cores."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from decoding_processes import children
from filelock import FileLock

from embeddings_assets.settings import DataPaths

REPOSITORY = Path(__file__).resolve().parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: the test processes have a core each, and more threads only fight.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests run in one process, as they share what they built; those of the web UI in the same."""

    def group_of(item: pytest.Item) -> str:
        return "ui" if item.get_closest_marker("browser") else item.path.stem

    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    # The longest first, so that no process has it before it while the others are done.
    items.sort(key=lambda item: group_of(item) != "ui")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data kept beside the repository: official lists, real images, the parity kit."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no reference data at {folder}")
    return folder


@pytest.fixture(scope="session")
def parity_kit(shared: Path) -> Path:
    """Seeded full-size checkpoints, written once per machine by the kit's own script."""
    script = shared / "parity" / "make_weights.py"
    folder = Path(tempfile.gettempdir()) / "embeddings-assets-parity-kit"
    done = folder / "complete"
    with FileLock(f"{folder}.lock"):
        if not done.is_file():
            subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
            done.write_text("all tensors as expected\n")
    return folder


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    """An empty data root."""
    return DataPaths.from_root(tmp_path / "data")


@pytest.fixture
def decoding() -> Callable[[], list[int]]:
    """The decoding processes of this test that still run; fixtures of the session may keep others."""
    others = set(children())
    return lambda: [pid for pid in children() if pid not in others]
