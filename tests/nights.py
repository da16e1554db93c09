"""Evaluations of the nightly backfill over ticks, and what happens between them."""

import datetime

import dagster as dg
from dagster import EventLogRecord
from dagster._core.definitions.data_version import extract_data_version_from_entry
from graph_support import PROCESSED

from embeddings_assets.catalog import MODELS, SPLITS
from embeddings_assets.graph.build import build_definitions
from embeddings_assets.graph.keys import RAW
from embeddings_assets.settings import Settings

MODEL_KEYS = [dg.AssetKey(["embeddings", model.name]) for model in MODELS]
DOGS = "Stanford Dogs|validation"
EVENING = datetime.datetime(2026, 1, 1, 22, tzinfo=datetime.UTC)
NIGHT = datetime.datetime(2026, 1, 2, 2, 1, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)

Asked = dict[str, set[str]]


class Nights:
    """Evaluates the conditions tick by tick, carrying the cursor as the sensor does."""

    def __init__(
        self,
        instance: dg.DagsterInstance,
        settings: Settings | None = None,
        *,
        start: datetime.datetime = EVENING,
    ) -> None:
        self.instance = instance
        self.defs = build_definitions(settings or Settings())
        self._cursor = dg.evaluate_automation_conditions(
            self.defs, instance=instance, evaluation_time=start
        ).cursor

    def ask(self, time: datetime.datetime) -> Asked:
        """Partitions asked for, by asset, where any are."""
        result = dg.evaluate_automation_conditions(
            self.defs, instance=self.instance, evaluation_time=time, cursor=self._cursor
        )
        self._cursor = result.cursor
        asked = {key.path[-1]: set(result.get_requested_partitions(key)) for key in (PROCESSED, *MODEL_KEYS)}
        return {asset: partitions for asset, partitions in asked.items() if partitions}

    def redefine(self, settings: Settings) -> None:
        self.defs = build_definitions(settings)

    def observe(self, dataset: str, version: str = "1", state: str = "present") -> None:
        """Record what was seen of a raw dataset."""
        self.instance.report_runless_asset_event(
            dg.AssetObservation(
                RAW, partition=dataset, tags={"dagster/data_version": version}, metadata={"state": state}
            )
        )

    def latest(self, key: dg.AssetKey, partition: str) -> EventLogRecord | None:
        return self.instance.get_latest_data_version_record(key, key == RAW, partition)

    def report(
        self,
        key: dg.AssetKey,
        partition: str,
        version: str = "1",
        made_of: EventLogRecord | None = None,
        status: str = "written",
        code: str | None = None,
    ) -> None:
        """Record a materialization with the tags of a run: its version, its recipe's, what it was made of."""
        upstream = RAW if key == PROCESSED else PROCESSED
        of = partition.partition("|")[0] if upstream == RAW else partition
        made_of = made_of or self.latest(upstream, of)
        used = None if made_of is None else extract_data_version_from_entry(made_of.event_log_entry)
        tags = {
            "dagster/data_version": version,
            "dagster/code_version": code or str(self.defs.resolve_asset_graph().get(key).code_version),
            f"dagster/input_data_version/{upstream.to_user_string()}": used.value if used else "INITIAL",
            f"dagster/input_event_pointer/{upstream.to_user_string()}": str(made_of.storage_id)
            if made_of
            else "NULL",
        }
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(key, partition=partition, tags=tags, metadata={"status": status})
        )

    def report_all(self, *partitions: str) -> None:
        for partition in partitions:
            for key in (PROCESSED, *MODEL_KEYS):
                self.report(key, partition)

    def fail(self, partition: str, *keys: dg.AssetKey) -> None:
        """Run assets for real where nothing is there to make them of."""
        job = self.defs.resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(
            asset_selection=keys,
            partition_key=partition,
            instance=self.instance,
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        assert not result.success

    def start(self, partition: str, *keys: dg.AssetKey) -> None:
        """Leave a run of these assets in progress."""
        job = self.defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=set(keys))
        self.instance.create_run_for_job(
            job,
            tags={"dagster/partition": partition},
            status=dg.DagsterRunStatus.STARTED,
            asset_selection=frozenset(keys),
        )


def every_model(*partitions: str) -> Asked:
    return {model.name: set(partitions) for model in MODELS}


def everything(*partitions: str) -> Asked:
    return {"processed_images": set(partitions), **every_model(*partitions)}


def splits_of(dataset: str) -> list[str]:
    return [f"{dataset}|{split}" for split in SPLITS]
