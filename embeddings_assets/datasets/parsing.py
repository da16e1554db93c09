"""Strict reading of the datasets' text and .mat lists.

Lists are untrusted: every failure becomes a `RawDataError` that names the file and the line.
"""

import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path, PurePosixPath
from typing import Any

from embeddings_assets.errors import RawDataError

# Some copies of the lists in the wild carry a header line, which no official list has.
_HEADER_WORD = (
    "(class(es)?|family|families|file|filename|filepath|id|images?|img|is|labels?|manufacturers?|name|path"
    "|split|target|train(ing)?|variants?)"
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


def find_root(folder: Path, is_root: Callable[[Path], bool]) -> Path | None:
    """The folder that holds the lists: `folder`, or the folder within it when unpacked one level too deep."""
    if not folder.is_dir():
        return None
    if is_root(folder):
        return folder
    children = [child for child in sorted(folder.iterdir()) if child.is_dir() and child.name[0] not in "._"]
    same_name = [child for child in children if child.name == folder.name]
    only_child = children if len(children) == 1 else []
    return next((root for root in [*same_name, *only_child] if is_root(root)), None)


def require_root(folder: Path, root: Path | None, expected: str) -> Path:
    """`root`, unless it was not found.

    Raises:
        RawDataError: says what was looked for and what the folder holds.
    """
    if root is None:
        raise RawDataError(f"{folder}: expected {expected}; {describe_folder(folder)}.")
    return root


def describe_folder(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = sorted(child.name for child in folder.iterdir() if not child.name.startswith("."))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"found {', '.join(names[:8])}{more}" if names else "found an empty folder"


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
        raise RawDataError(f"{path}: cannot be read ({error.strerror or error}).") from error
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
        content = loadmat(path, squeeze_me=True, variable_names=names)
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
