"""Strict reading of the datasets' text and .mat lists.

Lists are untrusted: every failure becomes a `RawDataError` that names the file and the line.
"""

import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path, PurePosixPath
from typing import Any

from embeddings_assets.errors import RawDataError

# Some copies of the lists in the wild carry a header line, which no official list has.
_HEADER_WORD = (
    "(b?box(es)?|child|class(es)?|family|families|file|filename|filepath|id|images?|img|is|labels?"
    "|manufacturers?|name|parent|path|split|target|train(ing)?|variants?"
    "|left|top|right|bottom|w|h|width|height|[xy]_?(min|max|[0-9])?)"
)
_HEADER_LINE = re.compile(rf"{_HEADER_WORD}([\s_,;]+{_HEADER_WORD})*\s*", re.IGNORECASE)

# What scipy's readers raise on damaged files, beyond its own MatReadError; v7.3 files are NotImplemented.
_MAT_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line, or the part of one after its key, with where it stands."""

    path: Path
    number: int
    text: str

    def error(self, expected: str) -> RawDataError:
        return RawDataError(
            f"{self.path}, line {self.number}: expected {expected}, found {self.text[:80]!r}."
        )

    def as_path(self) -> str:
        return safe_path(self.text, f"{self.path}, line {self.number}")


def find_root(folder: Path, is_root: Callable[[Path], bool], *, levels: int = 2) -> Path | None:
    """The folder that holds the lists: `folder`, or one within it where it was unpacked too deep.

    Goes down only where there is no choice: into a folder of the same name, or into the only one. Whether
    that is another dataset's is for the caller to tell.

    Args:
        levels: how deep to look.
    """
    if not folder.is_dir():
        return None
    if is_root(folder):
        return folder
    if levels == 0:
        return None
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and child.name[0] not in "._"]
    same_name = [child for child in children if child.name == folder.name]
    only_child = children if len(children) == 1 else []
    roots = (
        find_root(child, is_root, levels=levels - 1) for child in dict.fromkeys([*same_name, *only_child])
    )
    return next((root for root in roots if root is not None), None)


def require_root(folder: Path, root: Path | None, expected: str) -> Path:
    """`root`, unless it was not found.

    Raises:
        RawDataError: says what was looked for and what the folder holds.
    """
    if root is None:
        raise RawDataError(f"{folder}: expected {expected}; {describe_folder(folder)}.")
    return root


def require_utf8(path: Path) -> None:
    """Make sure that a name can be written into a manifest.

    Raises:
        RawDataError: it cannot.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise RawDataError(f"{path!r}: the name is not UTF-8.", remedy="rename it") from error


