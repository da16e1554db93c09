"""The nightly backfill: which partitions are asked for without a person asking. Off until switched on."""

import dagster as dg

NIGHTLY = "0 2 * * *"


def nightly_backfill_condition(cron: str = NIGHTLY) -> dg.AutomationCondition:
    """Asks, at each tick of `cron` (UTC), for what is missing or stale and can be made."""
    # Without it, work would start at any hour, as soon as an upstream file changes.
    at_night = dg.AutomationCondition.cron_tick_passed(cron)
    # A file set that was never made: a fresh clone, a new dataset, a new model.
    absent = dg.AutomationCondition.missing()
    # Made with an older recipe or from another manifest. A data version, not an update: preparing the same
    # images again changes nothing. Latched, because changes come by day and are wanted at night, until it has
    # been made: a night that failed must not be the last one.
    changed = (
        dg.AutomationCondition.code_version_changed()
        | dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    ).since(dg.AutomationCondition.newly_updated())
    # A dataset that is not on this machine would fail every night.
    upstream_present = ~dg.AutomationCondition.any_deps_missing()
    # A large split may still be running when the next night comes.
    idle = ~dg.AutomationCondition.in_progress()
    return (
        at_night.with_label("at night")
        & (absent | changed.with_label("stale")).with_label("missing or stale")
        & upstream_present.with_label("upstream present")
        & idle.with_label("not in progress")
    ).with_label("nightly backfill")


def nightly_backfill_sensor() -> dg.AutomationConditionSensorDefinition:
    """Evaluates the condition every minute; one backfill holds all that a tick asks for."""
    return dg.AutomationConditionSensorDefinition(
        "nightly_backfill",
        target=dg.AssetSelection.groups("embeddings"),
        default_status=dg.DefaultSensorStatus.STOPPED,
        minimum_interval_seconds=60,
        description="Every night at 02:00 UTC, asks for embeddings that are missing or stale, have their "
        "manifest, and are not in progress.",
    )
