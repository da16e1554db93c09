"""Attempts that failed: how often a partition was tried since it was last made, and when."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from embeddings_assets.graph.history import latest_materialization

# So often in a row is bad luck; after that a person has to look.
MOST_FAILURES = 3

_PARTITION_TAG = "dagster/partition"
_RUNS_LOOKED_AT = 50


@dataclass(frozen=True)
class FailedRun:
    """A run that was to make a partition and failed."""

    run_id: str
    ended: datetime


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
    records = instance.get_run_records(filters, limit=_RUNS_LOOKED_AT)
    return [
        FailedRun(record.dagster_run.run_id, datetime.fromtimestamp(record.end_time, UTC))
        for record in records
        if record.end_time is not None
        and _asked_for(record.dagster_run, key)
        and _tried(instance, record.dagster_run.run_id, key)
    ]


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
