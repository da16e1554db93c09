"""Errors a user can mend. Each says what is wrong, in which file, and the command that mends it."""

from enum import StrEnum
from typing import Any


class EmbeddingsError(Exception):
    """A failure whose text is meant for the user.

    Args:
        problem: what was expected and what was found, naming the file or folder.
        remedy: the command or step that mends it, if there is one.
    """

    def __init__(self, problem: str, *, remedy: str | None = None) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.problem, self.remedy)

    def __str__(self) -> str:
        return self.problem if self.remedy is None else f"{self.problem}\n  To mend: {self.remedy}"


def _rebuilt(kind: type[EmbeddingsError], problem: str, remedy: str | None) -> EmbeddingsError:
    return kind(problem, remedy=remedy)


class UnknownNameError(EmbeddingsError):
    """A model, dataset or split that the catalog does not hold."""


class SettingsError(EmbeddingsError):
    """An environment variable or argument with a value that has no meaning."""


class RawDataError(EmbeddingsError):
    """A raw dataset folder that is absent, incomplete or not in a known layout."""


class WeightsError(EmbeddingsError):
    """Model weights that are absent, of the wrong architecture, or not what they claim to be."""


class SelfTestError(EmbeddingsError):
    """A library that gives other values than the published code, found before a vector was computed."""


class DeviceError(EmbeddingsError):
    """A GPU that has failed: nothing can be computed on it in this process any more."""


class StoreError(EmbeddingsError):
    """A manifest or embedding file that is absent, damaged or breaks its contract."""


class BadImagesError(EmbeddingsError):
    """More bad images than the policy allows."""


class SplitBusyError(EmbeddingsError):
    """Another living process is writing the same split."""


class Reason(StrEnum):
    """Why an image could not be used: the closed list of the ledgers."""

    MISSING = "missing"  # listed, but no such file
    UNREADABLE = "unreadable"  # the operating system refuses to read it
    EMPTY = "empty"  # zero bytes
    NOT_AN_IMAGE = "not_an_image"  # HTML, a git-LFS pointer, text, an unknown format
    TRUNCATED = "truncated"  # an image file that ends too early
    CORRUPT = "corrupt"  # an image file that does not decode
    OVERSIZED = "oversized"  # more pixels or more decompressed data than is safe to decode
    UNCROPPABLE = "uncroppable"  # no box to crop to, or nothing of the image inside the crop
    CHANGED = "changed"  # content differs from what the manifest recorded


class ImageError(EmbeddingsError):
    """One image that cannot be used; becomes a ledger row wherever many images are read.

    Args:
        reason: the ledger reason.
        detail: what the reader found, in one line.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["ImageError"], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)


def packed_error(error: EmbeddingsError) -> list[str | None]:
    """An error as JSON, to be raised again in another process."""
    return [type(error).__name__, error.problem, error.remedy]


def unpacked_error(packed: list[str | None]) -> EmbeddingsError:
    """The error behind `packed_error`; of the same class where that takes a problem and a remedy."""
    name, problem, remedy = packed
    classes = {kind.__name__: kind for kind in EmbeddingsError.__subclasses__() if kind is not ImageError}
    return classes.get(str(name), EmbeddingsError)(str(problem), remedy=remedy)
