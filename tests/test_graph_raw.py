"""The raw datasets in the graph: what is observed of them, and whom a change makes stale."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest
from graph_support import CUB, PROCESSED, Graph, failures
from nights import DAY, NIGHT, Nights, everything, splits_of

from embeddings_assets.catalog import DATASETS, SPLITS
from embeddings_assets.cli.doctor import examine
from embeddings_assets.datasets.synthetic.writer import write_synthetic
from embeddings_assets.graph.keys import RAW
from embeddings_assets.graph.raw import watch_raw_data
from embeddings_assets.graph.resources import DataResource

pytest_plugins = ("graph_fixtures",)

DOGS = "Stanford Dogs"
FRESH, STALE, MISSING = "FRESH", "STALE", "MISSING"


def run_observation(graph: Graph, dataset: str | None) -> dg.ExecuteInProcessResult:
    """As the button *Observe* does."""
    job = graph.defs.resolve_implicit_job_def_def_for_assets([RAW])
    assert job is not None
    return job.execute_in_process(
        instance=graph.instance,
        raise_on_error=False,
        tags={} if dataset is None else {"dagster/partition": dataset},
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )


def observe(graph: Graph, dataset: str | None = None) -> None:
    result = run_observation(graph, dataset)
    assert result.success, failures(result)


def observed(graph: Graph, dataset: str) -> Mapping[str, Any]:
    """Metadata of the latest observation."""
    latest = dg.AssetRecordsFilter(asset_key=RAW, asset_partitions=[dataset])
    record = graph.instance.fetch_observations(latest, limit=1).records[0]
    assert record.asset_observation is not None
    return {name: value.value for name, value in record.asset_observation.metadata.items()}


def staleness(graph: Graph, dataset: str, key: dg.AssetKey = PROCESSED) -> dict[str, str]:
    """What the UI shows of each split."""
    resolver = CachingStaleStatusResolver(
        graph.instance, graph.defs.resolve_asset_graph(), LoadingContextForTest(graph.instance)
    )
    return {split: resolver.get_status(key, f"{dataset}|{split}").value for split in SPLITS}


def touch_image(graph: Graph, dataset: str = CUB) -> None:
    """Let one image look changed."""
    image = next(graph.settings.paths.raw_folder(dataset).rglob("*.jpg"))
    os.utime(image, ns=(1, 1))


def test_an_observation_tells_what_is_there(graph: Graph) -> None:
    raw = graph.settings.paths.raw_folder(CUB)
    observe(graph)
    present = observed(graph, CUB)
    assert present["state"] == "present"
    assert present["images"] == present["listed"] == sum(1 for _ in raw.rglob("*.jpg"))
    assert present["official"] == 11788
    assert "instead of" in present["problem"], "the counts of the small set differ from the official ones"
    absent = observed(graph, "NABirds")
    assert (absent["state"], absent["images"]) == ("missing", 0)
    assert absent["remedy"].startswith('embeddings-assets datasets fetch "NABirds" --archives DIR')
    assert "remedy" not in present
    next(raw.rglob("*.jpg")).unlink()
    observe(graph, CUB)
    partial = observed(graph, CUB)
    assert (partial["state"], partial["images"]) == ("partial", present["images"] - 1)
    assert partial["remedy"].endswith(f'embeddings-assets prepare --dataset "{CUB}" --allow-missing')
    (raw / "images.txt").unlink()
    observe(graph, CUB)
    wrong = observed(graph, CUB)
    assert wrong["state"] == "wrong"
    (line,) = (line for line in examine(graph.settings) if line.item == CUB)
    assert (line.state, line.remedy) == ("wrong", wrong["remedy"]), "the doctor says the same"


def test_what_was_made_is_fresh_until_its_own_raw_data_changes(graph: Graph) -> None:
    write_synthetic(graph.settings.paths.raw, DOGS, classes=3, train_per_class=4, test_per_class=2)
    for split in SPLITS:
        for dataset in (CUB, DOGS):
            result = graph.run(PROCESSED, partition=f"{dataset}|{split}", checks=())
            assert result.success, failures(result)
    assert set(staleness(graph, CUB).values()) == {FRESH}, "also where it was never observed before"
    observe(graph)
    assert set(staleness(graph, CUB).values()) == {FRESH}, "an observation alone changes nothing"
    touch_image(graph)
    assert set(staleness(graph, CUB).values()) == {FRESH}, "not seen yet"
    observe(graph)
    assert set(staleness(graph, CUB).values()) == {STALE}
    assert set(staleness(graph, DOGS).values()) == {FRESH}
    assert graph.run(PROCESSED, partition=f"{CUB}|test", checks=()).success
    assert staleness(graph, CUB) == {"train": STALE, "validation": STALE, "test": FRESH}
    clip = dg.AssetKey(["embeddings", "CLIP"])
    assert set(staleness(graph, CUB, clip).values()) == {MISSING}


def look(graph: Graph) -> list[dg.AssetObservation]:
    """A tick of the sensor: what it records."""
    context = dg.build_sensor_context(
        instance=graph.instance,
        resources={"data": DataResource.bound_to(graph.settings)},
        definitions=graph.defs,
    )
    result = watch_raw_data(context)
    if isinstance(result, dg.SkipReason):
        return []
    assert isinstance(result, dg.SensorResult)
    recorded = [event for event in result.asset_events if isinstance(event, dg.AssetObservation)]
    for event in recorded:
        graph.instance.report_runless_asset_event(event)
    return recorded


def test_the_sensor_records_only_what_changed(graph: Graph) -> None:
    assert [event.partition for event in look(graph)] == [dataset.name for dataset in DATASETS]
    assert look(graph) == []
    touch_image(graph)
    assert [event.partition for event in look(graph)] == [CUB]
    observe(graph, CUB)
    assert look(graph) == [], "a run has recorded it"
    shutil.rmtree(graph.settings.paths.raw_folder(CUB))
    (gone,) = look(graph)
    # Its manifests were read from the raw folder, so no class tree stands in for it.
    assert gone.metadata["state"].value == "missing"


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_what_a_run_found_missing_is_seen_when_it_is_back(graph: Graph, tmp_path: Path) -> None:
    nights = Nights(graph.instance, graph.settings)
    look(graph)
    image = next(graph.settings.paths.raw_folder(CUB).rglob("*.jpg"))
    aside = image.rename(tmp_path / image.name)
    assert not graph.run(PROCESSED, checks=()).success
    assert observed(graph, CUB)["state"] == "partial"
    assert nights.ask(NIGHT) == {}
    aside.rename(image)
    (back,) = look(graph)
    assert (back.partition, back.metadata["state"].value) == (CUB, "present")
    assert nights.ask(NIGHT + DAY) == everything(*splits_of(CUB))


@pytest.mark.parametrize("name", ["../../etc", "CUB-200-2011|train"])
def test_only_datasets_of_the_catalog_are_observed(graph: Graph, name: str) -> None:
    result = run_observation(graph, name)
    assert not result.success
    assert "Unknown dataset" in failures(result)["observe_raw_images"].error_display_string
    assert not graph.instance.fetch_observations(RAW, limit=10).records
