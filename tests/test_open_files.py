"""What fails leaves no file open."""

import shutil
import sys
from pathlib import Path

import pytest
from image_tree import write_tree
from test_extraction_faults import run

from embeddings_assets.errors import EmbeddingsError, SplitBusyError
from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.store.staging import locked_staging


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_staging_folder_that_vanishes(tmp_path: Path) -> None:
    staging, root, target = tmp_path / "root" / "split", tmp_path / "root", tmp_path / "target"
    before = open_files()
    with pytest.raises(FileNotFoundError), locked_staging(staging, root, target):
        shutil.rmtree(root)
    assert open_files() == before


def test_a_staging_folder_that_is_held(tmp_path: Path) -> None:
    staging, root, target = tmp_path / "root" / "split", tmp_path / "root", tmp_path / "target"
    with locked_staging(staging, root, target):
        before = open_files()
        with pytest.raises(SplitBusyError), locked_staging(staging, root, target):
            pass
        assert open_files() == before
    assert not root.exists()


def test_decoding_processes_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_tree(tmp_path / "data")
    before = open_files()
    with Decoders() as decoders:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", "/nonexistent/python")
            with pytest.raises(EmbeddingsError, match="cannot be started"):
                run(paths, decoders=decoders)
        assert open_files() == before
        assert run(paths, decoders=decoders).ledger == {}
    assert open_files() == before
