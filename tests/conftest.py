"""Fixtures shared by every test file: reference material where it is present."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


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
    if not done.is_file():
        subprocess.run([sys.executable, str(script), str(folder)], check=True, capture_output=True)
        done.write_text("all tensors as expected\n")
    return folder
