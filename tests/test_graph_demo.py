"""The demo: what it refuses to touch, what it says of a partition, what it leaves behind when removed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from graph_support import CLIP, CUB, PROCESSED, graph_of, store_unit_vectors

from embeddings_assets.catalog import MODELS
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.synthetic.writer import write_synthetic
from embeddings_assets.encoders.weights.lock import read_lock, write_random_lock
from embeddings_assets.errors import EmbeddingsError, RawDataError, SettingsError, SplitBusyError
from embeddings_assets.graph.build import EVERYTHING
from embeddings_assets.graph.demo import DEMO_TAG, alone, materialize_partition, remove_demo, run_demo
from embeddings_assets.graph.demo_data import refuse_real_data, remove_demo_data, write_demo_data
from embeddings_assets.graph.interrupts import interruptible
from embeddings_assets.pipeline import EncoderCache
from embeddings_assets.settings import Settings
from embeddings_assets.store.reading import part_files

pytest_plugins = ("graph_fixtures",)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """A lasting instance, named by DAGSTER_HOME."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(Path(__file__).parent.parent / "dagster.yaml", folder)
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    with dg.DagsterInstance.get() as instance:
        yield instance


def test_a_row_says_what_became_of_an_asset(settings: Settings, encoders: EncoderCache) -> None:
    weights = settings.data_root / "weights"
    write_random_lock(weights)
    for model in MODELS[1:]:
        (weights / model.name).mkdir()
        (weights / model.name / "model.safetensors").write_bytes(b"cut off")
        (weights / model.name / "broken.pth").write_bytes(b"cut off")
    graph = graph_of(replace(settings, weights=str(weights)), encoders)
    job = graph.defs.resolve_job_def(EVERYTHING)
    processed, clip, *others = materialize_partition(job, graph.instance, CUB, "test")
    assert (processed.status, processed.rows, processed.error) == ("unchanged", 10, "")
    assert (processed.passed, processed.warned, processed.failed) == (5, 0, 0)
    assert (clip.asset, clip.status, clip.rows, clip.error) == ("embeddings/CLIP", "computed", 10, "")
    assert (clip.passed, clip.warned, clip.failed) == (10, 1, 0)
    assert [row.status for row in others] == ["failed"] * 3
    for row, model in zip(others, MODELS[1:], strict=True):
        assert str(weights / model.name) in row.error
        assert (row.rows, row.passed, row.failed) == (0, 0, 11)
    assert graph.instance.get_runs(dg.RunsFilter(tags={**DEMO_TAG, "dagster/partition": f"{CUB}|test"}))


@pytest.mark.parametrize("real", ["raw/nabirds/images.txt", f"processed/{CUB}/train/manifest.parquet"])
def test_a_data_root_with_real_data_is_refused_untouched(
    home: dg.DagsterInstance, tmp_path: Path, real: str
) -> None:
    root = tmp_path / "data"
    (root / real).parent.mkdir(parents=True)
    (root / real).write_text("someone's")
    with pytest.raises(RawDataError, match="would replace it"):
        run_demo(Settings(data_root=root, weights="random"))
    assert [path for path in root.rglob("*") if path.is_file()] == [root / real]
    assert home.get_runs() == []


def test_what_was_made_from_other_images_or_weights_is_refused(settings: Settings, tmp_path: Path) -> None:
    write_synthetic(settings.paths.raw, CUB, classes=5, train_per_class=6, test_per_class=2)
    refuse_real_data(settings)
    elsewhere = settings.paths.raw.rename(tmp_path / "elsewhere")
    prepare_dataset(CUB, settings.paths, raw_dir=elsewhere)
    shutil.copytree(elsewhere, settings.paths.raw)
    with pytest.raises(RawDataError, match=r"manifest\.parquet: is not of the demo"):
        refuse_real_data(settings)
    prepare_dataset(CUB, settings.paths, raw_dir=settings.paths.raw)
    store_unit_vectors(settings, "CLIP", trained=True)
    with pytest.raises(RawDataError, match=r"CLIP.*is not of the demo"):
        refuse_real_data(settings)


def test_embeddings_of_a_real_dataset_are_refused(settings: Settings) -> None:
    refuse_real_data(settings)
    store_unit_vectors(settings, "CLIP")
    shutil.rmtree(settings.paths.raw)
    shutil.rmtree(settings.paths.processed)
    with pytest.raises(RawDataError, match=r"embeddings/CLIP/CUB-200-2011/test"):
        refuse_real_data(settings)


