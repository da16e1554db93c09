"""Partitions that keep failing, on real runs and evaluations: given up, reported, and asked for again."""

import datetime
from pathlib import Path

import dagster as dg
import pytest
from graph_support import CLIP, CUB, PROCESSED, shown
from nights import DAY, DOGS, HOUR, MODEL_KEYS, Nights, every_model, everything, splits_of

from embeddings_assets.graph.attempts import MOST_FAILURES
from embeddings_assets.graph.build import EVERYTHING
from embeddings_assets.graph.overdue import CHECK, report_left_failed
from embeddings_assets.settings import Settings

# Dagster's own evaluation of conditions uses a parameter that is in beta.
pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")


@pytest.fixture
def instance() -> dg.DagsterInstance:
    return dg.DagsterInstance.ephemeral()


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


def test_embeddings_that_were_given_up_are_asked_for_when_a_run_finds_another_manifest(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """As after `prepare` on the command line, or a run killed before it recorded what it wrote."""
    now = datetime.datetime.now(datetime.UTC)
    night = (now + DAY).replace(hour=2, minute=1)
    nights = Nights(instance, Settings(data_root=tmp_path, weights=str(tmp_path / "none")), start=now)
    nights.report(PROCESSED, DOGS)
    for version, tick in (("2", night), ("3", night + 2 * DAY)):
        for _ in range(MOST_FAILURES):
            nights.fail(DOGS, CLIP)
        assert "CLIP" not in nights.ask(tick), "given up, until the manifest is another"
        assert check_of(nights, DOGS).severity == dg.AssetCheckSeverity.ERROR
        nights.report(PROCESSED, DOGS, version=version, status="unchanged")
        nights.report(PROCESSED, DOGS, version=version, status="unchanged")
        assert nights.ask(tick + DAY) == every_model(DOGS)
        assert check_of(nights, DOGS).severity == dg.AssetCheckSeverity.WARN


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
