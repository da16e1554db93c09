"""The fast profile says how near it is to the exact one, by the real encoder on real files."""

import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from image_tree import CLASSES, DATASET, write_tree
from stub_encoder import StubEncoder

from embeddings_assets.catalog import get_model
from embeddings_assets.encoders.shortage import device_errors
from embeddings_assets.errors import DeviceError, StoreError, WeightsError
from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.extraction.fidelity import LEAST_SAMPLE, SAMPLE, measure_fidelity
from embeddings_assets.extraction.memory import peak_bytes
from embeddings_assets.extraction.report import ExtractionOptions, Progress, SplitReport
from embeddings_assets.pipeline import EncoderChoice, EncoderHolder, commit_vectors, process_split
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest, write_manifest
from embeddings_assets.store.reading import load_matrix
from embeddings_assets.store.schema import CROP_COLUMNS


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> DataPaths:
    return write_tree(tmp_path_factory.mktemp("fidelity"), per_class=12)


@pytest.fixture
def mine(paths: DataPaths, tmp_path: Path) -> DataPaths:
    """The images and the manifests once more, to be changed."""
    shutil.copytree(paths.processed, tmp_path / "data" / "processed")
    return DataPaths.from_root(tmp_path / "data")


class StubHolder(StubEncoder):
    """In place of an `EncoderHolder`: `fast` and `exact` are the same."""

    def __init__(self) -> None:
        super().__init__(precision="fast")
        self.plan = SimpleNamespace(spec=get_model("CLIP"), precision="fast", to_pixels=self.to_pixels)

    def exact(self) -> "StubHolder":
        return self


def embed(paths: DataPaths, split: str, progress: Progress | None = None, **options: float) -> SplitReport:
    return process_split(
        StubHolder(),  # type: ignore[arg-type]
        DATASET,
        split,
        paths,
        options=ExtractionOptions(**options),  # type: ignore[arg-type]
        progress=progress,
    )


def holder(precision: str) -> EncoderHolder:
    plan = EncoderChoice(weights="random", precision=precision, device="cpu").plan("CLIP")
    # In bfloat16 whatever this CPU has: in float32 there would be little to measure.
    return EncoderHolder(replace(plan, compute_dtype="bfloat16") if precision == "fast" else plan)


def folder(paths: DataPaths) -> Path:
    return paths.embeddings_split("CLIP", DATASET, "train")


def test_a_sample_of_every_fast_split_is_compared(paths: DataPaths, tmp_path: Path) -> None:
    fast, exact = holder("fast"), holder("exact")
    report = process_split(fast, DATASET, "train", paths)
    assert report.peak_bytes > peak_bytes(), "without the exact encoder or the decoding processes"
    assert report.fidelity is not None
    assert report.fidelity.sample == LEAST_SAMPLE
    assert process_split(fast, DATASET, "train", paths).fidelity is None, "nothing was computed"
    elsewhere = DataPaths.from_folders(paths.processed, tmp_path)
    assert process_split(exact, DATASET, "train", elsewhere).fidelity is None
    # The whole split bounds what its sample says.
    cosines = np.sum(load_matrix(folder(paths)) * load_matrix(folder(elsewhere)), axis=1)
    assert len(cosines) == 12 * len(CLASSES)
    assert cosines.min() - 1e-6 <= report.fidelity.minimum <= report.fidelity.mean <= cosines.max() + 1e-6
    assert report.fidelity.minimum < 1 - 1e-5, "something was compared with itself"
    assert report.fidelity.minimum > 0.998
    fast.close()
    exact.close()


