"""The assets when they run: files, metadata, versions, failures that say what to do."""

import base64
import io
import logging
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import dagster as dg
import numpy as np
import pytest
from graph_support import (
    CLIP,
    CUB,
    PARTITION,
    PROCESSED,
    ROWS,
    Graph,
    failed,
    failures,
    graph_of,
    materialization,
    outcomes,
    store_unit_vectors,
    values,
)
from PIL import Image

from embeddings_assets.catalog import DATASETS, MODELS
from embeddings_assets.encoders.dtypes import cpu_has_bfloat16
from embeddings_assets.encoders.weights.lock import write_random_lock
from embeddings_assets.errors import EmbeddingsError
from embeddings_assets.graph.build import build_definitions
from embeddings_assets.graph.keys import RAW
from embeddings_assets.graph.resources import DataResource, GpuResource
from embeddings_assets.graph.running import ProgressLog
from embeddings_assets.pipeline import EncoderCache, EncoderChoice
from embeddings_assets.settings import Settings
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.reading import load_matrix, split_sha256

pytest_plugins = ("graph_fixtures",)


DINO = dg.AssetKey(["embeddings", "DINOv2"])


def data_version(result: dg.ExecuteInProcessResult, key: dg.AssetKey) -> str:
    return (materialization(result, key).tags or {})["dagster/data_version"]


def shown(markdown: str) -> None:
    """The markdown holds a PNG, small enough for an event log."""
    assert len(markdown) < 50_000
    picture = re.search(r"\(data:image/png;base64,([^)]+)\)", markdown)
    assert picture
    assert Image.open(io.BytesIO(base64.b64decode(picture[1]))).format == "PNG"


def test_a_partition_becomes_files_that_its_metadata_describes(graph: Graph) -> None:
    result = graph.run(PROCESSED, CLIP)
    assert result.success, failures(result)
    folder = graph.settings.paths.embeddings_split("CLIP", CUB, "test")
    assert load_matrix(folder).shape == (ROWS, 512)

    prepared = values(result, PROCESSED)
    assert prepared["rows"] == prepared["dagster/partition_row_count"] == ROWS
    assert prepared["classes"] == 5
    assert prepared["ledger"] == 0
    assert prepared["duplicates_within_split"] == prepared["duplicates_across_splits"] == 0
    assert prepared["crop"] == "none"
    assert prepared["hold_out"] == {"share": 0.1, "seed": 0}
    shown(prepared["images_per_class"])
    shown(prepared["contact_sheet"])
    assert Path(prepared["raw_folder"]) == graph.settings.paths.raw_folder(CUB)
    manifest = open_manifest(graph.settings.paths, CUB, "test")
    assert data_version(result, PROCESSED) == prepared["fingerprint"] == manifest.fingerprint

    embedded = values(result, CLIP)
    assert embedded["status"] == "computed"
    assert embedded["rows"] == embedded["computed"] == embedded["dagster/partition_row_count"] == ROWS
    assert embedded["bytes"] == sum(path.stat().st_size for path in folder.glob("part-*.parquet"))
    assert embedded["size_vs_raw"] == pytest.approx(embedded["bytes"] / (ROWS * 512 * 4), abs=1e-4)
    assert embedded["images_per_second"] > 0
    assert embedded["bottleneck"] in ("load", "decode", "forward", "write", "other")
    assert embedded["peak_memory_mb"] > 50
    assert embedded["peak_device_memory_mb"] == 0
    assert "fidelity_rows" not in embedded
    shares = [embedded[f"{stage}_share"] for stage in ("load", "decode", "forward", "write", "other")]
    assert sum(shares) == pytest.approx(1, abs=1e-3)
    assert embedded["weights_trained"] == "no: random weights"
    assert embedded["device"] == "cpu"
    assert [column.name for column in embedded["dagster/column_schema"].columns][-1] == "embedding"
    assert data_version(result, CLIP) == split_sha256(folder)
    assert materialization(result, CLIP).partition == PARTITION
    assert failed(result, CLIP) == {"weights_trained"}
    assert failed(result, PROCESSED) == set()

    shown(embedded["map"])
    shown(embedded["nearest_neighbours"])
    vectors = load_matrix(folder).astype(np.float64)
    cosines = (vectors @ vectors.T)[np.triu_indices(ROWS, 1)]
    assert embedded["mean_pairwise_cosine"] == pytest.approx(cosines.mean(), abs=1e-6)


