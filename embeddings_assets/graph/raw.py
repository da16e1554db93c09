"""The raw datasets: made by others, observed here. A changed raw folder makes its dataset's manifests stale.

An observation of a dataset records its state (present, partial, missing, wrong), how many of its images are
there, and a data version that changes with what `prepare` would read.
"""

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg

from embeddings_assets.catalog import DATASETS, DatasetSpec, get_dataset
from embeddings_assets.graph.failures import shown_as_failures
from embeddings_assets.graph.partitions import datasets
from embeddings_assets.graph.previews import chosen_previews
from embeddings_assets.graph.resources import DataResource

OWNERS = ["team:research"]
RAW = dg.AssetKey("raw_images")

# The tags by which Dagster tells whether an asset is stale.
_DATA_VERSION = "dagster/data_version"
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
    known: dict[str, str] = json.loads(context.cursor or "{}")
    seen = {dataset.name: observation_of(dataset, data) for dataset in DATASETS}
    versions = {name: observation.tags[_DATA_VERSION] for name, observation in seen.items()}
    changed = [name for name in versions if versions[name] != known.get(name)]
    if not changed:
        return dg.SkipReason("no raw folder has changed")
    states = ", ".join(f"{name} {seen[name].metadata['state'].value}" for name in changed)
    return dg.SensorResult(
        skip_reason=f"recorded: {states}",  # what the tick shows; it asks for no run
        asset_events=[seen[name] for name in changed],
        cursor=json.dumps(versions),
    )


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
        RAW, partition=dataset.name, metadata=metadata, tags={_DATA_VERSION: status.version}
    )


def observe_before_reading(
    context: dg.AssetExecutionContext, data: DataResource, dataset: str
) -> dict[str, str]:
    """Record what is about to be read; the tags by which a materialization says that it was made of it.

    Dagster would name what was last observed before the step, which is older, or nothing.
    """
    observation = observation_of(get_dataset(dataset), data)
    context.log_event(observation)
    latest = dg.AssetRecordsFilter(asset_key=RAW, asset_partitions=[dataset])
    record = context.instance.fetch_observations(latest, limit=1).records[0]
    return {_USED_VERSION: observation.tags[_DATA_VERSION], _USED_EVENT: str(record.storage_id)}
