"""What a prepared split promises, proved from its manifest: whole, few bad images, official counts, no leaks.

Each promise is a `ManifestFinding` with what was expected and what was found.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from embeddings_assets.catalog import DatasetSpec, get_dataset
from embeddings_assets.datasets.synthetic.writer import MARKER
from embeddings_assets.errors import Reason, StoreError
from embeddings_assets.io.files import disk_errors
from embeddings_assets.quality.duplicates import describe, find_duplicates
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.footer import rows_fingerprint
from embeddings_assets.store.manifest import Manifest, open_manifest
from embeddings_assets.store.schema import LEDGER_NAME
from embeddings_assets.store.verify import Finding

CHECKS: Mapping[str, str] = {
    "readable": "The manifest and its ledger open, belong together, and hash to their fingerprint.",
    "ledger_share": "No larger share of the images that are there is unusable than the policy allows.",
    "official_counts": "As many images are there as the official lists name; validation that is held out "
    "counts with train.",
    "no_duplicates_across_splits": "No image of this split is byte for byte one of another split.",
}
_NAMED_PAIRS = 20


@dataclass(frozen=True)
class ManifestFinding(Finding):
    """A finding with what to do; `only_warn` marks a property of the data, not a defect of the manifest."""

    remedy: str
    only_warn: bool = False


def check_manifest(
    paths: DataPaths, dataset: str, split: str, check: str, *, max_bad_share: float
) -> ManifestFinding:
    """Prove one promise of CHECKS.

    Args:
        max_bad_share: largest share of the images that are there that may be unusable.
    """
    prepare = f"materialize processed_images for {dataset}|{split}, or {_prepare(dataset)}"
    tests: Mapping[str, Callable[[Manifest], ManifestFinding]] = {
        "readable": lambda manifest: _readable(manifest, prepare),
        "ledger_share": lambda manifest: _ledger_share(manifest, max_bad_share),
        "official_counts": lambda manifest: _official_counts(manifest, paths),
        "no_duplicates_across_splits": lambda manifest: _no_duplicates(manifest, paths),
    }
    try:
        with disk_errors():
            return tests[check](open_manifest(paths, dataset, split))
    except StoreError as error:
        found = error.problem if check == "readable" else f"could not be checked: {error.problem}"
        return ManifestFinding(check, False, CHECKS[check], found, prepare)


def _readable(manifest: Manifest, remedy: str) -> ManifestFinding:
    header = {name: manifest.footer[name] for name in ("dataset", "split", "options", "schema_version")}
    try:
        fingerprint = rows_fingerprint(header, manifest.batches())
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{manifest.path}: its rows cannot be read ({error}).") from error
    whole = fingerprint == manifest.fingerprint
    return ManifestFinding("readable", whole, manifest.fingerprint, f"{fingerprint} over its rows", remedy)


def _ledger_share(manifest: Manifest, most: float) -> ManifestFinding:
    reasons = Counter(manifest.ledger().column("reason").to_pylist())
    missing = reasons.pop(Reason.MISSING.value, 0)
    bad = reasons.total()
    present = manifest.rows + bad
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "none"
    return ManifestFinding(
        "ledger_share",
        bad <= most * present,
        f"at most {most:.3g} of {present:,} images",
        f"{bad:,} ({listed}); {missing:,} more are listed and absent",
        f"replace the files that {manifest.path.parent}/{LEDGER_NAME} names, then materialize again",
    )


def _official_counts(manifest: Manifest, paths: DataPaths) -> ManifestFinding:
    spec = get_dataset(manifest.dataset)
    counted, complete = _counted(manifest, paths, spec)
    listed, missing = counted.total(), counted[False]
    official = spec.counts.get("train" if _is_held_out(spec, manifest.split) else manifest.split)
    found = f"{listed:,} listed"
    if missing:
        found = f"{counted[True]:,} are there, {missing:,} of {listed:,} are missing"
    if official is None:
        passed, expected = True, "no official count is known"
    elif _is_synthetic(manifest, paths):
        passed, expected = True, f"{official:,} in the real dataset"
        found = f"{found}; these images are drawn"
    elif not complete:
        passed = listed < official
        expected = f"less than {official:,}, of which the other half is not prepared yet"
    else:
        passed, expected = listed == official, f"{official:,}"
    remedy = "compare the raw folder with the official archive: embeddings-assets doctor"
    if missing:
        remedy = f"complete {_raw_folder(manifest, paths)}, then: " + _prepare(manifest.dataset)
    return ManifestFinding("official_counts", passed and not missing, expected, found, remedy, only_warn=True)


def _no_duplicates(manifest: Manifest, paths: DataPaths) -> ManifestFinding:
    unreadable: dict[Path, StoreError] = {}
    groups = find_duplicates(paths, [manifest.dataset], unreadable=unreadable)
    if manifest.path in unreadable:
        raise unreadable[manifest.path]
    leaks = [
        describe(group)
        for group in groups
        if group.across_splits and any(member.split == manifest.split for member in group.members)
    ]
    found = [f"{len(leaks):,}: {'; '.join(leaks[:_NAMED_PAIRS])}" if leaks else "none"]
    if len(leaks) > _NAMED_PAIRS:
        found.append(f"and {len(leaks) - _NAMED_PAIRS:,} more")
    found += [f"not compared: {error.problem}" for error in unreadable.values()]
    known = (
        "known to be so in the published data, or copies of yours: leave them out of what you report. All: "
        f'embeddings-assets datasets duplicates "{manifest.dataset}"'
    )
    repairs = [error.remedy for error in unreadable.values() if error.remedy]
    return ManifestFinding(
        "no_duplicates_across_splits",
        not leaks and not unreadable,
        "no image that another prepared split has too",
        "; ".join(found),
        repairs[0] if repairs else known,
        only_warn=True,
    )


def _is_held_out(spec: DatasetSpec, split: str) -> bool:
    """Whether the split is one of the two that an official train split was cut into."""
    return not spec.has_official_validation and split in ("train", "validation")


def _counted(manifest: Manifest, paths: DataPaths, spec: DatasetSpec) -> tuple[Counter[bool], bool]:
    """Images of the official split by whether they are there, and whether all of its parts are prepared."""
    here = _present_and_missing(manifest)
    if not _is_held_out(spec, manifest.split):
        return here, True
    sibling = "validation" if manifest.split == "train" else "train"
    try:
        return here + _present_and_missing(open_manifest(paths, manifest.dataset, sibling)), True
    except StoreError:
        return here, False


def _present_and_missing(manifest: Manifest) -> Counter[bool]:
    reasons = manifest.ledger().column("reason").to_pylist()
    missing = reasons.count(Reason.MISSING.value)
    return Counter({True: manifest.rows + len(reasons) - missing, False: missing})


def _raw_folder(manifest: Manifest, paths: DataPaths) -> Path:
    return manifest.raw_folder or paths.raw_folder(manifest.dataset)


def _is_synthetic(manifest: Manifest, paths: DataPaths) -> bool:
    return (_raw_folder(manifest, paths) / MARKER).is_file()


def _prepare(dataset: str) -> str:
    return f'embeddings-assets prepare --dataset "{dataset}"'
