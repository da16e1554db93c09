"""Checks of the embeddings: every promise of the files, proved from the files, per partition.

They can be run alone, for one partition, at any time. A check that cannot be made because the files cannot
be read fails; none stays planned, and none passes for want of a file.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

import dagster as dg

from embeddings_assets.catalog import ModelSpec
from embeddings_assets.errors import StoreError
from embeddings_assets.graph import overdue
from embeddings_assets.graph.failures import shown_as_failures
from embeddings_assets.graph.history import evaluation_of, latest_materialization
from embeddings_assets.graph.keys import embeddings_key
from embeddings_assets.graph.partitions import dataset_and_split, dataset_splits
from embeddings_assets.graph.previews import chosen_previews
from embeddings_assets.graph.resources import DataResource
from embeddings_assets.store.verify import CHECKS, Finding, verify_split

WEIGHTS_TRAINED = "weights_trained"
BLOCKING = ("dimension",)
EMBEDDINGS_CHECKS: Mapping[str, str] = {
    **CHECKS,
    WEIGHTS_TRAINED: "The vectors were made with trained weights.",
    overdue.CHECK: overdue.DESCRIPTION,
}

CheckOutcome = dg.AssetCheckResult | dg.AssetCheckEvaluation
"""A result for the run's partition, or an event of any partition."""


def embeddings_checks(model: ModelSpec, width: str) -> dg.AssetChecksDefinition:
    """The checks of `embeddings/<model>`; `width` is the setting that the asset was built with."""
    key = embeddings_key(model)
    descriptions = {**EMBEDDINGS_CHECKS, "dimension": f"Every vector is {model.stored_width(width)} wide."}

    @dg.multi_asset_check(
        name=f"check_{re.sub(r'[^A-Za-z0-9]', '_', model.name)}",
        specs=[
            check_spec(name, key, description, blocking=name in BLOCKING)
            for name, description in descriptions.items()
        ],
        can_subset=True,
    )
    def checks(context: dg.AssetCheckExecutionContext, data: DataResource) -> Iterator[CheckOutcome]:
        selected = {check.name for check in context.selected_asset_check_keys}
        results = partial(embeddings_results, model, width, selected, data, context.instance)
        yield from of_partitions(context, key, results)

    return checks


def embeddings_results(
    model: ModelSpec,
    width: str,
    names: Collection[str],
    data: DataResource,
    instance: dg.DagsterInstance,
    partition: str,
) -> Iterator[dg.AssetCheckResult]:
    """The results of the checks named, made now from the files of one partition of `embeddings/<model>`."""
    key, stored = embeddings_key(model), model.stored_width(width)
    with shown_as_failures():
        dataset, split = dataset_and_split(partition)
        paths = data.paths
    folder = paths.embeddings_split(model.name, dataset, split)
    findings = {finding.check: finding for finding in verify_split(folder, processed=paths.processed)}
    remedy = (
        f"materialize embeddings/{model.name} for {partition}, or "
        f'embeddings-assets extract --model {model.name} --dataset "{dataset}" --split {split}'
    )
    for name in (name for name in EMBEDDINGS_CHECKS if name in names):
        if name == WEIGHTS_TRAINED:
            yield _weights_trained(key, folder, remedy)
        elif name == overdue.CHECK:
            yield overdue.result_of(instance, key, partition)
        elif name == "dimension" and name in findings:
            found = findings[name].found
            yield check_result(key, name, found == str(stored), str(stored), found, remedy)
        else:
            yield _result_of(key, name, findings, remedy)


