"""Where a split goes: who holds the place, what of the user is there, what cannot be written, the swap."""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from image_tree import DATASET
from stub_encoder import StubEncoder
from test_datasets_refused_by_the_system import without_privileges
from test_extraction import ROWS, content, failed, folder, run

from embeddings_assets.errors import SplitBusyError, StoreError
from embeddings_assets.extraction.engine import store_vectors
from embeddings_assets.settings import DataPaths
from embeddings_assets.store import staging
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.reading import load_matrix

pytest_plugins = ("extraction_fixtures",)


def test_a_living_run_excludes_another_and_a_dead_one_does_not(tree: DataPaths) -> None:
    staging = tree.staging / "CLIP" / DATASET / "train"
    staging.mkdir(parents=True)
    handle = os.open(staging, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(SplitBusyError):
        run(tree)
    os.close(handle)
    assert run(tree).rows == ROWS


def test_files_of_the_user_are_never_swapped_away(tree: DataPaths) -> None:
    run(tree)
    notes = folder(tree) / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.txt"):
        run(tree, StubEncoder(precision="fast"), replace=True)
    assert notes.read_text() == "mine"
    assert failed(tree) == []


def test_a_parquet_of_the_user_is_never_replaced(tree: DataPaths) -> None:
    folder(tree).mkdir(parents=True)
    mine = folder(tree) / "part-00000.parquet"
    pd.DataFrame({"mine": [1, 2]}).to_parquet(mine)
    before = mine.read_bytes()
    for replace in (False, True):
        with pytest.raises(StoreError, match="not part of a split"):
            run(tree, replace=replace)
    assert mine.read_bytes() == before


@pytest.mark.parametrize("kind", ["folder", "text", "ledger", "link"])
def test_nothing_of_the_users_goes_in_the_swap(tree: DataPaths, kind: str) -> None:
    run(tree)
    if kind == "folder":
        mine = folder(tree) / "part-00001.parquet" / "notes.txt"
        mine.parent.mkdir()
    elif kind == "text":
        mine = folder(tree) / "part-00001.parquet"
    elif kind == "ledger":
        mine = folder(tree) / "_ledger.parquet"
    else:
        elsewhere = tree.raw.parent / "elsewhere"
        folder(tree).rename(elsewhere)
        folder(tree).symlink_to(elsewhere)
        mine = elsewhere / "part-00000.parquet"
    if kind == "ledger":
        pd.DataFrame({"mine": [1]}).to_parquet(mine)
    elif kind != "link":
        mine.write_text("the user's own")
    before = mine.read_bytes()
    with pytest.raises(StoreError, match=r"not part of a split|is a link"):
        run(tree, StubEncoder(precision="fast"), replace=True)
    assert mine.read_bytes() == before
    assert not tree.staging.exists()


@pytest.fixture
def reachable(prepared_tree: Path) -> Iterator[DataPaths]:
    """A data root that somebody without privileges can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        shutil.copytree(prepared_tree, Path(name) / "data")
        yield DataPaths.from_root(Path(name) / "data")


def test_an_output_that_may_not_be_written_is_refused_before_any_work(reachable: DataPaths) -> None:
    run(reachable)
    vectors = load_matrix(folder(reachable))
    shutil.rmtree(folder(reachable))
    encoder, manifest = StubEncoder(), open_manifest(reachable, DATASET, "train")
    with without_privileges(reachable.raw.parent):
        folder(reachable).parent.chmod(0o555)
        with pytest.raises(StoreError, match=f"{DATASET}: cannot be written"):
            run(reachable, encoder)
        folder(reachable).parent.chmod(0o755)
        assert encoder.loads == 0
        # The folder above need not be writable: only `.staging` stays in it, empty.
        reachable.staging.mkdir()
        reachable.embeddings.chmod(0o555)
        places = {"target": folder(reachable), "staging_root": reachable.staging}
        assert store_vectors(manifest, encoder, vectors, **places).rows == ROWS
        reachable.embeddings.chmod(0o755)


def test_an_output_in_a_place_that_holds_no_files_is_one_error(tree: DataPaths) -> None:
    nowhere = DataPaths.from_folders(tree.processed, Path("/proc/embeddings"))
    with pytest.raises(StoreError, match="cannot be created"):
        run(nowhere)


def test_a_file_where_the_split_should_be_is_one_error(tree: DataPaths) -> None:
    folder(tree).parent.mkdir(parents=True)
    folder(tree).write_text("a file")
    with pytest.raises(StoreError, match="train"):
        run(tree)
    assert folder(tree).read_text() == "a file"


def test_an_output_that_cannot_be_written_is_one_clear_error(tree: DataPaths) -> None:
    tree.embeddings.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot be created"):
        run(tree)


def test_a_swap_cut_in_two_is_mended_by_the_next_run(tree: DataPaths) -> None:
    run(tree)
    before = content(folder(tree))
    staged = tree.staging / "CLIP" / DATASET / "train"
    staged.mkdir(parents=True)
    # Where two folders cannot be exchanged, a crash may leave the old split aside and nothing in its place.
    folder(tree).rename(staged / "replaced")
    with pytest.raises(StoreError, match="precision"):
        run(tree, StubEncoder(precision="fast"))
    assert content(folder(tree)) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_vectors_of_ones_own_cost_nothing_where_folders_cannot_be_exchanged(
    error: BaseException, tree: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old split is moved aside first; what stops the second rename brings it back."""
    run(tree)
    before, vectors = content(folder(tree)), load_matrix(folder(tree))
    rename = Path.rename

    def rename_but_not_the_new(path: Path, target: Path) -> Path:
        if path.name == "assembled":
            raise error
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(staging, "_exchange", lambda first, second: False)
        patch.setattr(Path, "rename", rename_but_not_the_new)
        with pytest.raises((KeyboardInterrupt, StoreError)):
            store_vectors(
                open_manifest(tree, DATASET, "train"),
                StubEncoder(),
                vectors,
                target=folder(tree),
                staging_root=tree.staging,
            )
    assert content(folder(tree)) == before
    assert not tree.staging.exists()


def test_vectors_of_ones_own_are_stored_like_computed_ones(tree: DataPaths) -> None:
    run(tree)
    before, vectors = content(folder(tree)), load_matrix(folder(tree))
    shutil.rmtree(folder(tree))
    manifest = open_manifest(tree, DATASET, "train")
    places = {"target": folder(tree), "staging_root": tree.staging}
    store_vectors(manifest, StubEncoder(), vectors, **places)
    assert content(folder(tree)) == before
    for wrong, message in (
        (vectors[1:], "59 vectors"),
        (vectors * 2, "norm"),
        (np.where(np.arange(512) == 3, np.nan, vectors).astype(np.float32), "NaN"),
        (vectors.astype(np.float64), "float64"),
    ):
        with pytest.raises(StoreError, match=message):
            store_vectors(manifest, StubEncoder(), wrong, **places)
        assert content(folder(tree)) == before
        assert not tree.staging.exists()
