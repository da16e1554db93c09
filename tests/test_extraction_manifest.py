"""Vectors belong to the rows they were made of, whatever becomes of the manifest meanwhile."""

import logging
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_tree import DATASET, write_image
from PIL import Image
from stub_encoder import StubEncoder, pixels
from test_extraction_faults import content, folder, images, run

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.errors import EmbeddingsError, StoreError
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.reading import load_frame
from embeddings_assets.store.shards import read_shard, write_shard
from embeddings_assets.store.verify import verify_split

pytest_plugins = ("extraction_fixtures",)

ROWS = 180
SHARD = 16


def wrong_rows(tree: DataPaths) -> list[str]:
    """Stored rows whose vector is not that of the file they name; files that are gone are left out."""
    frame = load_frame(folder(tree), ["image_path", "embedding"])
    wrong = []
    for path, vector in zip(frame["image_path"], frame["embedding"], strict=True):
        file = tree.processed.parent / path
        if file.exists():
            with Image.open(file) as image:
                expected = StubEncoder().encode(pixels(image)[None])[0]
            if np.abs(expected - vector).max() > 1e-5:
                wrong.append(path)
    return wrong


def shift_rows(tree: DataPaths) -> None:
    """Take the first image away, add one at the end, and prepare."""
    rows = images(tree)
    rows[0].unlink()
    write_image(rows[-1].with_name("999.jpg"), seed=12345)
    prepare_dataset(DATASET, tree)


def test_another_manifest_in_the_middle_of_a_run(tree: DataPaths, caplog: pytest.LogCaptureFixture) -> None:
    before = open_manifest(tree, DATASET, "train").fingerprint
    shifted: list[bool] = []

    def shift_when_half_done(done: int, total: int) -> None:
        if done >= total // 2 and not shifted:
            shifted.append(True)
            shift_rows(tree)

    report = run(tree, StubEncoder(seconds=0.005), progress=shift_when_half_done)
    assert (report.rows, report.footer["manifest_fingerprint"]) == (ROWS, before)
    assert wrong_rows(tree) == []
    assert "written anew during this run" in caplog.text
    # The first image was embedded before it went; the one that came is all that is missing.
    report = run(tree)
    assert (report.computed, report.reused) == (1, ROWS - 1)
    assert wrong_rows(tree) == []
    assert all(found.passed for found in verify_split(folder(tree), processed=tree.processed))


def test_the_same_manifest_again_in_the_middle_of_a_run(
    tree: DataPaths, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run(tree, progress=lambda done, total: prepare_dataset(DATASET, tree) and None)
    assert not caplog.records
    assert all(found.passed for found in verify_split(folder(tree), processed=tree.processed))


def test_a_device_process_does_not_work_on_another_manifest(tree: DataPaths) -> None:
    shifted: list[bool] = []

    def shift_at_the_start(done: int, total: int) -> None:
        if not shifted:
            shifted.append(True)
            shift_rows(tree)

    with pytest.raises(EmbeddingsError, match="written anew meanwhile"):
        run(tree, devices=("cpu", "cpu"), progress=shift_at_the_start)
    run(tree, devices=("cpu", "cpu"))
    assert wrong_rows(tree) == []


def test_a_manifest_reads_from_the_file_it_was_opened_from(tree: DataPaths) -> None:
    manifest = open_manifest(tree, DATASET, "train")
    rows = manifest.slice(0, ROWS)
    same = pickle.loads(pickle.dumps(manifest))
    assert same.slice(0, ROWS).equals(rows)
    assert not manifest.is_superseded
    shift_rows(tree)
    assert manifest.is_superseded
    assert manifest.slice(0, ROWS).equals(rows)
    assert sum(batch.num_rows for batch in manifest.batches(["image_id"])) == ROWS
    assert same.slice(0, ROWS).equals(rows)
    with pytest.raises(StoreError, match="written anew"):
        pickle.loads(pickle.dumps(manifest)).slice(0, 1)


def test_a_staged_shard_of_other_rows_is_computed_again(
    tree: DataPaths, prepared_tree: Path, tmp_path: Path
) -> None:
    last = images(tree)[-1]
    whole = last.read_bytes()
    last.unlink()
    with pytest.raises(EmbeddingsError, match="missing"):
        run(tree, strict=True)
    last.write_bytes(whole)
    path = sorted(tree.staging.rglob("shard-*"))[2]
    shard = read_shard(path)
    write_shard(path, replace(shard, sha256=shard.sha256[::-1], vectors=shard.vectors[::-1].copy()))
    report = run(tree)
    assert report.resumed == ROWS - ROWS % SHARD - SHARD
    shutil.copytree(prepared_tree, tmp_path / "undisturbed")
    undisturbed = DataPaths.from_root(tmp_path / "undisturbed")
    run(undisturbed)
    assert content(tree) == content(undisturbed)
