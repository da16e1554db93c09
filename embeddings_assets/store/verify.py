"""Proving, from the files alone, every promise that embedding files make.

Nothing here trusts a footer: counts, norms, order, labels and fingerprints are recomputed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embeddings_assets.catalog import DATASETS, MODELS, SPLITS, get_dataset, get_model, get_split
from embeddings_assets.errors import EmbeddingsError, StoreError
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.footer import RECIPE_FIELDS, recipe_fingerprint, rows_fingerprint
from embeddings_assets.store.manifest import BOXES_FINGERPRINT, Manifest, open_manifest
from embeddings_assets.store.parquet import open_parquet, read_footer
from embeddings_assets.store.reading import load_ledger, norm_errors, part_files, split_bytes, vectors_of
from embeddings_assets.store.schema import (
    BOUNDING_BOX,
    CARRIED_COLUMNS,
    LEDGER_NAME,
    PART_PATTERN,
    ROWS_PER_GROUP,
    ROWS_PER_PART,
    UNIT_NORM_TOLERANCE,
    embedding_schema,
)

# Below this many floats the fixed cost of a parquet file (schema, footer) can outweigh compression.
SIZE_PROMISE_FROM_FLOATS = 24 * 512


@dataclass(frozen=True)
class Finding:
    """One promise and whether it holds. `check` is a name of `CHECKS`."""

    check: str
    passed: bool
    expected: str
    found: str


CHECKS: dict[str, str] = {
    "readable": "Every part opens, has the contract's columns and encodings, and no part is missing.",
    "dimension": "Every vector has the width that the catalog and the footer declare.",
    "finite": "No vector holds NaN or infinity.",
    "unit_norm": f"Every vector has L2 norm 1 (error at most {UNIT_NORM_TOLERANCE:.0e}).",
    "row_count": "Rows = manifest - ledger.",
    "manifest_order": "Rows stand in the manifest's order, with the manifest's ids, paths and digests.",
    "labels": "Labels and class names agree with the manifest.",
    "footer": "The footer agrees with the catalog, the folder and its own fingerprints.",
    "size": "The files take at most as much space as the raw float32 vectors.",
}


def split_folders(root: Path) -> Iterator[Path]:
    """Every folder at or below `root` that holds, or has held, a split; in catalog order.

    Links are followed, but for one that leads back to a folder above it.
    """
    yield from _split_folders(root, frozenset())


def _split_folders(root: Path, above: frozenset[Path]) -> Iterator[Path]:
    here = root.resolve()
    if not root.is_dir() or here in above:
        return
    if any(path.suffix == ".parquet" for path in root.iterdir()):
        yield root
        return
    names = [*(model.name for model in MODELS), *(dataset.name for dataset in DATASETS), *SPLITS]
    order = {name: rank for rank, name in enumerate(names)}
    children = [path for path in root.iterdir() if path.is_dir() and path.name[0] not in "._"]
    for child in sorted(children, key=lambda path: (order.get(path.name, len(order)), path.name)):
        yield from _split_folders(child, above | {here})


def verify_split(folder: Path, *, processed: Path | None) -> list[Finding]:
    """Check one split folder `<model>/<dataset>/<split>`.

    Args:
        processed: folder of the manifests; None leaves out what needs the manifest.

    Returns:
        One finding per check that could be made; later checks are left out when the files cannot be read.
    """
    try:
        parts = _Parts(folder)
    except (EmbeddingsError, OSError, pa.ArrowException) as error:
        return [Finding("readable", False, "readable parts of one split", str(error).splitlines()[0])]
    manifest: Manifest | None = None
    findings: list[Finding] = []
    if processed is not None:
        try:
            manifest = open_manifest(DataPaths.from_folders(processed, folder), parts.dataset, parts.split)
        except EmbeddingsError as error:
            findings.append(Finding("row_count", False, "the split's manifest", str(error).splitlines()[0]))
    try:
        findings += _check_vectors(parts)
        findings += [_check_footer(parts), _check_size(parts)]
        if manifest is not None:
            findings += _check_against_manifest(parts, manifest)
    except (OSError, pa.ArrowException) as error:
        found = f"a page does not decode: {str(error).splitlines()[0]}"
        return [Finding("readable", False, CHECKS["readable"], found)]
    return [Finding("readable", True, CHECKS["readable"], f"{len(parts.files)} parts"), *findings]


class _Parts:
    """The opened files of a split: footers, row counts and ledger."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = part_files(folder)
        if not self.files:
            raise StoreError(f"{folder}: no part files.")
        footers = [read_footer(path) for path in self.files]
        self.footer: dict[str, Any] = dict(footers[0])
        self.footer.pop("part", None)
        self.model = get_model(str(self.footer.get("model")))
        self.dataset = get_dataset(str(self.footer.get("dataset"))).name
        self.split = get_split(str(self.footer.get("split")))
        if folder.resolve().parts[-3:] != (self.model.name, self.dataset, self.split):
            raise StoreError(f"{folder}: holds {self.model.name}/{self.dataset}/{self.split}.")
        width = self.footer.get("width")
        if not isinstance(width, int) or width < 1:
            raise StoreError(f"{self.files[0]}: the footer gives {width!r} as width.")
        self.width = width
        self.rows = 0
        for index, (path, footer) in enumerate(zip(self.files, footers, strict=True)):
            named = path.name == PART_PATTERN.format(index)
            if footer.pop("part", None) != index or footer != self.footer or not named:
                raise StoreError(f"{path}: not part {index} of this split.")
            self.rows += _check_layout(path, self.width)
        if len(self.files) != self.footer.get("parts"):
            raise StoreError(
                f"{folder}: {len(self.files)} parts; the footer says {self.footer.get('parts')}."
            )
        self.ledger = load_ledger(folder)

    def batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for path in self.files:
            with open_parquet(path, page_checksum_verification=True) as file:
                yield from file.iter_batches(batch_size=ROWS_PER_GROUP, columns=columns)


