"""The other end of `inspection.py`: a process that looks at the image files it is asked about.

Speaks JSON lines: a list of paths in, a list of what was found out, or the error that prevents it. Ends when
its input does, so it cannot outlive the process that asks.
"""

import json
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from embeddings_assets.datasets.stamps import Stamp, stamp_of
from embeddings_assets.errors import EmbeddingsError, ImageError, Reason, packed_error, unpacked_error
from embeddings_assets.io.images import ImageFacts, inspect_header, inspect_image
from embeddings_assets.workers.process import READY


class Looked(NamedTuple):
    """What was found in a file, or why it cannot be used; and its stamp from before it was read."""

    found: ImageFacts | ImageError
    stamp: Stamp | None


def look(path: str, decode: bool) -> Looked:
    """Look at one file (see `inspect_image`).

    Raises:
        EmbeddingsError: the machine cannot read it now.
    """
    stamp = stamp_of(path)
    try:
        return Looked(inspect_image(path, decode=decode), stamp)
    except ImageError as error:
        return Looked(error, stamp)


def glance(path: str) -> Looked | None:
    """Look at one file as far as no decoder is needed; None if one is (see `inspect_header`).

    Raises:
        EmbeddingsError: the machine cannot read it now.
    """
    stamp = stamp_of(path)
    try:
        facts = inspect_header(path)
    except ImageError as error:
        return Looked(error, stamp)
    return None if facts is None else Looked(facts, stamp)


def serve(requests: IO[str], replies: IO[str], *, decode: bool) -> None:
    """Answer every line of `requests` with one line."""
    replies.write(f"{READY}\n")
    replies.flush()
    for line in requests:
        replies.write(json.dumps(_reply(json.loads(line), decode)) + "\n")
        replies.flush()


def _reply(paths: list[str], decode: bool) -> list[tuple[Any, ...]] | dict[str, Any]:
    try:
        return [_packed(look(path, decode)) for path in paths]
    except EmbeddingsError as error:
        return {"error": packed_error(error)}


def unpacked(reply: list[list[Any]] | dict[str, Any]) -> Iterator[Looked]:
    """What a line of `serve` says.

    Raises:
        EmbeddingsError: the machine cannot read a file now.
    """
    if isinstance(reply, dict):
        raise unpacked_error(reply["error"])
    for stamp, *values in reply:
        found = ImageFacts(*values) if len(values) > 2 else ImageError(Reason(values[0]), values[1])
        yield Looked(found, stamp and Stamp(*stamp))


def _packed(looked: Looked) -> tuple[Any, ...]:
    found = looked.found
    if isinstance(found, ImageError):
        return looked.stamp, found.reason.value, found.detail
    return looked.stamp, found.sha256, found.bytes, found.width, found.height, found.format, found.mode
