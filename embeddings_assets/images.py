"""Reading one image file from disk: bytes, header, pixels, and a ledger reason when it cannot be used.

Used both when a dataset is prepared (header only) and when it is embedded (pixels). Files are untrusted:
Pillow's limit against decompression bombs stays in force, and every failure becomes an `ImageError`.
"""

import hashlib
import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from embeddings_assets.errors import ImageError, Reason

# What Pillow's decoders raise on damaged files, beyond UnidentifiedImageError and OSError.
_DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

# First bytes of the formats the datasets use: such a file is a damaged image, not some other kind of file.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)

# Odd EXIF and colour blocks: Pillow warns, the pixels are fine. Set once, because the warning filters belong
# to the whole process and files are opened on many threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True)
class ImageFacts:
    """What a manifest records of a file. `format` is sniffed from the content, not from the name."""

    sha256: str
    bytes: int
    width: int
    height: int
    format: str
    mode: str


def read_bytes(path: Path) -> bytes:
    """The content of an image file.

    Raises:
        ImageError: `missing`, `unreadable` or `empty`.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ImageError(Reason.MISSING, "no such file") from None
    except OSError as error:
        raise ImageError(Reason.UNREADABLE, error.strerror or str(error)) from error
    if not data:
        raise ImageError(Reason.EMPTY, "0 bytes")
    return data


def inspect_image(path: Path) -> ImageFacts:
    """Hash a file and read its header; pixels are not decoded.

    Raises:
        ImageError: the file cannot be read, or is no image.
    """
    data = read_bytes(path)
    with _open(data) as image:
        width, height = image.size
        return ImageFacts(
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
            width=width,
            height=height,
            format=image.format or "",
            mode=image.mode,
        )


def decode_image(path: Path, *, sha256: str | None = None) -> Image.Image:
    """Decode a file to pixels in its own mode (first frame of an animation; EXIF orientation not applied).

    Args:
        sha256: if given, the content must have this digest.

    Raises:
        ImageError: the file cannot be read, has another digest, or does not decode.
    """
    data = read_bytes(path)
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ImageError(Reason.CHANGED, "content differs from the manifest's sha256")
    image = _open(data)
    try:
        image.load()
    except OSError as error:
        reason = Reason.TRUNCATED if "truncated" in str(error).lower() else Reason.CORRUPT
        raise ImageError(reason, _one_line(error)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.OVERSIZED, _one_line(error)) from error
    except _DECODER_ERRORS as error:
        raise ImageError(Reason.CORRUPT, _one_line(error)) from error
    return image


def _open(data: bytes) -> Image.Image:
    # Pillow loads its rarer formats on first need; a thread that meets it half loaded takes such a file
    # for no image. Both calls return at once when everything is loaded.
    Image.preinit()
    Image.init()
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ImageError(*_describe(data)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.OVERSIZED, _one_line(error)) from error
    except OSError as error:
        reason = Reason.TRUNCATED if "truncated" in str(error).lower() else Reason.CORRUPT
        raise ImageError(reason, _one_line(error)) from error
    except _DECODER_ERRORS as error:
        oversized = "too large" in str(error)
        raise ImageError(Reason.OVERSIZED if oversized else Reason.CORRUPT, _one_line(error)) from error


def _describe(data: bytes) -> tuple[Reason, str]:
    """Why Pillow identifies no format in these bytes."""
    head = data[:512].lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return Reason.NOT_AN_IMAGE, "a git-LFS pointer, not the image itself (git lfs pull)"
    if head.startswith((b"<!doctype html", b"<html")):
        return Reason.NOT_AN_IMAGE, "an HTML page"
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return Reason.CORRUPT, f"starts as {name}, but its header cannot be read"
    return Reason.NOT_AN_IMAGE, f"no image format known to Pillow (starts with {data[:8]!r})"


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
