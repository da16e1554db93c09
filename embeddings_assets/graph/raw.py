"""The raw datasets: made by others, observed here. A changed raw folder makes its dataset's manifests stale.

An observation of a dataset records its state (present, partial, missing, wrong), how many of its images are
there, and a data version that changes with what `prepare` would read.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from embeddings_assets.catalog import DATASETS, DatasetSpec, get_dataset
from embeddings_assets.graph.failures import shown_as_failures
from embeddings_assets.graph.history import DATA_VERSION, latest_observation
from embeddings_assets.graph.keys import RAW
from embeddings_assets.graph.partitions import datasets
from embeddings_assets.graph.previews import chosen_previews
from embeddings_assets.graph.resources import DataResource

OWNERS = ["team:research"]

# The tags by which Dagster tells whether an asset is stale.
_USED_VERSION = f"dagster/input_data_version/{RAW.to_user_string()}"
_USED_EVENT = f"dagster/input_event_pointer/{RAW.to_user_string()}"

_WATCH_SECONDS = 300


_SPEC = dg.AssetSpec(
    RAW,
    partitions_def=datasets,
    group_name="datasets",
    kinds={"file", "dataset"},
    owners=OWNERS,
    description="The datasets as downloaded and unpacked: whether they are there, and in which version.",
)

with chosen_previews():  # of several source assets observed at once, the kind that has owners

    @dg.multi_observable_source_asset(name="observe_raw_images", specs=[_SPEC], can_subset=True)
    def raw_images(context: dg.AssetExecutionContext, data: DataResource) -> Iterator[dg.ObserveResult]:
        with shown_as_failures():
            one = get_dataset(context.partition_key) if context.has_partition_key else None
            for dataset in DATASETS if one is None else [one]:
                context.log_event(observation_of(dataset, data))
        # An ObserveResult knows no partition; the events above say it all.
        yield from ()


@dg.sensor(
    name="raw_data",
    minimum_interval_seconds=_WATCH_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Every five minutes, looks at the raw folders (no image is opened) and records what changed.",
)
def watch_raw_data(
    context: dg.SensorEvaluationContext, data: DataResource
) -> dg.SensorResult | dg.SkipReason:
    seen = [observation_of(dataset, data) for dataset in DATASETS]
    # Not with what this sensor saw last: runs record what they find, too.
    changed = [
        observation
        for observation in seen
        if observation.data_version != _recorded_version(context.instance, str(observation.partition))
    ]
    if not changed:
        return dg.SkipReason("no raw folder has changed")
    states = ", ".join(f"{one.partition} {one.metadata['state'].value}" for one in changed)
    return dg.SensorResult(
        skip_reason=f"recorded: {states}",  # what the tick shows; it asks for no run
        asset_events=changed,
    )


def _recorded_version(instance: dg.DagsterInstance, dataset: str) -> str | None:
    record = latest_observation(instance, RAW, dataset)
    return record.asset_observation.data_version if record and record.asset_observation else None


def observation_of(dataset: DatasetSpec, data: DataResource) -> dg.AssetObservation:
    """What can be seen of a raw dataset now."""
    status = data.observe(dataset.name)
    metadata: dict[str, Any] = {
        "state": status.state,
        "images": status.found,
        "listed": status.listed,
        "official": sum(dataset.counts.values()) or "none published",
        "homepage": dg.MetadataValue.url(dataset.homepage),
        "licence": dataset.licence,
    }
    if status.folder is not None:
        metadata["path"] = dg.MetadataValue.path(str(status.folder.resolve()))
    if status.problem:
        metadata["problem"] = status.problem
    if status.remedy:
        metadata["remedy"] = status.remedy
    return dg.AssetObservation(
        RAW, partition=dataset.name, metadata=metadata, tags={DATA_VERSION: status.version}
    )


def observe_before_reading(
    context: dg.AssetExecutionContext, data: DataResource, dataset: str
) -> dict[str, str]:
    """Record what is about to be read; the tags by which a materialization says that it was made of it.

    Dagster would name what was last observed before the step, which is older, or nothing.
    """
    observation = observation_of(get_dataset(dataset), data)
    context.log_event(observation)
    record = latest_observation(context.instance, RAW, dataset)
    event = "NULL" if record is None else str(record.storage_id)
    return {_USED_VERSION: observation.tags[DATA_VERSION], _USED_EVENT: event}
