"""What the instance has recorded of a partition, and check results recorded so that they count for it."""

from collections.abc import Callable, Iterator

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData,
)

DATA_VERSION = "dagster/data_version"  # tag of materializations and observations
_PAGE = 10  # materializations hold pictures


def latest_materialization(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str
) -> dg.EventLogRecord | None:
    of_partition = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    return next(iter(instance.fetch_materializations(of_partition, limit=1).records), None)


def latest_observation(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str
) -> dg.EventLogRecord | None:
    of_partition = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    return next(iter(instance.fetch_observations(of_partition, limit=1).records), None)


def all_records(
    fetch: "Callable[..., dg.EventRecordsResult]", key: dg.AssetKey, partition: str
) -> Iterator[dg.EventLogRecord]:
    """The latest first.

    Args:
        fetch: `fetch_materializations` or `fetch_observations` of an instance.
    """
    of_partition = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    cursor, has_more = None, True
    while has_more:
        page = fetch(of_partition, limit=_PAGE, cursor=cursor)
        yield from page.records
        cursor, has_more = page.cursor, page.has_more


def evaluation_of(
    key: dg.AssetKey, result: dg.AssetCheckResult, partition: str | None, made: dg.EventLogRecord | None
) -> dg.AssetCheckEvaluation:
    """A result as the event of a partition, whatever the partition of the run.

    Args:
        made: the materialization that was checked. Dagster shows no result that is of another than the
            latest, or of none where there is one.
    """
    return dg.AssetCheckEvaluation(
        asset_key=key,
        check_name=str(result.check_name),
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        partition=partition,
        target_materialization_data=None
        if made is None
        else AssetCheckEvaluationTargetMaterializationData(
            storage_id=made.storage_id, run_id=made.run_id, timestamp=made.timestamp
        ),
    )
