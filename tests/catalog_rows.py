"""What the tests of added rows run and look at: the graph as one process sees it, with the catalog it has.

As a script: the package is the one that PYTHONPATH names. It takes a `Visit` as JSON and prints an `Account`.
"""

import datetime
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import deserialize_value, serialize_value
from dagster._core.definitions.asset_daemon_cursor import AssetDaemonCursor
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.loader import LoadingContextForTest

import embeddings_assets
from embeddings_assets.graph.build import build_definitions
from embeddings_assets.settings import Settings

EVENING = datetime.datetime(2026, 1, 1, 22, tzinfo=datetime.UTC)
NIGHT = datetime.datetime(2026, 1, 2, 2, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)

Asked = dict[str, list[str]]


@dataclass(frozen=True)
class Run:
    """One run: a partition of some assets with all their checks."""

    assets: list[str]
    partition: str
    gpu: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Visit:
    """Runs to make one after the other, between two nights.

    `day` numbers the first night. `cursor` is what the nightly sensor kept from the process before.
    """

    home: str
    data_root: str
    runs: list[Run]
    day: int = 0
    cursor: str | None = None


@dataclass(frozen=True)
class Account:
    """What was seen.

    `before` and `after` hold every partition that has been materialised, `asked_before` and `asked_after`
    what the nightly condition asked for, `checks` the results of each run: passed or not, and the severity.
    """

    package: str
    before: dict[str, dict[str, Any]]
    after: dict[str, dict[str, Any]]
    asked_before: Asked
    asked_after: Asked
    failures: list[str]
    checks: list[dict[str, dict[str, tuple[bool, str]]]]
    cursor: str


def visit(given: Visit) -> Account:
    """Load the graph as a code location does, and make the runs in a lasting Dagster instance."""
    defs = build_definitions(Settings(data_root=Path(given.data_root), weights="random", device="cpu"))
    dg.Definitions.validate_loadable(defs)
    with dg.DagsterInstance.from_config(given.home) as instance:
        before = standing(defs, instance)
        cursor = None if given.cursor is None else deserialize_value(given.cursor, AssetDaemonCursor)
        # The sensor ticks by day too; only from the second tick on does it see a night begin.
        _, cursor = evaluate(defs, instance, cursor, EVENING + given.day * DAY)
        asked_before, cursor = evaluate(defs, instance, cursor, NIGHT + given.day * DAY)
        results = [execute(defs, instance, run) for run in given.runs]
        asked_after, cursor = evaluate(defs, instance, cursor, NIGHT + (given.day + 1) * DAY)
        return Account(
            package=str(Path(embeddings_assets.__file__).parent),
            before=before,
            after=standing(defs, instance),
            asked_before=asked_before,
            asked_after=asked_after,
            failures=[
                str(event.step_failure_data)
                for result in results
                for event in result.get_step_failure_events()
            ],
            checks=[check_results(result) for result in results],
            cursor=serialize_value(cursor),
        )


def execute(defs: dg.Definitions, instance: dg.DagsterInstance, run: Run) -> dg.ExecuteInProcessResult:
    keys = {dg.AssetKey.from_user_string(asset) for asset in run.assets}
    job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=keys)
    config: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    if keys != {dg.AssetKey("processed_images")}:
        config["resources"] = {"gpu": {"config": {"workers": 1, **run.gpu}}}
    return job.execute_in_process(
        partition_key=run.partition, instance=instance, raise_on_error=False, run_config=config
    )


def check_results(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, tuple[bool, str]]]:
    found: dict[str, dict[str, tuple[bool, str]]] = {}
    for check in result.get_asset_check_evaluations():
        of_asset = found.setdefault(check.asset_key.to_user_string(), {})
        of_asset[check.check_name] = (check.passed, check.severity.value)
    return found


def standing(defs: dg.Definitions, instance: dg.DagsterInstance) -> dict[str, dict[str, Any]]:
    """Every materialised partition: its last event, versions, and whether Dagster calls it stale."""
    graph = defs.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
    found = {}
    for key in graph.get_all_asset_keys():
        for partition in sorted(instance.get_materialized_partitions(key)):
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1
            ).records
            materialization = records[0].asset_materialization
            assert materialization is not None
            found[f"{key.to_user_string()} {partition}"] = {
                "event": records[0].storage_id,
                "run": records[0].run_id,
                "tags": dict(materialization.tags or {}),
                "code_version": graph.get(key).code_version,
                "status": resolver.get_status(key, partition).value,
            }
    return found


def evaluate(
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    cursor: AssetDaemonCursor | None,
    time: datetime.datetime,
) -> tuple[Asked, AssetDaemonCursor]:
    """What the nightly condition asks for, by asset where it asks for any, and the sensor's new cursor."""
    result = dg.evaluate_automation_conditions(defs, instance=instance, cursor=cursor, evaluation_time=time)
    asked = {
        key.to_user_string(): sorted(result.get_requested_partitions(key))
        for key in defs.resolve_asset_graph().get_all_asset_keys()
    }
    return {asset: partitions for asset, partitions in asked.items() if partitions}, result.cursor


def main() -> None:
    values = json.loads(sys.argv[1])
    runs = [Run(**run) for run in values.pop("runs")]
    print(json.dumps(asdict(visit(Visit(**values, runs=runs)))))  # noqa: T201 - read by the test


if __name__ == "__main__":
    main()
