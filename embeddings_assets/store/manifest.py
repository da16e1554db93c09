"""Manifests: one row per usable image of a split, with a ledger of those that could not be used.

A manifest is opened by its footer and read a row group at a time, so that memory does not grow with it.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from embeddings_assets.catalog import get_dataset
from embeddings_assets.errors import StoreError
from embeddings_assets.io.files import disk_errors
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.footer import digest, parse_footer, rows_fingerprint
from embeddings_assets.store.parquet import open_parquet, read_footer, replace_table
from embeddings_assets.store.schema import (
    CROP_COLUMNS,
    LEDGER_NAME,
    LEDGER_SCHEMA,
    MANIFEST_NAME,
    NO_CROP,
    ROWS_PER_GROUP,
    SCHEMA_VERSION,
    manifest_schema,
)

BOXES_FINGERPRINT = "boxes_fingerprint"
"""Footer key of a split under a box for each image: `Manifest.boxes_fingerprint` of what it was made from."""

Crop = tuple[int, int, int, int]
"""Left, top, right and bottom edge in pixels from the upper left corner, as `PIL.Image.crop` takes them."""


@dataclass(frozen=True)
class Manifest:
    """An opened manifest file. It stays open: `prepare` may put another one in its place at any time.

    In another process, which it can be sent to, the file is opened again; where that is another manifest by
    then, reading rows raises StoreError.

    `footer` keys: `dataset`, `split`, `options` (what changes meaning: `hold_out` share and seed, `crop`),
    `rows`, `ledger_rows`, `ledger_sha256`, `fingerprint`, `schema_version`, and `raw_folder`: the folder
    that stands in for `raw/<official folder>`, or null; relative to `raw` where it lies below it, else
    absolute. The fingerprint leaves `raw_folder` out.
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

    @property
    def raw_folder(self) -> Path | None:
        """The folder that stands in for `raw/<official folder>`; None if that folder was read, or none."""
        recorded = self.footer.get("raw_folder")
        return _raw_beside(self.paths) / recorded if recorded else None

    @property
    def crop(self) -> str:
        """Which part of the images is used: `none`, or the name of a crop."""
        return str(self.footer["options"].get("crop", NO_CROP))

    @property
    def schema(self) -> pa.Schema:
        return manifest_schema(self.crop)

    def crops(self, start: int, stop: int) -> Sequence[Crop | None]:
        """The part that is used of each image from row `start` to `stop` (exclusive); None for all of it."""
        if self.crop == NO_CROP:
            return [None] * (stop - start)
        columns = self.slice(start, stop, CROP_COLUMNS)
        return list(zip(*(columns.column(name).to_pylist() for name in CROP_COLUMNS), strict=True))

    def boxes_fingerprint(self, of: Container[str] | None = None) -> str:
        """Hash of which part is used of each image, or of each with an id in `of`; needs a crop."""

        def wanted(batch: pa.RecordBatch) -> pa.RecordBatch:
            if of is None:
                return batch
            return batch.filter(pa.array([image_id in of for image_id in batch.column(0).to_pylist()]))

        return rows_fingerprint({}, map(wanted, self.batches(["image_id", *CROP_COLUMNS])))

    @property
    def is_superseded(self) -> bool:
        """Whether another manifest, or none, stands in its place by now."""
        try:
            return read_footer(self.path).get("fingerprint") != self.fingerprint
        except (OSError, pa.ArrowException, StoreError):
            return True

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_file"}

    @cached_property
    def _file(self) -> pq.ParquetFile:
        file = open_parquet(self.path)
        if parse_footer(file.metadata.metadata, self.path).get("fingerprint") != self.fingerprint:
            raise StoreError(f"{self.path}: was written anew meanwhile.", remedy="run the same command again")
        return file

    @cached_property
    def _offsets(self) -> list[int]:
        """First row of each row group, and the row count last."""
        metadata = self._file.metadata
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
            names = self.schema.names if columns is None else list(columns)
            return pa.schema([self.schema.field(name) for name in names]).empty_table()
        # Threads would each keep memory of their own.
        table = self._file.read_row_groups(groups, columns=columns, use_threads=False)
        return table.slice(start - self._offsets[groups[0]], stop - start)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        yield from self._file.iter_batches(batch_size=ROWS_PER_GROUP, columns=columns, use_threads=False)

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
            if parts[:2] == ("raw", official) and self.raw_folder is not None:
                return self.raw_folder.joinpath(*parts[2:])
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

    `rows` follows the manifest schema of `options["crop"]` in official order, `ledger` LEDGER_SCHEMA. The
    manifest records the ledger's digest, so a crash between the two renames is seen by `open_manifest`.
    """
    folder = paths.processed_split(dataset, split)
    folder.mkdir(parents=True, exist_ok=True)
    ledger = ledger.select(LEDGER_SCHEMA.names).cast(LEDGER_SCHEMA)
    schema = manifest_schema(options.get("crop", NO_CROP))
    rows = rows.select(schema.names).cast(schema)
    header = {"dataset": dataset, "split": split, "options": dict(options), "schema_version": SCHEMA_VERSION}
    footer = {
        **header,
        "rows": rows.num_rows,
        "ledger_rows": ledger.num_rows,
        "ledger_sha256": ledger_digest(ledger),
        "fingerprint": rows_fingerprint(header, rows.to_batches()),
        "raw_folder": None if raw_folder is None else _as_recorded(raw_folder.resolve(), paths),
    }
    replace_table(ledger, folder / LEDGER_NAME, {"dataset": dataset, "split": split})
    replace_table(rows, folder / MANIFEST_NAME, footer)
    return Manifest(folder / MANIFEST_NAME, footer, paths)


def _as_recorded(raw_folder: Path, paths: DataPaths) -> str:
    """Without what is above `raw`, if it lies there: then the data root can be moved."""
    raw = _raw_beside(paths).resolve()
    return str(raw_folder.relative_to(raw) if raw_folder.is_relative_to(raw) else raw_folder)


def _raw_beside(paths: DataPaths) -> Path:
    return paths.processed.parent / "raw"  # where the image paths of manifests begin


def open_manifest(paths: DataPaths, dataset: str, split: str, *, alone: bool = False) -> Manifest:
    """The manifest of a split.

    Args:
        alone: whatever has become of its ledger, as for what a run that was cut off between the two records.

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
        file = open_parquet(path)
        footer = parse_footer(file.metadata.metadata, path)
        ledger_sha256 = None if alone else ledger_digest(read_ledger(path.with_name(LEDGER_NAME)))
    except (OSError, pa.ArrowException) as error:
        raise StoreError(
            f"{path}: the manifest or its ledger cannot be read ({error}).", remedy=remedy
        ) from error
    if (footer.get("dataset"), footer.get("split")) != (dataset, split):
        raise StoreError(
            f"{path}: belongs to {footer.get('dataset')}/{footer.get('split')}, not to {dataset}/{split}.",
            remedy=remedy,
        )
    kinds = {"fingerprint": str, "rows": int, "ledger_rows": int, "options": dict, "schema_version": int}
    wrong = [name for name, kind in kinds.items() if not isinstance(footer.get(name), kind)]
    if not isinstance(footer.get("raw_folder"), str | None):
        wrong.append("raw_folder")
    if not wrong and footer["rows"] != file.metadata.num_rows:
        wrong.append("rows")
    if wrong:
        raise StoreError(f"{path}: its footer is damaged ({', '.join(wrong)}).", remedy=remedy)
    manifest = Manifest(path, footer, paths)
    vars(manifest)["_file"] = file
    schema = file.schema_arrow
    if not schema.remove_metadata().equals(manifest.schema):
        raise StoreError(f"{path}: unexpected columns {schema.names}.", remedy=remedy)
    if not alone and footer.get("ledger_sha256") != ledger_sha256:
        raise StoreError(f"{path}: its ledger is from another run (a run was cut off).", remedy=remedy)
    return manifest


def read_ledger(path: Path) -> pa.Table:
    """The ledger at `path` (LEDGER_SCHEMA).

    Raises:
        StoreError: another table stands there.
        OSError, pyarrow.ArrowException: no readable parquet file.
    """
    with open_parquet(path) as file:
        table = file.read()
    if not table.schema.remove_metadata().equals(LEDGER_SCHEMA):
        raise StoreError(f"{path}: not a ledger; it has the columns {table.schema.names}.")
    return table


def ledger_digest(ledger: pa.Table) -> str:
    return digest(ledger.select(LEDGER_SCHEMA.names).to_pylist())
