"""The nightly backfill: which partitions are asked for without a person asking. Off until switched on."""

from collections.abc import Callable

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus

from embeddings_assets.graph.attempts import MOST_FAILURES, failures_since_made, given_up
from embeddings_assets.graph.history import latest_observation
from embeddings_assets.graph.keys import RAW
from embeddings_assets.graph.partitions import dataset_and_split
from embeddings_assets.graph.previews import chosen_previews

NIGHTLY = "0 2 * * *"


class GivenUp(dg.AutomationCondition):
    """The partition failed MOST_FAILURES times since it, or what it is made of, last changed."""

    @property
    def name(self) -> str:
        return "given_up"

    @property
    def description(self) -> str:
        return f"Failed {MOST_FAILURES} times since it was made and what it is made of changed"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        instance = context.asset_graph_view.instance
        return _where(context, lambda key: given_up(failures_since_made(instance, context.key, key)))


class Stale(dg.AutomationCondition):
    """Made with another recipe or from other data than there is now: what the UI shows as stale."""

    @property
    def name(self) -> str:
        return "stale"

    @property
    def description(self) -> str:
        return "Made with another recipe or from other data"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        view = context.asset_graph_view
        resolver = CachingStaleStatusResolver(view.instance, view.asset_graph, view)
        return _where(context, lambda key: resolver.get_status(context.key, key) == StaleStatus.STALE)


class RawDataPresent(dg.AutomationCondition):
    """Every image of the partition's dataset was there when it was last looked at."""

    @property
    def name(self) -> str:
        return "raw_data_present"

    @property
    def description(self) -> str:
        return "The raw dataset is there"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        instance = context.asset_graph_view.instance
        return _where(context, lambda key: _raw_state(instance, key) in ("present", "processed-tree"))


class RawDataUnusable(dg.AutomationCondition):
    """The partition's dataset was missing, or its lists could not be read, when it was last looked at."""

    @property
    def name(self) -> str:
        return "raw_data_unusable"

    @property
    def description(self) -> str:
        return "The raw dataset is missing or cannot be read"

    def evaluate(self, context: dg.AutomationContext) -> dg.AutomationResult:
        instance = context.asset_graph_view.instance
        return _where(context, lambda key: _raw_state(instance, key) in ("missing", "wrong"))


def nightly_backfill_condition(cron: str = NIGHTLY) -> dg.AutomationCondition:
    """For embeddings. Asks, at each tick of `cron` (UTC), for what is missing or stale and can be made."""
    # With a manifest that is made first, in the same run.
    upstream_present = (~dg.AutomationCondition.any_deps_missing()).with_label("upstream present")
    # A manifest that is made again may come out changed; if it does not, embedding takes no time.
    manifest_made = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.will_be_requested())
    # Images that are known to be gone cannot be embedded; a part of them can, where its manifest says so.
    return _nightly(cron, _missing_or_stale() | manifest_made, upstream_present & ~RawDataUnusable())


def nightly_manifest_condition(cron: str = NIGHTLY) -> dg.AutomationCondition:
    """For manifests: as `nightly_backfill_condition`, of datasets whose raw data is there."""
    # A dataset that is not on this machine would fail every night.
    return _nightly(cron, _missing_or_stale(), RawDataPresent())


def nightly_backfill_sensor(target: dg.AssetSelection) -> dg.AutomationConditionSensorDefinition:
    """Evaluates the conditions every minute; one backfill holds all that a tick asks for."""
    with chosen_previews():  # of conditions of our own, which are evaluated in the code server alone
        return dg.AutomationConditionSensorDefinition(
            "nightly_backfill",
            target=target,
            default_status=dg.DefaultSensorStatus.STOPPED,
            minimum_interval_seconds=60,
            use_user_code_server=True,
            description="Every night at 02:00 UTC, asks for manifests and embeddings that are missing or "
            "stale, have what they are made of, are not in progress, and did not fail "
            f"{MOST_FAILURES} times with nothing changed.",
        )


def _nightly(
    cron: str, wanted: dg.AutomationCondition, possible: dg.AutomationCondition
) -> dg.AutomationCondition:
    # Without it, work would start at any hour, as soon as an upstream file changes.
    at_night = dg.AutomationCondition.cron_tick_passed(cron)
    # A large split may still be running when the next night comes; so may the manifest it is made from.
    idle = ~(dg.AutomationCondition.in_progress() | dg.AutomationCondition.any_deps_in_progress())
    # What fails every night needs a person, not another night.
    worth_trying = ~GivenUp()
    return (
        at_night.with_label("at night")
        & wanted
        & possible
        & idle.with_label("not in progress")
        & worth_trying
    ).with_label("nightly backfill")


def _missing_or_stale() -> dg.AutomationCondition:
    # A file set that was never made: a fresh clone, a new dataset, a new model.
    absent = dg.AutomationCondition.missing()
    # Judged by what stands, not by changes seen from tick to tick: those of the time before the sensor was
    # switched on, or of while a run was in progress, would be lost.
    return (absent | Stale()).with_label("missing or stale")


def _where(context: dg.AutomationContext, holds: Callable[[str], bool]) -> dg.AutomationResult:
    """The candidates whose partition key has a property."""
    candidates = context.candidate_subset
    keys = {key for key in candidates.expensively_compute_partition_keys() if holds(key)}
    return dg.AutomationResult(context, candidates.compute_intersection_with_partition_keys(keys))


def _raw_state(instance: dg.DagsterInstance, partition_key: str) -> str | None:
    dataset, _ = dataset_and_split(partition_key)
    record = latest_observation(instance, RAW, dataset)
    observation = record.asset_observation if record else None
    state = observation.metadata.get("state") if observation else None
    return None if state is None else str(state.value)
