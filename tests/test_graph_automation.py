"""The nightly backfill, on real evaluations: what it asks for, and what it leaves alone."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from graph_support import CLIP, CUB, PROCESSED
from nights import DAY, DOGS, EVENING, HOUR, MODEL_KEYS, NIGHT, Nights, every_model, everything, splits_of

from embeddings_assets.encoders.weights.lock import write_random_lock
from embeddings_assets.graph.build import build_definitions
from embeddings_assets.settings import Settings
from embeddings_assets.store.schema import MANIFEST_RULES

# Dagster's own evaluation of conditions uses a parameter that is in beta.
pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


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


@pytest.mark.parametrize("code", ["manifest-schema1", f"manifest-schema1-rules{MANIFEST_RULES - 1}"])
def test_manifests_made_by_earlier_rules_are_stale_in_every_split(
    instance: dg.DagsterInstance, code: str
) -> None:
    """Made again in some splits only, two orders of labels could stand side by side."""
    nights = Nights(instance)
    nights.observe(CUB)
    for partition in splits_of(CUB):
        nights.report(PROCESSED, partition, code=code)
        for key in MODEL_KEYS:
            nights.report(key, partition)
    assert nights.ask(NIGHT) == everything(*splits_of(CUB))
    for partition in splits_of(CUB):
        nights.report(PROCESSED, partition, status="unchanged")
    assert nights.ask(NIGHT + DAY) == {}, "the same manifests: the embeddings stand"


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


def test_only_what_costs_little_runs_before_someone_turns_it_on() -> None:
    sensors = list(build_definitions(Settings()).sensors or [])
    assert {sensor.name: sensor.default_status.value for sensor in sensors} == {
        "nightly_backfill": "STOPPED",
        "raw_data": "RUNNING",
        "left_failed": "RUNNING",
    }
