"""Writing and opening single parquet files: footer, durability, atomic replacement."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from embeddings_assets.io.files import flush, naming, sync_folder, temporary_prefix
from embeddings_assets.store.footer import canonical_json, parse_footer
from embeddings_assets.store.schema import FOOTER_KEY, ROWS_PER_GROUP


def read_footer(path: Path) -> dict[str, Any]:
    """The project's JSON object in the footer of a parquet file.

    Raises:
        OSError, pyarrow.ArrowException: no readable parquet file.
        StoreError: a parquet file without our footer.
    """
    return parse_footer(pq.read_metadata(path).metadata, path)


def open_parquet(path: Path, **options: Any) -> pq.ParquetFile:
    """A parquet file to read piece by piece.

    By default pyarrow reads all that is to be decoded ahead, so that memory would grow with the file.
    """
    return pq.ParquetFile(path, pre_buffer=False, **options)


def open_writer(
    stream: BinaryIO, schema: pa.Schema, footer: Mapping[str, Any], **options: Any
) -> pq.ParquetWriter:
    """A zstd writer with the footer as key-value metadata.

    The footer is no schema metadata: pyarrow would store it a second time inside `ARROW:schema`.
    """
    writer = pq.ParquetWriter(stream, schema.remove_metadata(), compression="zstd", **options)
    writer.add_key_value_metadata({FOOTER_KEY.decode(): canonical_json(footer)})
    return writer


def replace_table(table: pa.Table, path: Path, footer: Mapping[str, Any]) -> None:
    """Write `table` with `footer` beside `path`, flush it to disk, then rename it over `path`."""
    temporary = path.with_name(f"{temporary_prefix(path)}{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as stream:
            with open_writer(stream, table.schema, footer) as writer:
                writer.write_table(table, row_group_size=ROWS_PER_GROUP)
            flush(stream)
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    sync_folder(path.parent)
