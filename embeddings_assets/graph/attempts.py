"""Attempts that failed: how often a partition was tried since it was last made, and when.

An attempt says nothing any more once what the partition is made of has changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from embeddings_assets.graph.history import DATA_VERSION, all_records, latest_materialization
from embeddings_assets.graph.keys import PROCESSED, RAW
from embeddings_assets.graph.partitions import dataset_and_split

# So often with nothing changed is bad luck; after that a person has to look.
MOST_FAILURES = 3

_PARTITION_TAG = "dagster/partition"
_RUNS_LOOKED_AT = 50


@dataclass(frozen=True)
class FailedRun:
    """A run that was to make a partition and failed.

    `outdated`: what the partition is made of has changed since.
    """

    run_id: str
    ended: datetime
    outdated: bool


def given_up(failures: Sequence[FailedRun]) -> bool:
    """Whether the nightly backfill leaves a partition that failed like this to a person."""
    return sum(not failure.outdated for failure in failures) >= MOST_FAILURES


def failures_since_made(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition_key: str
) -> Sequence[FailedRun]:
    """Failed runs of an asset's partition since it was last materialized, the latest first."""
    made = latest_materialization(instance, key, partition_key)
    filters = dg.RunsFilter(
        tags={_PARTITION_TAG: partition_key},
        statuses=[dg.DagsterRunStatus.FAILURE],
        created_after=datetime.fromtimestamp(made.timestamp, UTC) if made else None,
    )
    failed = [
        (record.dagster_run.run_id, record.end_time)
        for record in instance.get_run_records(filters, limit=_RUNS_LOOKED_AT)
        if record.end_time is not None
        and _asked_for(record.dagster_run, key)
        and _tried(instance, record.dagster_run.run_id, key)
    ]
    changed = _last_change(instance, key, partition_key) if failed else 0.0
    return [FailedRun(run_id, datetime.fromtimestamp(end, UTC), end < changed) for run_id, end in failed]


def _last_change(instance: dg.DagsterInstance, key: dg.AssetKey, partition_key: str) -> float:
    """When what a partition is made of last changed; 0 where nothing is recorded of it."""
    if key == PROCESSED:
        dataset, _ = dataset_and_split(partition_key)
        return _raw_data_changed(instance, dataset)
    return _manifest_changed(instance, partition_key)


def _raw_data_changed(instance: dg.DagsterInstance, dataset: str) -> float:
    """When the present version of a raw dataset was first observed."""
    changed, version = 0.0, None
    for record in all_records(instance.fetch_observations, RAW, dataset):
        found = record.asset_observation.data_version if record.asset_observation else None
        if changed and found != version:
            break
        changed, version = record.timestamp, found
    return changed


def _manifest_changed(instance: dg.DagsterInstance, partition_key: str) -> float:
    """When a manifest was last written, or first recorded where no run recorded that it wrote it.

    The command line records nothing, nor does a run that is killed once the manifest stands. The run after it
    changes nothing, but what it finds has another version.
    """
    changed, version = 0.0, None
    for record in all_records(instance.fetch_materializations, PROCESSED, partition_key):
        made = record.asset_materialization
        found = (made.tags or {}).get(DATA_VERSION) if made else None
        if changed and found != version:
            break
        changed, version = record.timestamp, found
        status = made.metadata.get("status") if made else None
        if status is None or status.value != "unchanged":
            break
    return changed


def _asked_for(run: dg.DagsterRun, key: dg.AssetKey) -> bool:
    if run.asset_selection:
        return key in run.asset_selection
    return not run.asset_check_selection  # a job of everything, as opposed to one of checks alone


def _tried(instance: dg.DagsterInstance, run_id: str, key: dg.AssetKey) -> bool:
    """Whether it is this asset that failed, or was being made when the run ended.

    Others of the run may have failed before it, or it was made in the run that this one goes on from. A run
    that ended before its first step counts for each of its assets.
    """
    steps = {step.step_key: step.status and step.status.value for step in instance.get_run_step_stats(run_id)}
    if not steps:
        return True
    return steps.get(key.to_python_identifier()) in ("FAILURE", "IN_PROGRESS")
