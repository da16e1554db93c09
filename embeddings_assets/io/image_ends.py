"""Whether an image file is all there, told from its structure, without decoding a pixel.

A file that ends too early opens like any other, because its header is at the front; these functions look at
the other end. JPEG: ITU-T T.81, annex B. PNG: W3C recommendation, section 5.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_JPEG_START_OF_SCAN, _JPEG_END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_PNG_SIGNATURE_LENGTH = 8
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
_INFLATED_AT_ONCE = 1 << 20  # bytes; a small chunk can hold a huge stream


class _Chunk(NamedTuple):
    """A PNG chunk as far as it is there: `body` may be cut off, `sound` says that its checksum holds."""

    kind: bytes
    body: bytes
    stop: int
    sound: bool


def surely_whole(data: bytes, file_format: str) -> bool:
    """Whether a file surely holds all of its image; where not, only decoding can tell.

    Args:
        file_format: Pillow's name of the format.
    """
    if file_format in ("JPEG", "MPO"):
        return _jpeg_is_closed(data)
    if file_format == "PNG":
        return _png_is_sound(data)
    return False


def mended_png(data: bytes) -> bytes | None:
    """A PNG whose image data is whole, with all that follows the data cut off; None if the data is not whole.

    Image data is whole if its compressed stream reaches its own end and checksum.
    """
    stream = zlib.decompressobj()
    for chunk in _png_chunks(data):
        if chunk.kind == b"IDAT":
            body = chunk.body
            try:
                while body and not stream.eof:
                    stream.decompress(body, _INFLATED_AT_ONCE)
                    body = stream.unconsumed_tail
            except zlib.error:
                return None
            if stream.eof:
                return data[: chunk.stop] + _PNG_END if chunk.sound else None
    return None


def _jpeg_is_closed(data: bytes) -> bool:
    """Whether the last scan is followed by the end mark; no marker but a restart occurs inside a scan."""
    if data.endswith(_JPEG_END_OF_IMAGE):
        return True
    return data.rfind(_JPEG_END_OF_IMAGE) > data.rfind(_JPEG_START_OF_SCAN)


def _png_is_sound(data: bytes) -> bool:
    for chunk in _png_chunks(data):
        if not chunk.sound:
            return False
        if chunk.kind == b"IEND":
            return True
    return False


def _png_chunks(data: bytes) -> Iterator[_Chunk]:
    start = _PNG_SIGNATURE_LENGTH
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        stop = start + 12 + length
        body = data[start + 8 : stop - 4]
        checksum = data[stop - 4 : stop]
        yield _Chunk(kind, body, stop, checksum == struct.pack(">I", zlib.crc32(kind + body)))
        start = stop
