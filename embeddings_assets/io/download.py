"""Download of one published file: resumed where it broke off, named only when its digest is right."""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests
import urllib3

from embeddings_assets.catalog import Archive
from embeddings_assets.errors import RawDataError
from embeddings_assets.io.files import naming

Progress = Callable[[int, int], None]
"""Called with (bytes so far, bytes in all, or 0 where that is not known)."""

_CHUNK = 1 << 20
_TIMEOUT = (15, 60)  # seconds to connect, and without a byte
_ATTEMPTS_WITHOUT_A_BYTE = 4
_FIRST_PAUSE = 0.25  # seconds; doubled after each attempt that brought nothing
_BUSY = (429, 500, 502, 503, 504)  # worth another try
_BROWSER = "try again; if it stays so, download it in a browser and name its folder: --archives DIR"
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
# Of the file that is written: trying again does not help.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG)


class _GoneError(Exception):
    """The connection broke off; what came is kept."""


def download(archive: Archive, folder: Path, most_bytes: int, progress: Progress) -> Path:
    """The file in `folder`, complete and with the published digest.

    Until then it is `<name>.part`, which the next call goes on with, if the server still has the same file.

    Args:
        most_bytes: how much is taken of a file whose size is not published.

    Raises:
        RawDataError: the server refuses, breaks off again and again, or gives another file.
    """
    final, part = folder / archive.filename, _part(archive, folder)
    if final.is_file():
        return final
    # Complete already where a call was killed before it had checked it.
    if _size(part) != archive.bytes or wrong_content(archive, part) is not None:
        _receive_all(archive, part, archive.bytes or most_bytes, progress)
        problem = wrong_content(archive, part)
        if problem is not None:
            _forget(part)
            raise RawDataError(f"{archive.url} gave {problem}. Nothing was kept.", remedy=_BROWSER)
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.replace(final)
    _forget(part)
    return final


def _receive_all(archive: Archive, part: Path, most: int, progress: Progress) -> None:
    """As many requests as it takes."""
    attempts, longest = 0, _size(part)
    while True:
        try:
            return _receive(archive, part, most, progress)
        except _GoneError as error:
            # Against the most so far: where a server does not go on, the part shrinks and grows.
            attempts = 0 if _size(part) > longest else attempts + 1
            longest = max(longest, _size(part))
            if attempts >= _ATTEMPTS_WITHOUT_A_BYTE:
                raise RawDataError(
                    f"{archive.url}: the download broke off ({error}). "
                    f"{_size(part):,} bytes are kept in {part}.",
                    remedy="run the same command again, it goes on from there",
                ) from error
            time.sleep(_FIRST_PAUSE * 2**attempts if attempts else 0.0)


def bytes_so_far(archive: Archive, folder: Path) -> int:
    """How much of an incomplete file is in `folder`."""
    return _size(_part(archive, folder))


def wrong_content(archive: Archive, path: Path) -> str | None:
    """What a file is, and what it should be; None if it has the published size and digests."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(512).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"a web page instead of {archive.filename}"
    if archive.bytes is not None and size != archive.bytes:
        return f"{size:,} bytes for {archive.filename}, expected {archive.bytes:,}"
    for name in ("sha256", "md5"):
        expected = getattr(archive, name)
        if expected is not None:
            found = file_digest(path, name)
            if found != expected:
                return f"a file with {name} {found} for {archive.filename}, expected {expected}"
    return None


def file_digest(path: Path, name: str) -> str:
    """The digest of a file in hexadecimal.

    Args:
        name: `sha256` or `md5`.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(name, usedforsecurity=False)).hexdigest()


def _receive(archive: Archive, part: Path, most: int, progress: Progress) -> None:
    """One request: append to `part`, or begin again where the server does not go on with the same file."""
    done = _size(part)
    validator = _validator(part)
    # No transfer compression: the bytes are those of the file, so that they can be counted and gone on with.
    headers = {"Accept-Encoding": "identity"}
    if done and validator:
        headers |= {"Range": f"bytes={done}-", "If-Range": validator}
    try:
        with requests.get(str(archive.url), headers=headers, stream=True, timeout=_TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                if (archive.sha256 or archive.md5) and wrong_content(archive, part) is None:
                    return
                _forget(part)
                raise _GoneError("it no longer has a file that long")
            if response.status_code in _BUSY:
                raise _GoneError(f"the server answers {response.status_code} {response.reason}")
            if response.status_code not in (requests.codes.ok, requests.codes.partial_content):
                raise _refused(archive, response)
            goes_on = response.status_code == requests.codes.partial_content
            if goes_on and not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                _forget(part)
                raise _GoneError("it gave another range than was asked for")
            start = done if goes_on else 0
            length = response.headers.get("Content-Length", "")
            total = start + int(length) if length.isdecimal() else 0
            if not goes_on:
                _begin(part, response)
            if total > most or not _append(response, part, start, total, most, progress):
                _forget(part)
                raise RawDataError(
                    f"{archive.url} gives more than {most:,} bytes for {archive.filename}. Nothing was kept.",
                    remedy=_BROWSER,
                )
    except _BROKEN as error:
        if getattr(error, "errno", None) in _OF_THE_DISK:
            raise
        raise _GoneError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error


def _append(
    response: requests.Response, part: Path, start: int, total: int, most: int, progress: Progress
) -> bool:
    """Whether no more than `most` bytes came."""
    done = start
    with part.open("r+b") as stream:
        stream.seek(start)
        stream.truncate()
        progress(done, total)
        for chunk in _chunks(response):
            done += len(chunk)
            if done > most:
                return False
            with naming(part):
                stream.write(chunk)
                stream.flush()
            progress(done, total)
    if done < total:
        raise _GoneError(f"{done:,} of {total:,} bytes came")
    return True


def _chunks(response: requests.Response) -> Iterator[bytes]:
    yield from response.raw.stream(_CHUNK, decode_content=False)


def _begin(part: Path, response: requests.Response) -> None:
    """An empty part, and beside it what tells whether the server still has the same file."""
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
    part.write_bytes(b"")
    weak = validator is None or validator.startswith("W/")
    _notes(part).write_text(json.dumps({"validator": None if weak else validator}))


def _validator(part: Path) -> str | None:
    try:
        notes: dict[str, Any] = json.loads(_notes(part).read_text())
    except (OSError, ValueError):
        return None
    return notes.get("validator") if isinstance(notes, dict) else None


def _part(archive: Archive, folder: Path) -> Path:
    return folder / f"{archive.filename}.part"


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _forget(part: Path) -> None:
    for path in (part, _notes(part)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _refused(archive: Archive, response: requests.Response) -> RawDataError:
    return RawDataError(
        f"{archive.url}: the server answers {response.status_code} {response.reason}.",
        remedy="see whether a browser gets it; put the file into a folder and name that: --archives DIR",
    )
