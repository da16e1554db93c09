"""Checks of the manifests, as Dagster shows them; what they prove is decided in `quality/manifests.py`."""

from collections.abc import Collection, Iterator, Mapping
from functools import partial

import dagster as dg

from embeddings_assets.graph import overdue
from embeddings_assets.graph.checks import CheckOutcome, check_result, check_spec, of_partitions
from embeddings_assets.graph.failures import shown_as_failures
from embeddings_assets.graph.keys import PROCESSED
from embeddings_assets.graph.partitions import dataset_and_split
from embeddings_assets.graph.resources import DataResource
from embeddings_assets.quality.manifests import CHECKS, check_manifest

MANIFEST_CHECKS: Mapping[str, str] = {**CHECKS, overdue.CHECK: overdue.DESCRIPTION}


@dg.multi_asset_check(
    name="check_processed_images",
    specs=[check_spec(name, PROCESSED, description) for name, description in MANIFEST_CHECKS.items()],
    can_subset=True,
)
def processed_images_checks(
    context: dg.AssetCheckExecutionContext, data: DataResource
) -> Iterator[CheckOutcome]:
    selected = {check.name for check in context.selected_asset_check_keys}
    yield from of_partitions(context, PROCESSED, partial(manifest_results, selected, data, context.instance))


def manifest_results(
    names: Collection[str], data: DataResource, instance: dg.DagsterInstance, partition: str
) -> Iterator[dg.AssetCheckResult]:
    """The results of the checks named, made now from the manifest of one partition."""
    most = 0.0 if data.strict else data.max_bad_share
    with shown_as_failures():
        dataset, split = dataset_and_split(partition)
        paths = data.paths
    for name in (name for name in CHECKS if name in names):
        finding = check_manifest(paths, dataset, split, name, max_bad_share=most)
        severity = dg.AssetCheckSeverity.WARN if finding.only_warn else dg.AssetCheckSeverity.ERROR
        yield check_result(
            PROCESSED,
            name,
            finding.passed,
            finding.expected,
            finding.found,
            finding.remedy,
            severity=severity,
        )
    if overdue.CHECK in names:
        yield overdue.result_of(instance, PROCESSED, partition)