def _check_layout(path: Path, width: int) -> int:
    """Raise StoreError unless columns and encodings are the contract's; returns the row count."""
    with open_parquet(path) as file:
        schema = file.schema_arrow.remove_metadata()
        if not schema.equals(embedding_schema(width)):
            raise StoreError(
                f"{path}: columns {schema.names} with embedding {_type(schema)}, not the contract's."
            )
        metadata = file.metadata
        if metadata.num_rows > ROWS_PER_PART:
            raise StoreError(f"{path}: {metadata.num_rows} rows; a part has at most {ROWS_PER_PART}.")
        for group in range(metadata.num_row_groups):
            # Decoded first: asked for the name of a codec that does not exist, pyarrow ends the process.
            if file.read_row_group(group).num_rows != metadata.row_group(group).num_rows:
                raise StoreError(f"{path}: row group {group} has columns of different lengths.")
            column = metadata.row_group(group).column(schema.names.index("embedding"))
            if column.compression != "ZSTD" or "BYTE_STREAM_SPLIT" not in column.encodings:
                raise StoreError(f"{path}: vectors are {column.compression} {column.encodings}.")
        return int(metadata.num_rows)


def _type(schema: pa.Schema) -> str:
    return str(schema.field("embedding").type) if "embedding" in schema.names else "missing"


def _check_vectors(parts: _Parts) -> list[Finding]:
    model, width = parts.model, parts.width
    declared = (model.width, model.native_width)
    not_finite, rows, worst = 0, 0, 0.0
    for batch in parts.batches(["embedding"]):
        vectors = vectors_of(batch.column(0))
        finite = np.isfinite(vectors).all(axis=1)
        rows += len(vectors)
        not_finite += int((~finite).sum())
        if finite.any():
            worst = max(worst, float(norm_errors(vectors[finite]).max()))
    return [
        Finding("dimension", width in declared, f"{model.width} (native {model.native_width})", str(width)),
        Finding("finite", not_finite == 0, "0 rows with NaN or infinity", f"{not_finite} of {rows}"),
        Finding(
            "unit_norm", worst <= UNIT_NORM_TOLERANCE, f"error <= {UNIT_NORM_TOLERANCE:.0e}", f"{worst:.1e}"
        ),
    ]


