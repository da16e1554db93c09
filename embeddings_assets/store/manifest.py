"""Manifests: one row per usable image of a split, with a ledger of those that could not be used.

A manifest is opened by its footer and read a row group at a time, so that memory does not grow with it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embeddings_assets.catalog import get_dataset
from embeddings_assets.errors import StoreError
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.files import disk_errors, read_footer, replace_table
from embeddings_assets.store.footer import digest, rows_fingerprint
from embeddings_assets.store.schema import (
    LEDGER_NAME,
    LEDGER_SCHEMA,
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    ROWS_PER_GROUP,
    SCHEMA_VERSION,
)


@dataclass(frozen=True)
class Manifest:
    """An opened manifest file.

    `footer` keys: `dataset`, `split`, `options` (what changes meaning: hold-out share and seed ...),
    `rows`, `ledger_rows`, `ledger_sha256`, `fingerprint`, `schema_version`, and `raw_folder`: the absolute
    folder that stands in for `raw/<official folder>`, or null. The fingerprint leaves `raw_folder` out.
    """

    path: Path
    footer: Mapping[str, Any]
    paths: DataPaths

    @property
    def dataset(self) -> str:
        return str(self.footer["dataset"])

    @property
    def split(self) -> str:
        return str(self.footer["split"])

    @property
    def rows(self) -> int:
        return int(self.footer["rows"])

    @property
    def fingerprint(self) -> str:
        return str(self.footer["fingerprint"])

    @cached_property
    def _offsets(self) -> list[int]:
        """First row of each row group, and the row count last."""
        metadata = pq.read_metadata(self.path)
        offsets = [0]
        for index in range(metadata.num_row_groups):
            offsets.append(offsets[-1] + metadata.row_group(index).num_rows)
        return offsets

    def slice(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows `start` to `stop` (exclusive), reading only the row groups that hold them."""
        groups = [
            index
            for index, (first, last) in enumerate(zip(self._offsets, self._offsets[1:], strict=False))
            if first < stop and last > start
        ]
        if not groups:
            names = MANIFEST_SCHEMA.names if columns is None else list(columns)
            return pa.schema([MANIFEST_SCHEMA.field(name) for name in names]).empty_table()
        with pq.ParquetFile(self.path) as file:
            table = file.read_row_groups(groups, columns=columns)
        return table.slice(start - self._offsets[groups[0]], stop - start)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(self.path) as file:
            yield from file.iter_batches(batch_size=ROWS_PER_GROUP, columns=columns)

    def ledger(self) -> pa.Table:
        """Images of the split that `prepare` could not use (LEDGER_SCHEMA)."""
        return read_ledger(self.path.with_name(LEDGER_NAME))

    def resolve(self, image_path: str) -> Path:
        """The file behind an `image_path` value.

        Raises:
            StoreError: the value is no relative path below `raw/` or `processed/`.
        """
        parts = PurePosixPath(image_path).parts
        if ".." not in parts and len(parts) > 1 and "\0" not in image_path:
            official = get_dataset(self.dataset).raw_folder
            if parts[:2] == ("raw", official) and self.footer.get("raw_folder"):
                return Path(self.footer["raw_folder"]).joinpath(*parts[2:])
            if parts[0] == "raw":
                return self.paths.raw.joinpath(*parts[1:])
            if parts[0] == "processed":
                return self.paths.processed.joinpath(*parts[1:])
        raise StoreError(f"{self.path}: image_path {image_path!r} does not lie below raw/ or processed/.")


@disk_errors()
def write_manifest(
    paths: DataPaths,
    dataset: str,
    split: str,
    rows: pa.Table,
    ledger: pa.Table,
    *,
    options: Mapping[str, Any],
    raw_folder: Path | None,
) -> Manifest:
    """Write a split's ledger, then its manifest, each by one rename.

    `rows` follows MANIFEST_SCHEMA in official order, `ledger` LEDGER_SCHEMA. The manifest records the
    ledger's digest, so a crash between the two renames is seen by `open_manifest`.
    """
    folder = paths.processed_split(dataset, split)
    folder.mkdir(parents=True, exist_ok=True)
    ledger = ledger.select(LEDGER_SCHEMA.names).cast(LEDGER_SCHEMA)
    rows = rows.select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA)
    header = {"dataset": dataset, "split": split, "options": dict(options), "schema_version": SCHEMA_VERSION}
    footer = {
        **header,
        "rows": rows.num_rows,
        "ledger_rows": ledger.num_rows,
        "ledger_sha256": ledger_digest(ledger),
        "fingerprint": rows_fingerprint(header, rows.to_batches()),
        "raw_folder": None if raw_folder is None else str(raw_folder.resolve()),
    }
    replace_table(ledger, folder / LEDGER_NAME, {"dataset": dataset, "split": split})
    replace_table(rows, folder / MANIFEST_NAME, footer)
    return Manifest(folder / MANIFEST_NAME, footer, paths)


def open_manifest(paths: DataPaths, dataset: str, split: str) -> Manifest:
    """The manifest of a split.

    Raises:
        StoreError: it is absent, damaged, or its ledger is not the one it was written with.
    """
    path = paths.processed_split(dataset, split) / MANIFEST_NAME
    remedy = f'embeddings-assets prepare --dataset "{get_dataset(dataset).name}"'
    if not path.is_file():
        raise StoreError(
            f"{path}: no manifest; the images of {dataset}/{split} are not prepared.", remedy=remedy
        )
    try:
        footer = read_footer(path)
        schema = pq.read_schema(path)
        ledger = read_ledger(path.with_name(LEDGER_NAME))
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{path}: the manifest or its ledger cannot be read ({error}).", remedy=remedy
        ) from error
    if not schema.remove_metadata().equals(MANIFEST_SCHEMA):
        raise StoreError(f"{path}: unexpected columns {schema.names}.", remedy=remedy)
    if (footer.get("dataset"), footer.get("split")) != (dataset, split):
        raise StoreError(
            f"{path}: belongs to {footer.get('dataset')}/{footer.get('split')}, not to {dataset}/{split}.",
            remedy=remedy,
        )
    kinds = {"fingerprint": str, "rows": int, "ledger_rows": int, "options": dict, "schema_version": int}
    wrong = [name for name, kind in kinds.items() if not isinstance(footer.get(name), kind)]
    if not isinstance(footer.get("raw_folder"), str | None):
        wrong.append("raw_folder")
    if not wrong and footer["rows"] != pq.read_metadata(path).num_rows:
        wrong.append("rows")
    if wrong:
        raise StoreError(f"{path}: its footer is damaged ({', '.join(wrong)}).", remedy=remedy)
    if footer.get("ledger_sha256") != ledger_digest(ledger):
        raise StoreError(f"{path}: its ledger is from another run (a run was cut off).", remedy=remedy)
    return Manifest(path, footer, paths)


def read_ledger(path: Path) -> pa.Table:
    """The ledger at `path` (LEDGER_SCHEMA).

    Raises:
        StoreError: another table stands there.
        OSError, pyarrow.ArrowException: no readable parquet file.
    """
    with pq.ParquetFile(path) as file:
        table = file.read()
    if not table.schema.remove_metadata().equals(LEDGER_SCHEMA):
        raise StoreError(f"{path}: not a ledger; it has the columns {table.schema.names}.")
    return table


def ledger_digest(ledger: pa.Table) -> str:
    return digest(ledger.select(LEDGER_SCHEMA.names).to_pylist())
