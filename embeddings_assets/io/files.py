"""Files on disk: flushed, made durable, renamed into place; errors that say which file.

Anything that knows a format belongs to who writes it.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from embeddings_assets.errors import StoreError


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


def flush(stream: BinaryIO) -> None:
    """Push a file's content to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_prefix(path: Path) -> str:
    """How the names begin that writers of `path` give to files in the making, beside it."""
    return f".{path.name}."


def remove_leftovers(path: Path) -> None:
    """Delete what writers of `path` that were killed have left; for the one that may write it now."""
    for leftover in path.parent.glob(f"{temporary_prefix(path)}*.tmp"):
        leftover.unlink(missing_ok=True)
