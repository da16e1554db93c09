"""The other end of `decoding.py`: a process that turns image files into pixels in shared memory.

A request names the files and how to make pixels of them; the pixels of those that could be used lie one
after the other in the memory, from PIXELS_AT on, and the answer names the others. At the beginning of the
memory stands which of the files is in hand, for the case that no answer comes. Answers are JSON, never
pickles: what decodes untrusted files is not trusted either.
"""

import base64
import functools
import json
import mmap
import os
import pickle
import struct
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from embeddings_assets.errors import EmbeddingsError, ImageError, packed_error
from embeddings_assets.io.images import decode_image, enough_memory
from embeddings_assets.store.manifest import Crop
from embeddings_assets.workers.process import READY

ToPixels = Callable[[Image.Image], np.ndarray]
"""An image to uint8 [size, size, 3]; can be pickled."""

MEMORY_BYTES = 256 * 2**20  # of addresses; only pages that are written take memory
PIXELS_AT = 64
MOST_IMAGES = 16  # of a request: enough to make its own cost small, few enough to spread a batch over workers

_NICE = 10
_IN_HAND = struct.Struct("<i")
_NONE = -1


def packed(to_pixels: ToPixels) -> str:
    """A way to make pixels, as a request names it."""
    return base64.b64encode(pickle.dumps(to_pixels)).decode("ascii")


def decode(path: Path, sha256: str, crop: Crop | None, to_pixels: ToPixels) -> np.ndarray:
    """The pixels of one file, uint8 [size, size, 3].

    Raises:
        ImageError: it cannot be used.
        EmbeddingsError: the machine cannot read it now.
    """
    with enough_memory(path), decode_image(path, sha256=sha256) as image:
        return to_pixels(image if crop is None else image.crop(crop))


def set_in_hand(memory: mmap.mmap, index: int | None) -> None:
    """Note in the shared memory which file of the request is in hand."""
    _IN_HAND.pack_into(memory, 0, _NONE if index is None else index)


def in_hand(memory: mmap.mmap) -> int | None:
    """Which file of the request is in hand; None before the first."""
    (index,) = _IN_HAND.unpack_from(memory)
    return None if index == _NONE else int(index)


def serve(requests: IO[str], answers: IO[str], handle: int) -> None:
    """Answer every line of `requests` with one line, and with pixels in the memory behind `handle`."""
    # Where cores are few the forward pass goes first: its threads wait for each other, and for the slowest.
    os.nice(_NICE)
    with mmap.mmap(handle, MEMORY_BYTES) as memory:
        answers.write(f"{READY}\n")
        answers.flush()
        for line in requests:
            answers.write(json.dumps(_answer(json.loads(line), memory)) + "\n")
            answers.flush()


def _answer(request: dict[str, Any], memory: mmap.mmap) -> dict[str, Any]:
    to_pixels = _unpacked(request["to_pixels"])
    failed: list[tuple[int, str, str]] = []
    shape: list[int] = []
    end = PIXELS_AT
    for index, (path, sha256, crop) in enumerate(request["files"]):
        set_in_hand(memory, index)
        try:
            pixels = decode(Path(path), sha256, None if crop is None else tuple(crop), to_pixels)
            begin, end = end, end + pixels.nbytes
            memory[begin:end] = pixels.tobytes()
            shape = list(pixels.shape)
        except ImageError as error:
            failed.append((index, error.reason.value, error.detail))
        except EmbeddingsError as error:
            return {"error": packed_error(error)}
        except Exception:  # noqa: BLE001 - raised again by the process that asked, which names the file
            return {"broken": traceback.format_exc(), "path": path}
    return {"shape": shape, "failed": failed}


@functools.lru_cache(maxsize=8)
def _unpacked(text: str) -> ToPixels:
    # From the process that started this one, and from nowhere else.
    made: ToPixels = pickle.loads(base64.b64decode(text))
    return made