def test_an_identical_run_changes_nothing_and_keeps_the_data_versions(embedded: Graph) -> None:
    graph = embedded
    first = graph.run(PROCESSED, CLIP)
    folder = graph.settings.paths.embeddings_split("CLIP", CUB, "test")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    second = graph.run(PROCESSED, CLIP)
    assert values(second, PROCESSED)["status"] == values(second, CLIP)["status"] == "unchanged"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    for key in (PROCESSED, CLIP):
        assert data_version(first, key) == data_version(second, key)
    assert "images_per_second" not in values(second, CLIP)
    for name in ("map", "nearest_neighbours", "mean_pairwise_cosine"):
        assert values(first, CLIP)[name] == values(second, CLIP)[name], "taken over"


def test_pictures_are_drawn_again_when_the_vectors_are_others(graph: Graph) -> None:
    store_unit_vectors(graph.settings, "CLIP")
    first = values(graph.run(CLIP), CLIP)
    (graph.settings.paths.embeddings_split("CLIP", CUB, "test") / "part-00000.parquet").unlink()
    second = values(graph.run(CLIP), CLIP)
    assert first["sha256"] != second["sha256"]
    assert first["map"] != second["map"]
    assert first["mean_pairwise_cosine"] != second["mean_pairwise_cosine"]


def test_another_recipe_replaces_the_split_and_the_log_names_the_field(embedded: Graph) -> None:
    graph = embedded
    before = data_version(graph.run(CLIP), CLIP)
    kept = graph.run(CLIP, gpu={"precision": "fast", "replace": False})
    assert "another recipe: precision" in failures(kept)["embeddings__CLIP"].error_display_string
    replaced = graph.run(CLIP, gpu={"precision": "fast", "batch_size": 4, "workers": 1})
    metadata = values(replaced, CLIP)
    changed = ["precision", "compute_dtype"] if cpu_has_bfloat16() else ["precision"]
    assert metadata["changed_fields"] == changed
    assert (metadata["precision"], metadata["batch_size"], metadata["workers"]) == ("fast", 4, 1)
    assert 0.99 < metadata["fidelity_min_cosine"] <= metadata["fidelity_mean_cosine"] <= 1
    assert metadata["fidelity_rows"] == min(8, metadata["rows"])
    assert any(f"another recipe ({', '.join(changed)})" in line for line in graph.log_of(replaced))
    assert data_version(replaced, CLIP) != before


def test_a_failed_model_leaves_the_others_alone(settings: Settings, encoders: EncoderCache) -> None:
    weights = settings.data_root / "weights"
    write_random_lock(weights)
    (weights / "DINOv2").mkdir()
    (weights / "DINOv2" / "model.safetensors").write_bytes(b"cut off")
    graph = graph_of(replace(settings, weights=str(weights)), encoders)
    result = graph.run(CLIP, DINO)
    assert set(failures(result)) == {"embeddings__DINOv2"}
    failure = failures(result)["embeddings__DINOv2"].user_failure_data
    assert "model.safetensors is there, but config.json is not" in failure.description
    assert failure.metadata["remedy"].value.endswith('weights fetch "DINOv2"')
    assert values(result, CLIP)["rows"] == ROWS


def test_a_failed_partition_leaves_the_others_alone(graph: Graph) -> None:
    raw = graph.settings.paths.raw_folder(CUB)
    manifest = open_manifest(graph.settings.paths, CUB, "train")
    (raw.parent / manifest.slice(0, 1)["image_path"][0].as_py().removeprefix("raw/")).write_bytes(b"GIF?")
    red = graph.run(PROCESSED, partition=f"{CUB}|train")
    green = graph.run(PROCESSED, partition=PARTITION)
    assert green.success
    assert not red.success
    failure = failures(red)["processed_images"].user_failure_data
    assert "not_an_image" in failure.description
    assert failure.metadata["remedy"].value
    assert graph.instance.get_materialized_partitions(PROCESSED) == {PARTITION}


