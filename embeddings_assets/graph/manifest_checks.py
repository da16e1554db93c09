"""Checks of the manifests: readable and whole, few bad images, and as many as the official lists say."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from embeddings_assets.catalog import DatasetSpec, get_dataset
from embeddings_assets.errors import Reason, StoreError
from embeddings_assets.graph.assets import PROCESSED
from embeddings_assets.graph.checks import check_result, check_spec
from embeddings_assets.graph.failures import shown_as_failures
from embeddings_assets.graph.partitions import dataset_and_split
from embeddings_assets.graph.resources import DataResource
from embeddings_assets.settings import DataPaths

if TYPE_CHECKING:
    from embeddings_assets.store.manifest import Manifest

CHECKS = {
    "readable": "The manifest and its ledger open, belong together, and hash to their fingerprint.",
    "ledger_share": "No larger share of the images that are there is unusable than the policy allows.",
    "official_counts": "As many images are listed as in the official lists; validation that is held out "
    "counts with train.",
}


@dg.multi_asset_check(
    name="check_processed_images",
    specs=[check_spec(name, PROCESSED, description) for name, description in CHECKS.items()],
    can_subset=True,
)
def processed_images_checks(
    context: dg.AssetCheckExecutionContext, data: DataResource
) -> Iterator[dg.AssetCheckResult]:
    with shown_as_failures():
        dataset, split = dataset_and_split(context.partition_key)
        paths = data.paths
    remedy = (
        f"materialize processed_images for {context.partition_key}, or "
        f'embeddings-assets prepare --dataset "{dataset}"'
    )
    try:
        manifest, fingerprint = _open(paths, dataset, split)
    except StoreError as error:
        for check in context.selected_asset_check_keys:
            found = error.problem if check.name == "readable" else f"could not be checked: {error.problem}"
            yield check_result(PROCESSED, check.name, False, CHECKS[check.name], found, remedy)
        return
    for check in context.selected_asset_check_keys:
        if check.name == "readable":
            whole = fingerprint == manifest.fingerprint
            yield check_result(
                PROCESSED, check.name, whole, manifest.fingerprint, f"{fingerprint} over its rows", remedy
            )
        elif check.name == "ledger_share":
            yield _ledger_share(manifest, 0.0 if data.strict else data.max_bad_share)
        else:
            yield _official_counts(manifest, paths)


def _open(paths: DataPaths, dataset: str, split: str) -> "tuple[Manifest, str]":
    """A manifest and the fingerprint recomputed over its rows."""
    import pyarrow as pa

    from embeddings_assets.store.footer import rows_fingerprint
    from embeddings_assets.store.manifest import open_manifest

    manifest = open_manifest(paths, dataset, split)
    header = {name: manifest.footer[name] for name in ("dataset", "split", "options", "schema_version")}
    try:
        return manifest, rows_fingerprint(header, manifest.batches())
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{manifest.path}: its rows cannot be read ({error}).") from error


def _ledger_share(manifest: "Manifest", most: float) -> dg.AssetCheckResult:
    reasons = Counter(manifest.ledger().column("reason").to_pylist())
    missing = reasons.pop(Reason.MISSING.value, 0)
    bad = reasons.total()
    present = manifest.rows + bad
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none"
    return check_result(
        PROCESSED,
        "ledger_share",
        bad <= most * present,
        f"at most {most:.3g} of {present:,} images",
        f"{bad:,} ({listed}); {missing:,} more are listed and absent",
        f"replace the files that {manifest.path.parent}/_ledger.parquet names, then materialize again",
    )


def _official_counts(manifest: "Manifest", paths: DataPaths) -> dg.AssetCheckResult:
    spec = get_dataset(manifest.dataset)
    found, complete = _listed(manifest, paths, spec)
    official = spec.counts.get("train" if _is_held_out(spec, manifest.split) else manifest.split)
    listed = f"{found:,} listed"
    if official is None:
        return _counts(True, "no official count is known", listed)
    if _is_synthetic(manifest, paths):
        return _counts(True, f"{official:,} in the real dataset", f"{listed}; these images are drawn")
    if not complete:
        expected = f"less than {official:,}, of which the other half is not prepared yet"
        return _counts(found < official, expected, listed)
    return _counts(found == official, f"{official:,}", listed)


def _counts(passed: bool, expected: str, found: str) -> dg.AssetCheckResult:
    return check_result(
        PROCESSED,
        "official_counts",
        passed,
        expected,
        found,
        "compare the raw folder with the official archive: embeddings-assets doctor",
        severity=dg.AssetCheckSeverity.WARN,
    )


def _is_held_out(spec: DatasetSpec, split: str) -> bool:
    """Whether the split is one of the two that an official train split was cut into."""
    return not spec.has_official_validation and split in ("train", "validation")


def _listed(manifest: "Manifest", paths: DataPaths, spec: DatasetSpec) -> tuple[int, bool]:
    """Images listed for the official split, and whether all of its parts are prepared."""
    from embeddings_assets.store.manifest import open_manifest

    found = manifest.rows + int(manifest.footer["ledger_rows"])
    if not _is_held_out(spec, manifest.split):
        return found, True
    sibling = "validation" if manifest.split == "train" else "train"
    try:
        other = open_manifest(paths, manifest.dataset, sibling)
    except StoreError:
        return found, False
    return found + other.rows + int(other.footer["ledger_rows"]), True


def _is_synthetic(manifest: "Manifest", paths: DataPaths) -> bool:
    from embeddings_assets.datasets.synthetic import MARKER

    recorded = manifest.footer.get("raw_folder")
    folder = Path(recorded) if recorded else paths.raw_folder(manifest.dataset)
    return (folder / MARKER).is_file()
