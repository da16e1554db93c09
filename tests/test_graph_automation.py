"""The nightly backfill, on real evaluations: what it asks for, what it leaves alone, and what it gives up."""

import datetime
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from dagster import EventLogRecord
from dagster._core.definitions.data_version import extract_data_version_from_entry
from graph_support import CLIP, CUB, PROCESSED, shown

from embeddings_assets.catalog import MODELS, SPLITS
from embeddings_assets.encoders.lock import write_random_lock
from embeddings_assets.graph.attempts import MOST_FAILURES
from embeddings_assets.graph.build import EVERYTHING, build_definitions
from embeddings_assets.graph.keys import RAW
from embeddings_assets.graph.overdue import CHECK, report_left_failed
from embeddings_assets.settings import Settings

# Dagster's own evaluation of conditions uses a parameter that is in beta.
pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

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
    ) -> None:
        """Record a materialization with the tags of a run: its version, its recipe's, what it was made of."""
        upstream = RAW if key == PROCESSED else PROCESSED
        of = partition.partition("|")[0] if upstream == RAW else partition
        made_of = made_of or self.latest(upstream, of)
        used = None if made_of is None else extract_data_version_from_entry(made_of.event_log_entry)
        tags = {
            "dagster/data_version": version,
            "dagster/code_version": str(self.defs.resolve_asset_graph().get(key).code_version),
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


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


def every_model(*partitions: str) -> Asked:
    return {model.name: set(partitions) for model in MODELS}


def everything(*partitions: str) -> Asked:
    return {"processed_images": set(partitions), **every_model(*partitions)}


def splits_of(dataset: str) -> list[str]:
    return [f"{dataset}|{split}" for split in SPLITS]


def test_a_fresh_graph_asks_for_what_has_its_raw_data_and_only_at_night(instance: dg.DagsterInstance) -> None:
    nights = Nights(instance)
    assert nights.ask(NIGHT) == {}, "no raw data has been seen"
    nights.observe(CUB)
    nights.observe("Stanford Dogs", state="missing")
    nights.observe("Stanford Cars", state="partial")
    assert nights.ask(NIGHT + DAY / 2) == {}
    assert nights.ask(NIGHT + DAY) == everything(*splits_of(CUB)), "manifests and vectors in one go"


def test_embeddings_are_asked_for_where_their_manifest_stands(instance: dg.DagsterInstance) -> None:
    nights = Nights(instance)
    nights.report(PROCESSED, DOGS)
    assert nights.ask(NIGHT) == every_model(DOGS)


@pytest.mark.parametrize(
    ("state", "asked"),
    [("present", True), ("processed-tree", True), ("partial", True), ("missing", False), ("wrong", False)],
)
def test_embeddings_are_not_asked_for_where_their_images_are_gone(
    instance: dg.DagsterInstance, state: str, asked: bool
) -> None:
    nights = Nights(instance)
    nights.observe("Stanford Dogs", state="present")
    nights.report(PROCESSED, DOGS)
    nights.observe("Stanford Dogs", state=state)
    assert (DOGS in nights.ask(NIGHT).get("CLIP", ())) is asked


def test_a_complete_partition_is_not_asked_for_and_an_identical_rerun_changes_nothing(
    instance: dg.DagsterInstance,
) -> None:
    nights = Nights(instance)
    nights.observe(CUB)
    nights.report_all(*splits_of(CUB))
    assert nights.ask(NIGHT) == {}
    nights.observe(CUB)
    nights.report_all(*splits_of(CUB))
    assert nights.ask(NIGHT + HOUR) == {}
    assert nights.ask(NIGHT + DAY) == {}


def test_changed_raw_data_makes_its_own_dataset_again(instance: dg.DagsterInstance) -> None:
    nights = Nights(instance)
    for dataset in (CUB, "Stanford Dogs"):
        nights.observe(dataset)
        nights.report_all(*splits_of(dataset))
    assert nights.ask(EVENING + HOUR) == {}
    nights.observe(CUB, version="2")
    assert nights.ask(EVENING + 2 * HOUR) == {}
    assert nights.ask(NIGHT) == everything(*splits_of(CUB))
    nights.report_all(*splits_of(CUB))
    assert nights.ask(NIGHT + DAY) == {}


def test_a_changed_manifest_makes_its_partition_stale_and_an_identical_one_does_not(
    instance: dg.DagsterInstance,
) -> None:
    nights = Nights(instance)
    nights.report_all(f"{CUB}|train", DOGS)
    nights.ask(EVENING + HOUR)
    nights.report(PROCESSED, f"{CUB}|train", version="2")
    nights.report(PROCESSED, DOGS, version="1")
    assert nights.ask(EVENING + 2 * HOUR) == {}
    assert nights.ask(NIGHT) == every_model(f"{CUB}|train")
    assert nights.ask(NIGHT + DAY) == every_model(f"{CUB}|train")  # the first night's run has failed
    nights.report_all(f"{CUB}|train")
    assert nights.ask(NIGHT + 2 * DAY) == {}


def test_a_changed_recipe_makes_the_models_it_concerns_stale(instance: dg.DagsterInstance) -> None:
    nights = Nights(instance)
    nights.report_all(DOGS)
    nights.ask(EVENING + HOUR)
    nights.redefine(Settings(width="native"))
    assert nights.ask(EVENING + 2 * HOUR) == {}
    assert nights.ask(NIGHT) == {"Franca": {DOGS}, "SigLIPv2": {DOGS}}


def test_another_precision_or_other_weights_make_every_model_stale(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    random = Settings(weights="random")
    nights = Nights(instance, random)
    nights.report_all(DOGS)
    nights.redefine(random)
    assert nights.ask(NIGHT) == {}, "the same settings"
    nights.redefine(replace(random, precision="fast"))
    assert nights.ask(NIGHT + DAY) == every_model(DOGS)
    nights.redefine(replace(random, weights=str(tmp_path)))
    assert nights.ask(NIGHT + 2 * DAY) == every_model(DOGS), "those that would be fetched"
    write_random_lock(tmp_path)
    nights.redefine(replace(random, weights=str(tmp_path)))
    assert nights.ask(NIGHT + 3 * DAY) == {}, "random ones, asked for in another way"
    (tmp_path / "CLIP").mkdir()
    (tmp_path / "CLIP" / "ViT-B-32.pt").write_bytes(b"not read")
    nights.redefine(replace(random, weights=str(tmp_path)))
    assert nights.ask(NIGHT + 4 * DAY) == {"CLIP": {DOGS}}


def test_what_became_stale_before_the_first_tick_is_asked_for(instance: dg.DagsterInstance) -> None:
    """The sensor is off until someone turns it on."""
    by_day = Nights(instance)
    for dataset in (CUB, "Stanford Dogs"):
        by_day.observe(dataset)
        by_day.report_all(*splits_of(dataset))
    by_day.report(PROCESSED, f"{CUB}|train", version="2")
    assert Nights(instance).ask(NIGHT) == every_model(f"{CUB}|train")
    by_day.observe("Stanford Dogs", version="2")
    stale = {**every_model(f"{CUB}|train", *splits_of("Stanford Dogs"))}
    stale["processed_images"] = set(splits_of("Stanford Dogs"))
    assert Nights(instance).ask(NIGHT) == stale
    by_day.report_all(f"{CUB}|train", *splits_of("Stanford Dogs"))
    assert Nights(instance).ask(NIGHT) == {}
    widened = Nights(instance, Settings(width="native")).ask(NIGHT)
    assert widened.keys() == {"Franca", "SigLIPv2"}


def test_a_manifest_that_changes_while_vectors_are_made_from_the_old_one_leaves_them_stale(
    instance: dg.DagsterInstance,
) -> None:
    nights = Nights(instance)
    nights.report_all(DOGS)
    nights.ask(EVENING + HOUR)
    old = nights.latest(PROCESSED, DOGS)
    nights.report(PROCESSED, DOGS, version="2")
    for key in MODEL_KEYS:
        nights.report(key, DOGS, made_of=old)
    assert nights.ask(NIGHT) == every_model(DOGS)


def test_a_manifest_in_progress_is_waited_for(instance: dg.DagsterInstance) -> None:
    nights = Nights(instance)
    nights.report(PROCESSED, DOGS)
    nights.start(DOGS, PROCESSED)
    assert nights.ask(NIGHT) == {}


def test_what_is_in_progress_is_left_alone(instance: dg.DagsterInstance) -> None:
    nights = Nights(instance)
    nights.report(PROCESSED, DOGS)
    nights.start(DOGS, CLIP)
    others = every_model(DOGS)
    del others["CLIP"]
    assert nights.ask(NIGHT) == others


def test_what_keeps_failing_is_given_up_until_a_person_makes_it(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    night = (now + DAY).replace(hour=2, minute=1)
    nights = Nights(instance, Settings(data_root=tmp_path, weights=str(tmp_path / "none")), start=now)
    nights.report(PROCESSED, DOGS)
    asked = []
    for failures in range(MOST_FAILURES + 2):
        asked.append("CLIP" in nights.ask(night + failures * DAY))
        if asked[-1]:
            nights.fail(DOGS, CLIP)
    assert asked == [True] * MOST_FAILURES + [False] * 2, "bounded, never a loop"
    nights.report(CLIP, DOGS)
    assert "CLIP" not in nights.ask(night + 8 * DAY)
    nights.report(PROCESSED, DOGS, version="2")
    assert "CLIP" in nights.ask(night + 9 * DAY), "made by a person: it is tried again when it is stale"


def test_what_was_given_up_is_asked_for_when_its_dataset_arrives(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    night = (now + DAY).replace(hour=2, minute=1)
    nights = Nights(instance, Settings(data_root=tmp_path, weights="random"), start=now)
    for partition in splits_of(CUB):
        for _ in range(MOST_FAILURES):
            nights.fail(partition, PROCESSED)
    assert check_of(nights, f"{CUB}|test", PROCESSED).severity == dg.AssetCheckSeverity.ERROR
    nights.observe(CUB)
    assert nights.ask(night) == everything(*splits_of(CUB))
    told = check_of(nights, f"{CUB}|test", PROCESSED)
    assert (told.passed, told.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert str(told.metadata["found"].value).endswith("; what it is made of has changed since")


def test_embeddings_that_were_given_up_are_asked_for_when_their_manifest_is_written_anew(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    night = (now + DAY).replace(hour=2, minute=1)
    nights = Nights(instance, Settings(data_root=tmp_path, weights=str(tmp_path / "none")), start=now)
    nights.report(PROCESSED, DOGS)
    for _ in range(MOST_FAILURES):
        nights.fail(DOGS, CLIP)
        nights.report(PROCESSED, DOGS, status="unchanged")
    assert "CLIP" not in nights.ask(night)
    nights.report(PROCESSED, DOGS)  # mended, with the same content
    assert nights.ask(night + DAY) == every_model(DOGS)


def test_a_failure_counts_for_the_asset_that_failed_alone(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """The models of a run whose manifest failed were only skipped."""
    now = datetime.datetime.now(datetime.UTC)
    night = (now + DAY).replace(hour=2, minute=1)
    nights = Nights(instance, Settings(data_root=tmp_path, weights=str(tmp_path / "none")), start=now)
    for _ in range(MOST_FAILURES):
        nights.fail(DOGS, PROCESSED, *MODEL_KEYS)
    assert check_of(nights, DOGS).passed
    assert not check_of(nights, DOGS, PROCESSED).passed
    nights.observe("Stanford Dogs", state="partial")
    nights.report(PROCESSED, DOGS)
    assert nights.ask(night) == every_model(DOGS)


def check_of(nights: Nights, partition: str, key: dg.AssetKey = CLIP) -> dg.AssetCheckEvaluation:
    """The check that tells of failures, run alone."""
    job = nights.defs.resolve_job_def(EVERYTHING).get_subset(
        asset_check_selection={dg.AssetCheckKey(key, CHECK)}
    )
    result = job.execute_in_process(partition_key=partition, instance=nights.instance)
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation


def test_a_check_tells_of_failures_and_of_what_was_given_up(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    nights = Nights(instance, Settings(data_root=tmp_path, weights=str(tmp_path / "none")))
    assert check_of(nights, DOGS).passed
    nights.fail(DOGS, CLIP)
    nights.fail(DOGS, dg.AssetKey(["embeddings", "DINOv2"]))
    once = check_of(nights, DOGS)
    assert (once.passed, once.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert str(once.metadata["found"].value).startswith("1 failed: ")
    for _ in range(MOST_FAILURES - 1):
        nights.fail(DOGS, CLIP)
    given_up = check_of(nights, DOGS)
    assert (given_up.passed, given_up.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert "does not ask for it any more" in str(given_up.metadata["found"].value)
    assert "materialize embeddings/CLIP" in str(given_up.metadata["remedy"].value)
    assert check_of(nights, f"{CUB}|train").passed
    nights.report(CLIP, DOGS)
    assert check_of(nights, DOGS).passed


def test_a_sensor_reports_what_was_left_failed_for_a_day(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    nights = Nights(instance, Settings(data_root=tmp_path, weights=str(tmp_path / "none")))
    now = datetime.datetime.now(datetime.UTC)
    cursor = None

    def look(later: datetime.timedelta) -> dg.SensorResult | dg.SkipReason:
        nonlocal cursor
        context = dg.build_sensor_context(instance=instance, cursor=cursor)
        result = report_left_failed(context, MODEL_KEYS, now + later)
        cursor = result.cursor if isinstance(result, dg.SensorResult) else cursor
        return result

    assert isinstance(look(2 * DAY), dg.SkipReason)
    nights.fail(DOGS, CLIP)
    nights.fail(f"{CUB}|train", dg.AssetKey(["embeddings", "CLIP"]))
    nights.report(CLIP, f"{CUB}|train")
    assert isinstance(look(HOUR), dg.SkipReason), "it may yet be mended today"
    reported = look(DAY + HOUR)
    assert isinstance(reported, dg.SensorResult)
    (event,) = reported.asset_events
    assert isinstance(event, dg.AssetCheckEvaluation)
    assert (event.asset_key, event.partition, event.check_name, event.passed) == (CLIP, DOGS, CHECK, False)
    instance.report_runless_asset_event(event)
    assert shown(instance, [event.asset_check_key])[CHECK, DOGS] == "FAILED", "it was never made"
    again = look(2 * DAY)
    assert isinstance(again, dg.SkipReason), "told once"
    assert "embeddings/CLIP Stanford Dogs|validation" in str(again.skip_message)
    nights.report(CLIP, DOGS)
    assert isinstance(look(3 * DAY), dg.SensorResult), "its cursor forgets what was made"
    assert isinstance(look(4 * DAY), dg.SkipReason)


def test_a_split_that_was_left_failed_is_shown_failed_until_it_is_made(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    nights = Nights(instance, Settings(data_root=tmp_path, weights=str(tmp_path / "none")))
    nights.report(CLIP, DOGS)
    for _ in range(MOST_FAILURES):
        nights.fail(DOGS, CLIP)
    check = [dg.AssetCheckKey(CLIP, CHECK)]
    assert shown(instance, check) == {(CHECK, DOGS): "EXECUTION_FAILED"}
    later = datetime.datetime.now(datetime.UTC) + DAY + HOUR
    reported = report_left_failed(dg.build_sensor_context(instance=instance), [CLIP], later)
    assert isinstance(reported, dg.SensorResult)
    for event in reported.asset_events:
        instance.report_runless_asset_event(event)
    assert shown(instance, check) == {(CHECK, DOGS): "FAILED"}
    nights.report(CLIP, DOGS, version="2")
    assert shown(instance, check) == {}, "it was of another materialization"


def test_only_what_costs_little_runs_before_someone_turns_it_on() -> None:
    sensors = list(build_definitions(Settings()).sensors or [])
    assert {sensor.name: sensor.default_status.value for sensor in sensors} == {
        "nightly_backfill": "STOPPED",
        "raw_data": "RUNNING",
        "left_failed": "RUNNING",
    }
