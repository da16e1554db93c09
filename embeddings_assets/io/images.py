"""Reading one image file from disk: bytes, header, pixels, and a ledger reason when it cannot be used.

Used both when a dataset is prepared (header, and whether the file is whole) and when it is embedded (pixels).
Files are untrusted: their size and Pillow's limit against decompression bombs are held, and whatever is wrong
with a file becomes an `ImageError`. What is wrong with the machine, which would blame a sound file for good,
is another `EmbeddingsError`.
"""

import contextlib
import errno
import hashlib
import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from embeddings_assets.errors import EmbeddingsError, ImageError, Reason
from embeddings_assets.io.image_ends import mended_png, surely_whole

# Far above any photograph of the datasets; what is larger is not read into memory.
MOST_BYTES = 256 * 2**20

_READ_AT_ONCE = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC  # opening a pipe does not wait for a writer

# What the operating system says of a file itself. Anything else (no more handles, a disk or network that
# fails) is no property of the file.
_OF_THE_FILE = frozenset(
    (
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.EOPNOTSUPP,
    )
)

# What Pillow's decoders raise on damaged files, beyond UnidentifiedImageError and OSError.
_DECODER_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SyntaxError,
    SystemError,
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

_COMMON = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # the formats that Pillow always loads first

# Odd EXIF and colour blocks: Pillow warns, the pixels are fine. Set once, because the warning filters belong
# to the whole process and files are opened on many threads.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Large images: those above the limit become an error here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What a manifest records of a file. `format` is sniffed from the content, not from the name."""

    sha256: str
    bytes: int
    width: int
    height: int
    format: str
    mode: str


def read_bytes(path: str | Path, sha256: str | None = None) -> bytes:
    """The content of an image file.

    Args:
        sha256: if given, the content must have this digest.

    Raises:
        ImageError: `missing`, `unreadable`, `empty`, `oversized`: more than `MOST_BYTES`, or `changed`.
        EmbeddingsError: the machine cannot read it now.
    """
    try:
        handle = os.open(path, _READ_AT_ONCE)
        try:
            data = _read_whole(handle)
        finally:
            os.close(handle)
    except FileNotFoundError:
        raise ImageError(Reason.MISSING, "no such file") from None
    except OSError as error:
        if error.errno in _OF_THE_FILE:
            raise ImageError(Reason.UNREADABLE, error.strerror or str(error)) from error
        raise EmbeddingsError(
            f"{path}: cannot be read now ({error.strerror or error}).",
            remedy="mend that (a limit on open files, a disk or network that fails); then run again. "
            "If this one file can never be read, remove it and run `embeddings-assets prepare`",
        ) from error
    if not data:
        raise ImageError(Reason.EMPTY, "0 bytes")
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise ImageError(Reason.CHANGED, "content differs from the manifest's sha256")
    return data


def _read_whole(handle: int) -> bytes:
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(Reason.UNREADABLE, "not a regular file")
    size = status.st_size
    if size > MOST_BYTES:
        raise ImageError(Reason.OVERSIZED, f"{size:,} bytes; at most {MOST_BYTES:,} are read")
    data = os.read(handle, size)
    while len(data) < size and (more := os.read(handle, size - len(data))):
        data += more
    return data


def inspect_image(path: str | Path, *, decode: bool = False) -> ImageFacts:
    """Hash a file, read its header, and make sure that it does not end too early.

    Pixels are decoded only where the structure of the file leaves doubt.

    Args:
        decode: decode every file, which finds damage inside it too.

    Raises:
        ImageError: the file cannot be read, is no image, or is not whole.
        EmbeddingsError: the machine cannot read it now.
    """
    with enough_memory(path):
        return _inspect(read_bytes(path), decode=decode)


def inspect_header(path: str | Path) -> ImageFacts | None:
    """As `inspect_image`, by Python code alone, which no file can crash; None where that is not enough.

    It is enough for a JPEG or PNG whose structure leaves no doubt.

    Raises:
        ImageError: the file cannot be read or its header is damaged.
        EmbeddingsError: the machine cannot read it now.
    """
    with enough_memory(path):
        data = read_bytes(path)
        if not data.startswith(_COMMON):
            return None
        with _open(data) as image:
            facts = _facts(image, data)
        return facts if surely_whole(data, facts.format) else None


def _inspect(data: bytes, *, decode: bool) -> ImageFacts:
    with _open(data) as image:
        facts = _facts(image, data)
        if decode or not surely_whole(data, facts.format):
            _load(image, data).close()
    return facts


def _facts(image: Image.Image, data: bytes) -> ImageFacts:
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
        EmbeddingsError: the machine cannot read it now.
    """
    with enough_memory(path):
        data = read_bytes(path, sha256)
        return _load(_open(data), data)


@contextlib.contextmanager
def enough_memory(path: str | Path) -> Iterator[None]:
    """Where memory runs out over a file, an `EmbeddingsError` that names it."""
    try:
        yield
    except MemoryError as error:
        raise EmbeddingsError(
            f"{path}: there was not enough memory to read it.",
            remedy="free memory or use fewer --workers; then run the same command again. If this one file "
            "always needs too much, it is damaged: remove it and run `embeddings-assets prepare`",
        ) from error


def _load(image: Image.Image, data: bytes) -> Image.Image:
    """Decode an opened image; a PNG that is damaged only behind its pixels counts as whole."""
    try:
        _decode(image)
    except ImageError:
        mended = mended_png(data) if image.format == "PNG" else None
        if mended is None:
            raise
        image = _open(mended)
        _decode(image)
    return image


def _decode(image: Image.Image) -> None:
    try:
        image.load()
    except OSError as error:
        raise _decoder_error(error) from error
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.OVERSIZED, _one_line(error)) from error
    except _DECODER_ERRORS as error:
        raise ImageError(Reason.CORRUPT, _one_line(error)) from error


def _open(data: bytes) -> Image.Image:
    # Pillow loads its rarer formats on first need, in 0.1 s; a thread that meets it half loaded takes
    # such a file for no image. Both calls return at once when everything is loaded.
    Image.preinit()
    if not data.startswith(_COMMON):
        Image.init()
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ImageError(*_describe(data)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(Reason.OVERSIZED, _one_line(error)) from error
    except OSError as error:
        raise _decoder_error(error) from error
    except _DECODER_ERRORS as error:
        oversized = "too large" in str(error)
        raise ImageError(Reason.OVERSIZED if oversized else Reason.CORRUPT, _one_line(error)) from error
    most = Image.MAX_IMAGE_PIXELS  # Pillow itself only warns, up to twice as many
    if most is not None and image.width * image.height > most:
        image.close()
        raise ImageError(
            Reason.OVERSIZED, f"{image.width} x {image.height} pixels; at most {most:,} are decoded"
        )
    return image


def _decoder_error(error: OSError) -> Exception:
    text = str(error).lower()
    if "out of memory" in text:  # Pillow's status -9
        return MemoryError(_one_line(error))
    return ImageError(Reason.TRUNCATED if "truncated" in text else Reason.CORRUPT, _one_line(error))


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