def _check_footer(parts: _Parts) -> Finding:
    footer, model = parts.footer, parts.model
    wrong = []
    missing = [name for name in (*RECIPE_FIELDS, "manifest_fingerprint", "trained") if name not in footer]
    if missing:
        wrong.append(f"no {', '.join(missing)}")
    elif footer.get("recipe_fingerprint") != recipe_fingerprint(footer):
        wrong.append("recipe_fingerprint is not the hash of its fields")
    if footer.get("checkpoint") != model.checkpoint or footer.get("native_width") != model.native_width:
        wrong.append(f"checkpoint {footer.get('checkpoint')!r}, native width {footer.get('native_width')}")
    if footer.get("normalised") is not True:
        wrong.append("normalised is not true")
    if footer.get("rows") != parts.rows:
        wrong.append(f"rows {footer.get('rows')}, the parts hold {parts.rows}")
    expected = (model.name, parts.dataset, parts.split)
    for batch in parts.batches(["model", "dataset", "split"]):
        if any(
            set(column.to_pylist()) - {value} for column, value in zip(batch.columns, expected, strict=True)
        ):
            wrong.append("a row's model, dataset or split is another")
            break
    return Finding("footer", not wrong, "agrees with catalog, folder and rows", "; ".join(wrong) or "agrees")


def _check_size(parts: _Parts) -> Finding:
    raw = parts.rows * parts.width * 4
    size = split_bytes(parts.folder)
    binding = raw >= SIZE_PROMISE_FROM_FLOATS * 4
    expected = (
        f"at most {raw:,} bytes" if binding else "any size: too few rows to outweigh the file's fixed cost"
    )
    return Finding("size", not binding or size <= raw, expected, f"{size:,} bytes")


def _check_against_manifest(parts: _Parts, manifest: Manifest) -> list[Finding]:
    header = {name: manifest.footer[name] for name in ("dataset", "split", "options", "schema_version")}
    fingerprint = rows_fingerprint(header, manifest.batches())
    excluded = set(parts.ledger.column("image_id").to_pylist())
    misplaced = mislabelled = compared = 0
    rows = _rows(parts.batches(list(CARRIED_COLUMNS)))
    for expected in _rows(manifest.batches(list(CARRIED_COLUMNS))):
        if expected["image_id"] in excluded:
            continue
        found = next(rows, None)
        if found is None:
            break
        compared += 1
        same = all(found[name] == expected[name] for name in CARRIED_COLUMNS if name not in _LABEL_COLUMNS)
        misplaced += not same
        mislabelled += same and any(found[name] != expected[name] for name in _LABEL_COLUMNS)
    bound = parts.footer.get("manifest_fingerprint") == fingerprint == manifest.fingerprint
    if manifest.crop == BOUNDING_BOX:
        bound &= parts.footer.get(BOXES_FINGERPRINT) == manifest.boxes_fingerprint()
    expected_rows = manifest.rows - parts.ledger.num_rows
    return [
        Finding(
            "row_count",
            parts.rows == expected_rows and len(excluded) == parts.ledger.num_rows,
            f"{manifest.rows} in the manifest - {parts.ledger.num_rows} in {LEDGER_NAME}",
            str(parts.rows),
        ),
        Finding(
            "manifest_order",
            bound and misplaced == 0 and compared == parts.rows,
            "the manifest's rows in its order, and its fingerprint",
            f"{misplaced} rows differ; fingerprint {'agrees' if bound else 'differs'}",
        ),
        Finding("labels", mislabelled == 0, "the manifest's labels", f"{mislabelled} rows differ"),
    ]


_LABEL_COLUMNS = ("label", "class_name")


def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()