def test_vectors_that_are_far_from_exact_are_a_warning(
    paths: DataPaths, caplog: pytest.LogCaptureFixture
) -> None:
    exact = holder("exact")
    manifest = open_manifest(paths, DATASET, "test")
    vectors = np.random.default_rng(0).standard_normal((manifest.rows, 512)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    commit_vectors(vectors, manifest, exact.plan, paths)
    where = paths.embeddings_split("CLIP", DATASET, "test")
    with Decoders() as decoders:
        found = measure_fidelity(manifest, where, exact.load(), manifest.rows, decoders)
        # Of much that was computed more is sampled, but not more than there is.
        more = [
            measure_fidelity(manifest, where, exact.load(), computed, decoders)
            for computed in (64 * 10 - 1, 64 * 10, 64 * SAMPLE)
        ]
    assert found is not None
    assert found.sample == LEAST_SAMPLE
    assert [one and one.sample for one in more] == [9, 10, manifest.rows]
    assert found.minimum < 0.5
    assert "further from exact" in caplog.text
    exact.close()


def test_what_an_earlier_run_has_computed_is_compared_when_it_is_committed(mine: DataPaths) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk(done: int, total: int) -> None:
        if done == total:  # a shard is smaller than this, and the part of all rows is larger
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))

    try:
        with pytest.raises(StoreError, match="assembled"):
            embed(mine, "train", fill_the_disk, shard_rows=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    report = embed(mine, "train", shard_rows=8)
    assert (report.computed, report.resumed) == (0, report.rows)
    assert report.fidelity is not None
    assert report.fidelity.sample == LEAST_SAMPLE


def test_a_run_that_is_stopped_while_it_compares_is_gone_on_with(
    mine: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(holder: StubHolder) -> StubEncoder:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StubHolder, "exact", stop)
        with pytest.raises(KeyboardInterrupt):
            embed(mine, "test")
    target = mine.embeddings_split("CLIP", DATASET, "test")
    assert not target.exists(), "a split that stands was compared"
    report = embed(mine, "test")
    assert (report.computed, report.resumed) == (0, report.rows)
    assert report.fidelity is not None


def test_rows_of_the_ledger_are_no_part_of_the_sample(mine: DataPaths) -> None:
    rows = images(mine, "test")
    for path in rows[2:]:
        path.unlink()
    report = embed(mine, "test", max_bad_share=1.0)
    assert report.ledger == {"missing": len(rows) - 2}
    assert report.fidelity is not None
    assert report.fidelity.sample == 2


@pytest.mark.parametrize("kept", [0, 22])
def test_images_that_go_before_the_comparison_are_left_out(
    kept: int, mine: DataPaths, caplog: pytest.LogCaptureFixture
) -> None:
    rows = images(mine, "validation")

    def take_away_at_the_end(done: int, total: int) -> None:
        for path in rows[kept:] if done == total else []:
            path.unlink()

    report = embed(mine, "validation", take_away_at_the_end)
    assert (report.rows, report.ledger) == (len(rows), {})
    if kept:
        assert report.fidelity is not None
        assert LEAST_SAMPLE - 2 <= report.fidelity.sample <= LEAST_SAMPLE
    else:
        assert report.fidelity is None
        assert caplog.text.count("not compared with exact: missing") == LEAST_SAMPLE


@pytest.mark.parametrize(
    "error",
    [MemoryError("no memory"), OSError("no disk"), WeightsError("no weights")],
)
def test_what_stops_the_comparison_does_not_undo_the_split(
    error: Exception, mine: DataPaths, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(holder: StubHolder) -> StubEncoder:
        raise error

    monkeypatch.setattr(StubHolder, "exact", stop)
    report = embed(mine, "test")
    assert (report.status, report.fidelity) == ("computed", None)
    assert f"not compared with exact: {error}" in caplog.text


def test_a_device_that_fails_while_it_compares_commits_nothing(
    mine: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(holder: StubHolder) -> StubEncoder:
        with device_errors():
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(StubHolder, "exact", fail)
        with pytest.raises(DeviceError, match="illegal memory access"):
            embed(mine, "test")
    report = embed(mine, "test")
    assert (report.computed, report.resumed) == (0, report.rows)


def test_the_comparison_has_the_decoding_processes_that_were_asked_for(
    mine: DataPaths, monkeypatch: pytest.MonkeyPatch, decoding: Callable[[], list[int]]
) -> None:
    encode = StubHolder.encode
    found: list[int] = []

    def watched(holder: StubHolder, pixels: np.ndarray) -> np.ndarray:
        found.append(len(decoding()))
        return encode(holder, pixels)

    monkeypatch.setattr(StubHolder, "encode", watched)
    assert embed(mine, "test", workers=1).fidelity is not None
    assert set(found) == {1}


def test_the_part_that_is_used_of_each_image_is_compared(mine: DataPaths) -> None:
    plain = open_manifest(mine, DATASET, "test")
    rows = plain.slice(0, plain.rows)
    for number, name in enumerate(CROP_COLUMNS):
        edges = pa.array([(1, 2, 20 + row, 30)[number] for row in range(plain.rows)], pa.int32())
        rows = rows.append_column(name, edges)
    options = {**plain.footer["options"], "crop": "bounding_box"}
    write_manifest(mine, DATASET, "test", rows, plain.ledger(), options=options, raw_folder=None)
    report = embed(mine, "test")
    assert report.fidelity is not None
    assert report.fidelity.minimum > 1 - 1e-5


def images(paths: DataPaths, split: str) -> list[Path]:
    manifest = open_manifest(paths, DATASET, split)
    rows = manifest.slice(0, manifest.rows).column("image_path").to_pylist()
    return [manifest.resolve(path) for path in rows]
