"""The nightly backfill, on real evaluations: what it asks for, and what it leaves alone."""

import datetime

import dagster as dg
import pytest
from graph_support import CUB, PROCESSED

from embeddings_assets.catalog import MODELS
from embeddings_assets.graph.build import build_definitions
from embeddings_assets.settings import Settings

# Dagster's own evaluation of conditions uses a parameter that is in beta.
pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

MODEL_KEYS = [dg.AssetKey(["embeddings", model.name]) for model in MODELS]
DOGS = "Stanford Dogs|validation"
EVENING = datetime.datetime(2026, 1, 1, 22, tzinfo=datetime.UTC)
NIGHT = datetime.datetime(2026, 1, 2, 2, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)

Asked = dict[str, set[str]]


class Nights:
    """Evaluates the condition tick by tick, carrying the cursor as the sensor does."""

    def __init__(self, instance: dg.DagsterInstance, width: str = "contract") -> None:
        self.instance = instance
        self.defs = build_definitions(Settings(width=width))
        self._cursor = dg.evaluate_automation_conditions(
            self.defs, instance=instance, evaluation_time=EVENING
        ).cursor

    def ask(self, time: datetime.datetime) -> Asked:
        """Partitions asked for, by model, where any are."""
        result = dg.evaluate_automation_conditions(
            self.defs, instance=self.instance, evaluation_time=time, cursor=self._cursor
        )
        self._cursor = result.cursor
        asked = {key.path[-1]: set(result.get_requested_partitions(key)) for key in MODEL_KEYS}
        assert result.get_requested_partitions(PROCESSED) == set()
        return {model: partitions for model, partitions in asked.items() if partitions}

    def redefine(self, width: str) -> None:
        self.defs = build_definitions(Settings(width=width))

    def report(self, key: dg.AssetKey, partition: str, version: str = "1") -> None:
        """Record a materialization, as a run in between would."""
        self.instance.report_runless_asset_event(
            dg.AssetMaterialization(key, partition=partition, tags={"dagster/data_version": version})
        )

    def report_all(self, partition: str) -> None:
        for key in (PROCESSED, *MODEL_KEYS):
            self.report(key, partition)


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


def every_model(*partitions: str) -> Asked:
    return {model.name: set(partitions) for model in MODELS}


def test_a_fresh_graph_asks_for_what_has_its_manifest_and_only_at_night(instance: dg.DagsterInstance) -> None:
    nights = Nights(instance)
    assert nights.ask(NIGHT) == {}
    for partition in (f"{CUB}|train", DOGS):
        nights.report(PROCESSED, partition)
    assert nights.ask(NIGHT + DAY / 2) == {}
    assert nights.ask(NIGHT + DAY) == every_model(f"{CUB}|train", DOGS)


def test_a_complete_partition_is_not_asked_for(instance: dg.DagsterInstance) -> None:
    nights = Nights(instance)
    nights.report_all(DOGS)
    assert nights.ask(NIGHT) == {}
    assert nights.ask(NIGHT + DAY) == {}


def test_a_changed_manifest_makes_its_partition_stale_and_an_identical_one_does_not(
    instance: dg.DagsterInstance,
) -> None:
    nights = Nights(instance)
    for partition in (f"{CUB}|train", DOGS):
        nights.report_all(partition)
    nights.ask(EVENING + DAY / 24)
    nights.report(PROCESSED, f"{CUB}|train", version="2")
    nights.report(PROCESSED, DOGS, version="1")
    assert nights.ask(EVENING + DAY / 12) == {}
    assert nights.ask(NIGHT) == every_model(f"{CUB}|train")
    assert nights.ask(NIGHT + DAY) == every_model(f"{CUB}|train")  # the first night's run has failed
    nights.report_all(f"{CUB}|train")
    assert nights.ask(NIGHT + 2 * DAY) == {}


def test_a_changed_recipe_makes_the_models_it_concerns_stale(instance: dg.DagsterInstance) -> None:
    nights = Nights(instance)
    nights.report_all(DOGS)
    nights.ask(EVENING + DAY / 24)
    nights.redefine(width="native")
    assert nights.ask(EVENING + DAY / 12) == {}
    assert nights.ask(NIGHT) == {"Franca": {DOGS}, "SigLIPv2": {DOGS}}


def test_the_sensor_is_off_until_someone_turns_it_on() -> None:
    sensors = list(build_definitions(Settings()).sensors or [])
    assert [(sensor.name, sensor.default_status) for sensor in sensors] == [
        ("nightly_backfill", dg.DefaultSensorStatus.STOPPED)
    ]
