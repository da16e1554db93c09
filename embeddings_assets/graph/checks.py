"""Checks of the embeddings: every promise of the files, proved from the files, per partition.

They can be run alone, for one partition, at any time. A check that cannot be made because the files cannot
be read fails; none stays planned, and none passes for want of a file.
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import dagster as dg

from embeddings_assets.catalog import ModelSpec
from embeddings_assets.errors import StoreError
from embeddings_assets.graph.assets import embeddings_key
from embeddings_assets.graph.failures import shown_as_failures
from embeddings_assets.graph.partitions import dataset_and_split, dataset_splits
from embeddings_assets.graph.resources import DataResource
from embeddings_assets.store.verify import CHECKS, Finding, verify_split

WEIGHTS_TRAINED = "weights_trained"
BLOCKING = ("dimension",)


def embeddings_checks(model: ModelSpec, width: str) -> dg.AssetChecksDefinition:
    """The checks of `embeddings/<model>`; `width` is the setting that the asset was built with."""
    key = embeddings_key(model)
    stored = model.stored_width(width)
    descriptions = {
        **CHECKS,
        "dimension": f"Every vector is {stored} wide.",
        WEIGHTS_TRAINED: "The vectors were made with trained weights.",
    }

    @dg.multi_asset_check(
        name=f"check_{model.encoder}",
        specs=[
            check_spec(name, key, description, blocking=name in BLOCKING)
            for name, description in descriptions.items()
        ],
        can_subset=True,
    )
    def checks(context: dg.AssetCheckExecutionContext, data: DataResource) -> Iterator[dg.AssetCheckResult]:
        with shown_as_failures():
            dataset, split = dataset_and_split(context.partition_key)
            paths = data.paths
        folder = paths.embeddings_split(model.name, dataset, split)
        findings = {finding.check: finding for finding in verify_split(folder, processed=paths.processed)}
        remedy = (
            f"materialize embeddings/{model.name} for {context.partition_key}, or "
            f'embeddings-assets extract --model {model.name} --dataset "{dataset}" --split {split}'
        )
        selected = {check.name for check in context.selected_asset_check_keys}
        for name in (name for name in descriptions if name in selected):
            if name == WEIGHTS_TRAINED:
                yield _weights_trained(key, folder, remedy)
            elif name == "dimension" and name in findings:
                found = findings[name].found
                yield check_result(key, name, found == str(stored), str(stored), found, remedy)
            else:
                yield _result_of(key, name, findings, remedy)

    return checks


def check_spec(name: str, key: dg.AssetKey, description: str, *, blocking: bool = False) -> dg.AssetCheckSpec:
    """A check with a result per partition."""
    with warnings.catch_warnings():
        # Partitioned checks are a preview in Dagster 1.13; every process would warn of each of them.
        warnings.simplefilter("ignore", dg.PreviewWarning)
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