def describe_folder(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = [child.name for child in folder.iterdir() if not child.name.startswith(".")]
    return f"found {listed(names, 8)}" if names else "found an empty folder"


def listed(names: Iterable[str], most: int) -> str:
    """The first of these names in order, and how many more there are; what cannot be printed is escaped."""
    ordered = sorted(names)
    shown = (name if name.isprintable() else repr(name)[1:-1] for name in ordered[:most])
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return f"{', '.join(shown)}{more}"


def cannot_read(path: Path | str, error: OSError, *, done: str = "read") -> RawDataError:
    """What to say of a file or folder that the operating system refuses to read or to list."""
    remedy = "see to the disk, then run the same command again"
    if isinstance(error, PermissionError):
        # A folder above it, or above what it links to, may be the one that is closed.
        of_effective_user = os.access in os.supports_effective_ids
        closed = (
            folder
            for folder in reversed(Path(os.path.realpath(path)).parents)
            if not os.access(folder, os.X_OK, effective_ids=of_effective_user)
        )
        place = next(closed, path)
        remedy = f'make it readable for you, then run the same command again: chmod -R u+rX "{place}"'
    return RawDataError(f"{path}: cannot be {done} ({error.strerror or error}).", remedy=remedy)


def read_lines(path: Path) -> list[Line]:
    """The lines of a list, without trailing empty lines and without a header line.

    Raises:
        RawDataError: the file is absent, unreadable, not UTF-8, empty, or has an empty line inside.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise RawDataError(f"{path}: no such file; {describe_folder(path.parent)} beside it.") from None
    except OSError as error:
        raise cannot_read(path, error) from error
    except UnicodeDecodeError as error:
        number = path.read_bytes()[: error.start].count(b"\n") + 1
        raise RawDataError(f"{path}, line {number}: expected UTF-8 text ({error.reason}).") from error
    lines = [Line(path, number, line) for number, line in enumerate(text.rstrip("\n").split("\n"), start=1)]
    if _HEADER_LINE.fullmatch(lines[0].text):
        lines = lines[1:]
    if not lines or lines == [Line(path, 1, "")]:
        raise RawDataError(f"{path}: expected a list, found an empty file.")
    for line in lines:
        if not line.text.strip():
            raise line.error("an entry")
    return lines


def read_table(path: Path, expected: str) -> dict[str, Line]:
    """Lines of a key, one space and a value that may hold spaces, as key -> value, in file order.

    Raises:
        RawDataError: also a line without a value, or a key that occurs twice.
    """
    table: dict[str, Line] = {}
    for line in read_lines(path):
        key, _, value = line.text.partition(" ")
        if not key or not value.strip():
            raise line.error(expected)
        if key in table:
            raise RawDataError(
                f"{path}, line {line.number}: {key!r} occurs twice; first in line {table[key].number}."
            )
        table[key] = Line(path, line.number, value)
    return table


def numbers(line: Line, count: int) -> list[int]:
    """The rest of a line as `count` whole numbers; CUB writes them with a decimal point.

    Raises:
        RawDataError: something else stands there.
    """
    try:
        values = [float(text) for text in line.text.split()]
        whole = [int(value) for value in values if value == int(value)]
    except (ValueError, OverflowError):
        whole = []
    if len(whole) != count or len(line.text.split()) != count:
        raise line.error(f"{count} whole numbers")
    return whole


def safe_path(text: str, where: str) -> str:
    """A relative POSIX path that cannot leave the dataset's folder.

    Raises:
        RawDataError: an absolute path, a `..`, a backslash or a control character.
    """
    path = PurePosixPath(text)
    if path.is_absolute() or not path.parts or ".." in path.parts or not text.isprintable() or "\\" in text:
        raise RawDataError(f"{where}: expected a path inside the dataset's folder, found {text[:80]!r}.")
    return str(path)


def read_mat(path: Path, *names: str) -> list[Any]:
    """The named variables of a .mat file as numpy arrays, each squeezed to one dimension.

    Raises:
        RawDataError: the file is absent or damaged, or lacks a variable.
    """
    # Slow to import (half a second), and most imports of this package read no .mat file.
    import numpy as np
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not path.is_file():
        raise RawDataError(f"{path}: no such file; {describe_folder(path.parent)} beside it.")
    try:
        with path.open("rb") as stream:
            content = loadmat(stream, squeeze_me=True, variable_names=names)
    except PermissionError as error:
        raise cannot_read(path, error) from error
    except (MatReadError, *_MAT_ERRORS) as error:
        raise RawDataError(f"{path}: not a readable .mat file ({type(error).__name__}: {error}).") from error
    for name in names:
        if name not in content:
            raise RawDataError(f"{path}: expected the variables {', '.join(names)}; {name!r} is missing.")
    return [np.atleast_1d(content[name]) for name in names]


def mat_field(records: Any, name: str, path: Path) -> list[Any]:
    """One field of a numpy struct array, in order.

    Raises:
        RawDataError: the records lack the field.
    """
    fields = records.dtype.names or ()
    if name not in fields:
        raise RawDataError(
            f"{path}: expected records with a field {name!r}, found {', '.join(fields) or 'none'}."
        )
    return list(records[name])


def mat_integers(values: Any, path: Path, what: str) -> list[int]:
    """Values as Python integers.

    Raises:
        RawDataError: a value that is no whole number; names its 1-based position.
    """
    numbers = []
    for position, value in enumerate(values, start=1):
        if not isinstance(value, Integral):
            raise RawDataError(f"{path}: {what} {position} is {str(value)[:80]!r}; expected an integer.")
        numbers.append(int(value))
    return numbers


def mat_texts(values: Any, path: Path, what: str) -> list[str]:
    """Values as text.

    Raises:
        RawDataError: a value that is not text; names its 1-based position.
    """
    for position, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise RawDataError(f"{path}: {what} {position} is {str(value)[:80]!r}; expected text.")
    return [str(value) for value in values]
