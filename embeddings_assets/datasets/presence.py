"""Which listed images exist: one scan per folder instead of one look per file, and no file is opened."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from embeddings_assets.datasets.listing import Listing
from embeddings_assets.errors import RawDataError


def find_images(listing: Listing) -> Iterator[str | None]:
    """For each record its path as it stands on disk, or None where there is no such file.

    A suffix in the other case (`.JPG` for a listed `.jpg`) counts as the same file.

    Raises:
        RawDataError: a folder that the operating system refuses to list.
    """
    files_of: dict[PurePosixPath, frozenset[str]] = {}
    for record in listing.records:
        path = PurePosixPath(record.path)
        if path.parent not in files_of:
            files_of[path.parent] = _files(listing.folder / path.parent)
        names = (path.name, path.stem + path.suffix.lower(), path.stem + path.suffix.upper())
        name = next((name for name in names if name in files_of[path.parent]), None)
        yield None if name is None else str(path.parent / name)


def _files(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise RawDataError(f"{folder}: cannot be listed ({error.strerror or error}).") from error