def test_without_a_lasting_instance_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with pytest.raises(SettingsError, match=r"DAGSTER_HOME is not set"):
        run_demo(Settings(data_root=tmp_path / "data", weights="random"))
    assert not (tmp_path / "data").exists()


def test_two_demos_at_once_are_refused(home: dg.DagsterInstance, tmp_path: Path) -> None:
    with alone(home), pytest.raises(SplitBusyError, match="Another demo"):
        run_demo(Settings(data_root=tmp_path / "data", weights="random"))


def test_a_run_of_a_killed_demo_is_ended_and_frees_the_pool(home: dg.DagsterInstance, tmp_path: Path) -> None:
    storage = home.event_log_storage
    storage.initialize_concurrency_limit_to_default("gpu")
    dead = home.create_run_for_job(
        graph_of(Settings(weights="random")).defs.resolve_job_def(EVERYTHING),
        tags=DEMO_TAG,
        status=dg.DagsterRunStatus.STARTED,
    )
    storage.claim_concurrency_slot("gpu", dead.run_id, "embeddings__CLIP")
    assert storage.get_concurrency_info("gpu").active_slot_count == 1
    # The next demo goes as far as the raw data, which is unusable here.
    (tmp_path / "data").write_text("not a folder")
    with pytest.raises((EmbeddingsError, OSError)):
        run_demo(Settings(data_root=tmp_path / "data", weights="random"))
    assert storage.get_concurrency_info("gpu").active_slot_count == 0
    run = home.get_run_by_id(dead.run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.FAILURE


def test_removing_the_demo_leaves_everything_else(home: dg.DagsterInstance, tmp_path: Path) -> None:
    root, weights = tmp_path / "data", tmp_path / "weights"
    settings = Settings(data_root=root, weights=str(weights))
    assert len(list(write_demo_data(settings))) == 7
    defs = graph_of(settings).defs
    demo_run = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection={PROCESSED})
    for tags, partition in ((DEMO_TAG, f"{CUB}|test"), ({}, "NABirds|test")):
        assert demo_run.execute_in_process(partition_key=partition, instance=home, tags=tags).success
    store_unit_vectors(settings, "CLIP")
    mine = root / "raw" / "nabirds" / "SYNTHETIC.txt"
    mine.unlink()

    remove_demo(settings)
    left = {str(path.relative_to(root).parent) for path in root.glob("*/*/*/*.parquet")}
    assert left == {"processed/NABirds/test"}
    assert [folder.name for folder in (root / "processed").iterdir()] == ["NABirds"]
    assert [folder.name for folder in (root / "raw").iterdir()] == ["nabirds"]
    assert read_lock(weights) == {}
    assert home.get_materialized_partitions(PROCESSED) == {"NABirds|test"}
    assert len(home.get_runs()) == 1


def test_removing_the_demo_keeps_embeddings_made_from_other_manifests(settings: Settings) -> None:
    store_unit_vectors(settings, "CLIP")
    kept = settings.paths.embeddings_split("CLIP", CUB, "train")
    shutil.copytree(settings.paths.embeddings_split("CLIP", CUB, "test"), kept)
    remove_demo_data(settings)
    assert part_files(kept)
    assert not settings.paths.embeddings_split("CLIP", CUB, "test").exists()
    assert CLIP.path[-1] == kept.parts[-3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_got_lost_on_its_way_still_counts(number: signal.Signals) -> None:
    before = signal.signal(number, lambda *_: None)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(number)
        with interruptible():
            pass
        with pytest.raises(ZeroDivisionError), interruptible():
            _ = 1 / 0
    finally:
        signal.signal(number, before)


def test_ctrl_c_ends_the_demo_not_just_a_step(home: dg.DagsterInstance, tmp_path: Path) -> None:
    environment = {**os.environ, "EMBEDDINGS_DATA": str(tmp_path / "data"), "EMBEDDINGS_WEIGHTS": "random"}
    command = [sys.executable, "-m", "embeddings_assets.cli.main", "demo"]
    with subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run as a background job, their children would inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as demo:
        deadline = time.monotonic() + 180
        while not (tmp_path / "data" / "embeddings" / ".staging").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        demo.send_signal(signal.SIGINT)
        _, said = demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert "Stopped" in said
    assert "FGVC-Aircraft / train" not in said