def of_partitions(
    context: dg.AssetCheckExecutionContext,
    key: dg.AssetKey,
    results: Callable[[str], Iterator[dg.AssetCheckResult]],
) -> Iterator[CheckOutcome]:
    """The results for the run's partition; in a run without one, those for every materialized partition.

    The UI's *Execute all* starts a run without a partition, and waits for an outcome of each check that
    belongs to none: it sums up the others.
    """
    if context.has_partition_key:
        yield from results(context.partition_key)
        return
    found: dict[str, dict[str, dg.AssetCheckResult]] = {
        check.name: {} for check in context.selected_asset_check_keys
    }
    for partition in materialized(context.instance, key):
        # Before the files are read: of what is made meanwhile, nothing has been proved.
        made = latest_materialization(context.instance, key, partition)
        for result in results(partition):
            found[str(result.check_name)][partition] = result
            yield evaluation_of(key, result, partition, made)
    for name, by_partition in found.items():
        yield evaluation_of(key, _summary(key, name, by_partition), None, None)


def materialized(instance: dg.DagsterInstance, key: dg.AssetKey) -> list[str]:
    """The partitions of the catalog that an asset was made for; older catalogs may have had others."""
    return sorted(instance.get_materialized_partitions(key) & {*dataset_splits.get_partition_keys()})


def _summary(
    key: dg.AssetKey, name: str, by_partition: Mapping[str, dg.AssetCheckResult]
) -> dg.AssetCheckResult:
    wrong = {partition: result for partition, result in by_partition.items() if not result.passed}
    only_warn = all(result.severity == dg.AssetCheckSeverity.WARN for result in wrong.values())
    return check_result(
        key,
        name,
        bool(by_partition) and not wrong,
        "every materialized partition passes",
        f"{len(by_partition) - len(wrong)} of {len(by_partition)} pass"
        + (f"; not {', '.join(wrong)}" if wrong else ""),
        "look at the partitions named" if wrong else f"materialize {key.to_user_string()} first",
        severity=dg.AssetCheckSeverity.WARN if only_warn else dg.AssetCheckSeverity.ERROR,
    )


def check_spec(name: str, key: dg.AssetKey, description: str, *, blocking: bool = False) -> dg.AssetCheckSpec:
    """A check with a result per partition."""
    with chosen_previews():  # of checks with partitions
        return dg.AssetCheckSpec(
            name, asset=key, description=description, blocking=blocking, partitions_def=dataset_splits
        )


def check_result(
    key: dg.AssetKey,
    name: str,
    passed: bool,
    expected: str,
    found: str,
    remedy: str,
    *,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckResult:
    """A result that shows what was expected and found, and, unless it passed, the remedy."""
    metadata = {"expected": expected, "found": found}
    if not passed:
        metadata["remedy"] = remedy
    return dg.AssetCheckResult(
        passed=passed, asset_key=key, check_name=name, metadata=metadata, severity=severity
    )


def _result_of(
    key: dg.AssetKey, name: str, findings: Mapping[str, Finding], remedy: str
) -> dg.AssetCheckResult:
    finding = findings.get(name)
    if finding is not None:
        return check_result(key, name, finding.passed, finding.expected, finding.found, remedy)
    causes = [finding.found for finding in findings.values() if not finding.passed]
    return check_result(key, name, False, CHECKS[name], f"could not be checked: {'; '.join(causes)}", remedy)


def _weights_trained(key: dg.AssetKey, folder: Path, remedy: str) -> dg.AssetCheckResult:
    from embeddings_assets.store.reading import read_split_footer

    expected = "trained weights"
    try:
        footer = read_split_footer(folder)
    except StoreError as error:
        return check_result(
            key, WEIGHTS_TRAINED, False, expected, f"could not be checked: {error.problem}", remedy
        )
    if footer is None:
        return check_result(key, WEIGHTS_TRAINED, False, expected, f"{folder}: no embeddings here", remedy)
    trained = footer.get("trained")
    if trained is False:
        return check_result(
            key,
            WEIGHTS_TRAINED,
            False,
            expected,
            f"untrained (random) weights: {footer.get('weights_origin')}",
            "embeddings-assets weights fetch all, then materialize again",
            severity=dg.AssetCheckSeverity.WARN,
        )
    published = "a published checkpoint" if trained else "a file whose digest is not a known published one"
    found = f"{published}: {footer.get('weights_origin')}"
    return check_result(key, WEIGHTS_TRAINED, True, expected, found, "")
