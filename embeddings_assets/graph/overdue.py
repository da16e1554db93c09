"""Splits that were left failed: a check that says so, and a sensor that tells it after a day.

The check is one of the manifests and of each embeddings asset. A run that fails makes no check; the sensor
does, so that a failure of the night is not forgotten by day.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import dagster as dg

from embeddings_assets.graph.attempts import MOST_FAILURES, FailedRun, failures_since_made, given_up
from embeddings_assets.graph.history import evaluation_of, latest_materialization
from embeddings_assets.graph.partitions import dataset_splits

CHECK = "not_left_failed"
DESCRIPTION = (
    "No run of this partition has failed since it was last made; after "
    f"{MOST_FAILURES} failures with nothing changed the nightly backfill leaves it to a person."
)
LEFT_FOR = timedelta(days=1)

_LOOK_SECONDS = 3600

Failures = Sequence[FailedRun]
"""Failed runs since a partition was last made, the latest first."""


def left_failed_sensor(keys: list[dg.AssetKey]) -> dg.SensorDefinition:
    """Every hour, fails the check of partitions of these assets that have been failed for a day."""

    @dg.sensor(
        name="left_failed",
        minimum_interval_seconds=_LOOK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Every hour, reports splits that failed more than a day ago and were not made since, "
        f"by the check {CHECK}.",
    )
    def left_failed(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        return report_left_failed(context, keys, datetime.now(UTC))

    return left_failed


def report_left_failed(
    context: dg.SensorEvaluationContext, keys: list[dg.AssetKey], now: datetime
) -> dg.SensorResult | dg.SkipReason:
    """One look at `now`: an evaluation for each partition that is newly left failed, a word on the rest."""
    told: dict[str, str] = json.loads(context.cursor or "{}")
    left = {
        f"{key.to_user_string()} {partition}": (key, partition, failures)
        for key, partition, failures in _left(context.instance, keys, now)
    }
    fresh = [name for name, (_, _, failures) in left.items() if told.get(name) != failures[0].run_id]
    if not fresh and left.keys() == told.keys():
        return dg.SkipReason(
            f"left failed: {', '.join(left)}" if left else "nothing was left failed for a day"
        )
    for name in fresh:
        context.log.warning(f"{name} was left failed for a day")
    return dg.SensorResult(
        skip_reason=f"newly left failed: {', '.join(fresh) or 'nothing'}",  # what the tick shows
        asset_events=[_evaluation(context.instance, *left[name]) for name in fresh],
        cursor=json.dumps({name: failures[0].run_id for name, (_, _, failures) in left.items()}),
    )


def result_of(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> dg.AssetCheckResult:
    """The check, made now."""
    return _result(key, partition, failures_since_made(instance, key, partition))


def _evaluation(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str, failures: Failures
) -> dg.AssetCheckEvaluation:
    made = latest_materialization(instance, key, partition)
    return evaluation_of(key, _result(key, partition, failures), partition, made)


def _result(key: dg.AssetKey, partition: str, failures: Failures) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        passed=not failures,
        asset_key=key,
        check_name=CHECK,
        severity=_severity(failures),
        metadata=_metadata(key, partition, failures),
    )


def _severity(failures: Failures) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if given_up(failures) else dg.AssetCheckSeverity.WARN


def _metadata(key: dg.AssetKey, partition: str, failures: Failures) -> dict[str, str]:
    expected = {"expected": "no failed run since it was last made"}
    if not failures:
        return {**expected, "found": "none"}
    runs = ", ".join(f"{failure.run_id[:8]} ({failure.ended:%Y-%m-%d %H:%M} UTC)" for failure in failures[:5])
    consequence = ""
    if given_up(failures):
        consequence = "; the nightly backfill does not ask for it any more"
    elif failures[0].outdated:
        consequence = "; what it is made of has changed since"
    return {
        **expected,
        "found": f"{len(failures)} failed: {runs}{consequence}",
        "remedy": f"read the error of run {failures[0].run_id[:8]}, do what it says, then materialize "
        f"{key.to_user_string()} for {partition}",
    }


def _left(
    instance: dg.DagsterInstance, keys: list[dg.AssetKey], now: datetime
) -> Iterator[tuple[dg.AssetKey, str, Failures]]:
    for key in keys:
        for partition in dataset_splits.get_partition_keys():
            failures = failures_since_made(instance, key, partition)
            # The first of them: a partition that fails anew every night is left failed too.
            if failures and failures[-1].ended < now - LEFT_FOR:
                yield key, partition, failures
