"""Which listed images exist: one scan per folder instead of one look per file, and no file is opened."""

import os
from collections.abc import Iterator
from pathlib import Path

from embeddings_assets.datasets.layouts.listing import Listing
from embeddings_assets.datasets.layouts.parsing import cannot_read


def find_images(listing: Listing) -> Iterator[str | None]:
    """For each record its path as it stands on disk, or None where there is no such file.

    A suffix in the other case (`.JPG` for a listed `.jpg`) counts as the same file.

    Raises:
        RawDataError: a folder that the operating system refuses to list.
    """
    files_of: dict[str, frozenset[str]] = {}
    for record in listing.records:
        folder, slash, name = record.path.rpartition("/")
        files = files_of.get(folder)
        if files is None:
            files = files_of[folder] = _files(listing.folder / folder)
        if name in files:
            yield record.path
            continue
        stem, dot, suffix = name.rpartition(".")
        names = (f"{stem}{dot}{suffix.lower()}", f"{stem}{dot}{suffix.upper()}")
        found = next((name for name in names if name in files), None)
        yield None if found is None else f"{folder}{slash}{found}"


def _may_be_a_file(entry: os.DirEntry[str]) -> bool:
    """Also true of a link that leads in circles or into a closed folder: whoever opens it says what it is."""
    try:
        return entry.is_file()
    except OSError:
        return True


def _files(folder: Path) -> frozenset[str]:
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if _may_be_a_file(entry))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise cannot_read(folder, error, done="listed") from error
