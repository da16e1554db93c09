"""Writing and opening single parquet files: footer, durability, atomic replacement."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from embeddings_assets.errors import StoreError
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
    temporary = path.with_name(f"{_temporary_prefix(path)}{os.getpid()}.tmp")
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


def remove_leftovers(path: Path) -> None:
    """Delete what writers of `path` that were killed have left; for the one that may write it now."""
    for leftover in path.parent.glob(f"{_temporary_prefix(path)}*.tmp"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """What the operating system refuses inside becomes a StoreError that names the file."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename2 or error.filename or 'a file'}: {error.strerror or error}.",
            remedy="check the folder, its permissions and the free space; then run the same command again",
        ) from error


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from an open file does not say which one; this makes it say so."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def exclusive(folder: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """One process at a time in a folder; the system lets go when a process ends, however it ends.

    Args:
        on_wait: called before waiting for another process; may raise instead.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def flush(stream: BinaryIO) -> None:
    """Push a file's content to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def _temporary_prefix(path: Path) -> str:
    return f".{path.name}."


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
