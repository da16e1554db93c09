"""What the tests of the graph share: a small world on disk, and ways to run parts of the graph on it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dagster as dg
import numpy as np

from embeddings_assets.catalog import get_model
from embeddings_assets.encoders.plan import EncoderPlan, plan_encoder
from embeddings_assets.graph.build import EVERYTHING, build_definitions
from embeddings_assets.graph.partitions import dataset_splits
from embeddings_assets.graph.resources import GpuResource
from embeddings_assets.pipeline import EncoderCache, commit_vectors
from embeddings_assets.settings import Settings
from embeddings_assets.store.manifest import open_manifest

CUB = "CUB-200-2011"
PARTITION = f"{CUB}|test"
ROWS = 10  # five classes, two test images each
CLIP = dg.AssetKey(["embeddings", "CLIP"])
FRANCA = dg.AssetKey(["embeddings", "Franca"])
PROCESSED = dg.AssetKey("processed_images")

_MUTE = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Graph:
    """The definitions of some settings, run against one Dagster instance."""

    settings: Settings
    defs: dg.Definitions
    instance: dg.DagsterInstance

    def run(
        self,
        *assets: dg.AssetKey,
        partition: str | None = PARTITION,
        checks: Iterable[dg.AssetCheckKey] | None = None,
        gpu: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> dg.ExecuteInProcessResult:
        """Run assets with their checks, or only the checks named; `gpu` and `data` as in the launchpad."""
        job = self.defs.resolve_job_def(EVERYTHING).get_subset(
            asset_selection=set(assets) if assets or checks is None else None,
            asset_check_selection=None if checks is None else set(checks),
        )
        given = {"gpu": gpu, "data": data}
        resources = {name: {"config": dict(config)} for name, config in given.items() if config}
        return job.execute_in_process(
            partition_key=partition,
            instance=self.instance,
            raise_on_error=False,
            run_config={**_MUTE, "resources": resources},
        )

    def check_keys(self, asset: dg.AssetKey) -> list[dg.AssetCheckKey]:
        graph = self.defs.resolve_asset_graph()
        return sorted(graph.get_check_keys_for_assets({asset}), key=lambda key: key.name)

    def log_of(self, result: dg.ExecuteInProcessResult) -> list[str]:
        """What was written to the run's log by hand, as opposed to events."""
        entries = self.instance.all_logs(result.run_id)
        return [entry.user_message for entry in entries if not entry.is_dagster_event]


def graph_of(settings: Settings, kept: EncoderCache | None = None) -> Graph:
    gpu = GpuResource.bound_to(settings, kept=kept)
    defs = build_definitions(settings, resource_overrides={"gpu": gpu})
    return Graph(settings, defs, dg.DagsterInstance.ephemeral())


def materialization(result: dg.ExecuteInProcessResult, key: dg.AssetKey) -> dg.AssetMaterialization:
    events = [event for event in result.get_asset_materialization_events() if event.asset_key == key]
    assert len(events) == 1, failures(result)
    return events[0].materialization


def values(result: dg.ExecuteInProcessResult, key: dg.AssetKey) -> dict[str, Any]:
    """The metadata of a materialization as plain values."""
    metadata = materialization(result, key).metadata
    return {
        name: value if isinstance(value, dg.TableMetadataValue) else value.value
        for name, value in metadata.items()
    }


def outcomes(result: dg.ExecuteInProcessResult, key: dg.AssetKey) -> dict[str, dg.AssetCheckEvaluation]:
    """Check evaluations of an asset by name."""
    mine = [check for check in result.get_asset_check_evaluations() if check.asset_key == key]
    assert len({check.check_name for check in mine}) == len(mine)
    return {check.check_name: check for check in mine}


def shown(instance: dg.DagsterInstance, keys: Sequence[dg.AssetCheckKey]) -> dict[tuple[str, str], str]:
    """What the UI shows of checks, by name and partition; absent is what it calls missing."""
    states = instance.event_log_storage.get_asset_check_state([(key, dataset_splits) for key in keys])
    statuses = [
        ((key.name, partition), status.value)
        for key, state in states.items()
        for status, subset in state.subsets.items()
        for partition in subset.subset_value.get_partition_keys()
    ]
    assert len(dict(statuses)) == len(statuses)
    return dict(statuses)


def failed(result: dg.ExecuteInProcessResult, key: dg.AssetKey) -> set[str]:
    return {name for name, check in outcomes(result, key).items() if not check.passed}


def failures(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """Failed steps: their error data by step."""
    return {event.step_key: event.step_failure_data for event in result.all_events if event.is_step_failure}


def store_unit_vectors(
    settings: Settings, model: str, split: str = "test", *, trained: bool | None = False
) -> EncoderPlan:
    """Store seeded unit vectors as the embeddings of one of CUB's splits, as `save_embeddings` would."""
    plan = plan_encoder(model, weights="random", width=settings.width)
    plan = replace(plan, source=replace(plan.source, trained=trained))
    manifest = open_manifest(settings.paths, CUB, split)
    width = get_model(model).stored_width(settings.width)
    vectors = np.random.default_rng(0).standard_normal((manifest.rows, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    commit_vectors(vectors, manifest, plan, settings.paths, replace=True)
    return plan
