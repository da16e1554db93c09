"""An encoder of a few microseconds, for tests of what surrounds encoders: engine, store, faces."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_SIDE = 16


def pixels(image: Image.Image) -> np.ndarray:
    """uint8 [16, 16, 3]; at the top of a module, so that it can be pickled."""
    return np.asarray(image.convert("RGB").resize((_SIDE, _SIDE)))


ODD_SIZE = (47, 36)


def pixels_or_crash(image: Image.Image) -> np.ndarray:
    """As a decoder with a bug: an image of ODD_SIZE ends the process."""
    if image.size == ODD_SIZE:
        os.kill(os.getpid(), signal.SIGSEGV)
    return pixels(image)


def pixels_or_bus_error(image: Image.Image) -> np.ndarray:
    """As where there is no memory left for the pixels of an image of ODD_SIZE."""
    if image.size == ODD_SIZE:
        os.kill(os.getpid(), signal.SIGBUS)
    return pixels(image)


class StubEncoder:
    """Projects 16 x 16 pixels with a fixed random matrix. Counts what it is asked for.

    As with a real encoder, the size of a batch shows in the last bits of its vectors.

    Args:
        kill_after: end the whole process with SIGKILL at this call of `encode`.
        seconds: how long each call takes.
        log: gets one byte for each image, as it is encoded.
        preprocessing: in place of `pixels`.
        most_images: memory is short for more at once.
    """

    def __init__(
        self,
        *,
        width: int = 512,
        precision: str = "exact",
        kill_after: int | None = None,
        seconds: float = 0.0,
        log: Path | None = None,
        preprocessing: Callable[[Image.Image], np.ndarray] | None = None,
        most_images: int | None = None,
    ) -> None:
        self.width = width
        self.precision = precision
        self.loads = 0
        self.encoded = 0
        self._calls = 0
        self._kill_after = kill_after
        self._seconds = seconds
        self._log = log
        self._preprocessing = preprocessing or pixels
        self._most_images = most_images
        self._matrix = np.random.default_rng(0).standard_normal((_SIDE * _SIDE * 3, width)).astype(np.float32)

    def footer(self) -> dict[str, Any]:
        return {
            "model": "CLIP",
            "checkpoint": "openai/ViT-B-32",
            "weights_sha256": "0" * 64,
            "trained": None,
            "recipe": {"size": _SIDE},
            "projection": None,
            "projection_sha256": None,
            "native_width": 512,
            "width": self.width,
            "normalised": True,
            "precision": self.precision,
            "compute_dtype": "float32",
            "libraries": {},
        }

    def to_pixels(self) -> Callable[[Image.Image], np.ndarray]:
        return self._preprocessing

    def on(self, device: str) -> "StubEncoder":
        return self

    def device(self) -> str:
        return "cpu"

    def device_memory(self) -> int:
        return 0

    def peak_device_bytes(self) -> int:
        return 0

    def load(self) -> "StubEncoder":
        self.loads += 1
        return self

    def submit(self, pixels: np.ndarray) -> Callable[[], np.ndarray]:
        return lambda: self.encode(pixels)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        self._calls += 1
        if self._calls == self._kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._most_images is not None and len(pixels) > self._most_images:
            raise MemoryError(f"{len(pixels)} images")
        time.sleep(self._seconds)
        if self._log is not None:
            with self._log.open("ab") as stream:
                stream.write(bytes(len(pixels)))
        self.encoded += len(pixels)
        vectors = pixels.reshape(len(pixels), -1).astype(np.float32) @ self._matrix
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors * np.float32(1 + len(pixels) % 16 * 2**-23)
