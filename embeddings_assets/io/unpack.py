"""Safe unpacking of tar archives, which are untrusted until they have been looked at member by member.

tarfile only parses here. Python 3.11's own filters strip absolute names silently and have been got round by
chains of links, so every member is judged by its name alone: it, and what it links to, must lie below the
target by what is written, and the way to it must not lead over a link.
"""

import bz2
import errno
import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, cast

from embeddings_assets.errors import RawDataError

MOST_ENTRIES = 200_000  # files, links and folders: four times the largest dataset
_DEEPEST = 32
# tarfile holds what it reads of a member's headers in memory, several times over.
_LONGEST_HEADER = 2**20
_HEADERS_IN_ALL = 2**28  # three times those of the largest dataset
_CHUNK = 1 << 20
_BLOCK = 1 << 16
# A RecursionError comes of a chain of headers, each of which says that another one follows.
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, ValueError, UnicodeError, RecursionError)
_HOSTILE = (errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR)
_LATEST = 2**32  # seconds; a time of last change beyond it is not kept
# Not xz: its decoder takes as much memory as the file says, and no published archive is one.
_OPENERS: tuple[tuple[bytes, Callable[[Path], object]], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open))


def unpack(
    archive: Path,
    target: Path,
    *,
    strip: str = "",
    most_bytes: int,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Unpack a tar archive, plain or as gzip or bzip2, whatever its name says, into an existing folder.

    Args:
        strip: a folder of the archive whose content goes into `target` itself.
        most_bytes: more than this may not come out of it.
        progress: called with the bytes unpacked so far, after each member.

    Returns:
        How many bytes came out of it.

    Raises:
        RawDataError: it is damaged or no archive, or holds a device, too much, or what could leave `target`.
    """
    try:
        with _opened(archive) as stream:
            metered = _Metered(archive, stream, most_bytes)
            with tarfile.open(fileobj=cast("IO[bytes]", metered), mode="r|", bufsize=_BLOCK) as members:
                return _Unpacking(archive, target, strip, most_bytes).run(members, metered, progress)
    except (OSError, *_DAMAGED) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk; those of gzip and bz2 on damage have no number
        raise RawDataError(
            f"{archive}: not a whole tar archive ({type(error).__name__}: {error}).",
            remedy="delete it and fetch it again",
        ) from error


class _Metered:
    """What comes out of the compression, for tarfile; ends where a header, or all of it, is too long."""

    def __init__(self, archive: Path, stream: IO[bytes], most_bytes: int) -> None:
        self._archive = archive
        self._stream = stream
        self._most_bytes = most_bytes
        self._done = 0
        self._at_end = False
        self.allow_header()

    def allow_header(self) -> None:
        """Let the headers of one member be read."""
        self._until = self._done + _LONGEST_HEADER

    def allow_content(self, size: int) -> None:
        """Let the content of a member be read."""
        self._until = self._done + size + _LONGEST_HEADER

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        if not data and self._at_end:
            raise EOFError(
                "it ends too early"
            )  # tarfile would go on asking until it had the size it was told
        self._at_end = not data
        self._done += len(data)
        if self._done > self._most_bytes + _HEADERS_IN_ALL:
            raise RawDataError(
                f"{self._archive}: refused: more than {self._most_bytes:,} bytes come out of it.",
                remedy="this is not the published archive; delete it",
            )
        if self._done > self._until:
            raise tarfile.ReadError(f"a header of more than {_LONGEST_HEADER:,} bytes")
        return data


class _Unpacking:
    def __init__(self, archive: Path, target: Path, strip: str, most_bytes: int) -> None:
        self._archive = archive
        self._target = target
        self._strip = PurePosixPath(strip).parts
        self._most_bytes = most_bytes
        self._bytes = 0
        self._entries = 0

    def run(self, members: tarfile.TarFile, metered: _Metered, progress: Callable[[int], None] | None) -> int:
        while (member := members.next()) is not None:
            # tarfile would keep every member with its headers, and add those of the whole archive to each.
            members.members = []  # type: ignore[attr-defined]
            members.pax_headers = {}
            try:
                self._place(members, metered, member)
            except OSError as error:
                if error.errno not in _HOSTILE:
                    raise
                raise self._refused(member, f"it cannot be placed ({error.strerror})") from error
            if progress is not None:
                progress(self._bytes)
            metered.allow_header()
        return self._bytes

    def _place(self, members: tarfile.TarFile, metered: _Metered, member: tarfile.TarInfo) -> None:
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise self._refused(member, "a device or pipe")
        if member.issparse():
            raise self._refused(member, "a file with holes")
        if member.issym():
            self._parts(member, member.linkname)
        self._count(member)
        parts = self._stripped(self._parts(member, member.name))
        if not parts:
            if member.isdir():
                return
            raise self._refused(member, "it would take the place of the dataset's folder")
        if self._over_a_link(parts[:-1]):
            raise self._refused(member, "its way leads over a link")
        path = self._target.joinpath(*parts)
        if path.is_symlink() or (path.exists() and path.is_dir() != member.isdir()):
            raise self._refused(member, "something else of that name came before")
        self._make_folders(member, parts if member.isdir() else parts[:-1])
        if member.isreg():
            self._write(members, metered, member, path)
        elif member.issym():
            path.symlink_to(member.linkname)
        elif member.islnk():
            self._link(member, path)

    def _count(self, member: tarfile.TarInfo) -> None:
        self._entries += 1
        if self._entries > MOST_ENTRIES:
            raise self._refused(member, f"more than {MOST_ENTRIES:,} members and folders")

    def _parts(self, member: tarfile.TarInfo, name: str) -> tuple[str, ...]:
        path = PurePosixPath(name)
        if path.is_absolute():
            raise self._refused(member, f"an absolute path {name[:80]!r}")
        if ".." in path.parts or "\0" in name:
            raise self._refused(member, f"a path that leaves its folder, {name[:80]!r}")
        if len(path.parts) > _DEEPEST:
            raise self._refused(member, f"a path of more than {_DEEPEST} folders")
        return path.parts

    def _over_a_link(self, parts: tuple[str, ...]) -> bool:
        steps = range(1, len(parts) + 1)
        return any(self._target.joinpath(*parts[:step]).is_symlink() for step in steps)

    def _stripped(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        begins = parts[: len(self._strip)] == self._strip
        return parts[len(self._strip) :] if begins else parts

    def _make_folders(self, member: tarfile.TarInfo, parts: tuple[str, ...]) -> None:
        folder = self._target
        for part in parts:
            folder = folder / part
            if not folder.is_dir():
                self._count(member)
                folder.mkdir()

    def _write(
        self, members: tarfile.TarFile, metered: _Metered, member: tarfile.TarInfo, path: Path
    ) -> None:
        self._bytes += member.size
        if self._bytes > self._most_bytes:
            raise self._refused(member, f"more than {self._most_bytes:,} bytes come out of it")
        metered.allow_content(member.size)
        content = members.extractfile(member)
        if content is None:
            raise self._refused(member, "no content")
        with content, path.open("wb") as stream:
            shutil.copyfileobj(content, stream, _CHUNK)
        if path.stat().st_size != member.size:
            raise EOFError(f"{member.name} ends after {path.stat().st_size:,} of {member.size:,} bytes")
        if 0 <= member.mtime < _LATEST:
            os.utime(path, (member.mtime, member.mtime))

    def _link(self, member: tarfile.TarInfo, path: Path) -> None:
        parts = self._stripped(self._parts(member, member.linkname))
        source = self._target.joinpath(*parts)
        if self._over_a_link(parts) or not source.is_file():
            raise self._refused(member, f"a link to {member.linkname[:80]!r}, no file that came before")
        path.unlink(missing_ok=True)
        path.hardlink_to(source)

    def _refused(self, member: tarfile.TarInfo, why: str) -> RawDataError:
        return RawDataError(
            f"{self._archive}: refused at member {member.name[:80]!r}: {why}.",
            remedy="this is not the published archive; delete it",
        )


def _opened(archive: Path) -> IO[bytes]:
    with archive.open("rb") as stream:
        head = stream.read(8)
    for signature, opener in _OPENERS:
        if head.startswith(signature):
            return cast("IO[bytes]", opener(archive))
    return archive.open("rb")