@pytest.mark.parametrize("whole_footer", [False, True])
def test_a_damaged_manifest_leaves_the_other_splits_alone(graph: Graph, whole_footer: bool) -> None:
    damaged = open_manifest(graph.settings.paths, CUB, "train").path
    content = damaged.read_bytes()
    rows = bytes(255 - byte for byte in content[4:2000])
    damaged.write_bytes(content[:4] + rows + content[2000:] if whole_footer else content[:-50])
    result = graph.run(PROCESSED)
    assert result.success, failures(result)
    assert any(
        "not compared for duplicates" in line and str(damaged) in line for line in graph.log_of(result)
    )
    assert failed(result, PROCESSED) == {"no_duplicates_across_splits"}
    check = outcomes(result, PROCESSED)["no_duplicates_across_splits"]
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert str(check.metadata["found"].value).startswith(f"none; not compared: {damaged}")
    assert check.metadata["remedy"].value == f'embeddings-assets prepare --dataset "{CUB}"'
    only = [dg.AssetCheckKey(PROCESSED, "no_duplicates_across_splits")]
    mine = outcomes(graph.run(checks=only, partition=f"{CUB}|train"), PROCESSED)[only[0].name]
    assert (mine.passed, mine.severity) == (False, dg.AssetCheckSeverity.ERROR)


def test_embeddings_without_their_manifest_say_what_is_missing(graph: Graph) -> None:
    shutil.rmtree(graph.settings.paths.processed)
    result = graph.run(CLIP)
    failure = failures(result)["embeddings__CLIP"].user_failure_data
    assert "no manifest" in failure.description
    assert failure.metadata["remedy"].value == f'embeddings-assets prepare --dataset "{CUB}"'
    assert not graph.settings.paths.processed.exists()


def test_configuring_one_field_keeps_what_the_settings_say_of_the_others(settings: Settings) -> None:
    fast = Settings(data_root=settings.data_root, weights="random", device="cpu", precision="fast")
    job = build_definitions(fast).resolve_implicit_global_asset_job_def()
    config = dg.validate_run_config(job, {"resources": {"gpu": {"config": {"batch_size": 4}}}})
    given = config["resources"]["gpu"]["config"]
    assert (given["batch_size"], given["precision"], given["device"]) == (4, "fast", "cpu")
    assert given["weights"] == "random"
    assert config["resources"]["data"]["config"]["root"] == str(settings.data_root)


def test_every_field_of_the_resources_is_described() -> None:
    for resource in (DataResource, GpuResource):
        for name, field in resource.model_fields.items():
            assert field.description, name


def test_partial_raw_data_is_refused_with_a_count_and_accepted_on_demand(graph: Graph) -> None:
    images = sorted((graph.settings.paths.raw_folder(CUB) / "images").rglob("*.jpg"))
    images[0].unlink()
    refused = graph.run(PROCESSED)
    assert "1 of 40 listed images are missing" in failures(refused)["processed_images"].error_display_string
    partitions = [f"{CUB}|{split}" for split in ("train", "validation", "test")]
    accepted = [graph.run(PROCESSED, partition=key, data={"allow_missing": True}) for key in partitions]
    assert all(result.success for result in accepted)
    tables = [values(result, PROCESSED).get("ledger_by_reason") for result in accepted]
    records = [record.data for table in tables if table for record in table.records]
    assert records == [{"reason": "missing", "images": 1}]


def test_the_cache_loads_an_encoder_once_and_frees_it() -> None:
    cache = EncoderCache()
    choice = EncoderChoice("random", device="cpu")
    encoder = cache.holder("CLIP", choice).load()
    assert cache.holder("CLIP", choice).load() is encoder
    cache.close()
    with pytest.raises(EmbeddingsError, match="closed"):
        encoder.encode(np.zeros((1, 224, 224, 3), np.uint8))


def test_progress_is_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = ProgressLog(cast("dg.DagsterLogManager", logging.getLogger("run")), "CLIP")
    for done in (0, 10, 20):
        progress(done, 1000)
    time.sleep(2.1)
    for done in (310, 320, 410, 1000):
        progress(done, 1000)
    (line,) = caplog.messages
    assert re.fullmatch(r"CLIP: 310 of 1,000 images \(31%\), 1\d\d\.\d images/s, about \d\.\d s left", line)


def test_the_catalog_is_the_graph(graph: Graph) -> None:
    keys = graph.defs.resolve_asset_graph().get_all_asset_keys()
    assert keys == {RAW, PROCESSED, *(dg.AssetKey(["embeddings", model.name]) for model in MODELS)}
    nodes = graph.defs.resolve_asset_graph()
    for key in keys:
        partitions = nodes.get(key).partitions_def
        assert partitions is not None
        assert len(partitions.get_partition_keys()) == (1 if key == RAW else 3) * len(DATASETS)
