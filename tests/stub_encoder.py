"""An encoder of a few microseconds, for tests of what surrounds encoders: engine, store, faces."""

from typing import Any

import numpy as np
from PIL import Image

_SIDE = 16


class StubEncoder:
    """Projects 16 x 16 pixels with a fixed random matrix. Counts what it is asked for.

    Args:
        kill_after: end the whole process with SIGKILL at this call of `encode`.
    """

    def __init__(self, *, width: int = 512, precision: str = "exact", kill_after: int | None = None) -> None:
        self.width = width
        self.precision = precision
        self.loads = 0
        self.encoded = 0
        self._calls = 0
        self._kill_after = kill_after
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

    def pixels(self, image: Image.Image) -> np.ndarray:
        return np.asarray(image.convert("RGB").resize((_SIDE, _SIDE)))

    def device(self) -> str:
        return "cpu"

    def load(self) -> "StubEncoder":
        self.loads += 1
        return self

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        import os
        import signal

        self._calls += 1
        if self._calls == self._kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        self.encoded += len(pixels)
        vectors = pixels.reshape(len(pixels), -1).astype(np.float32) @ self._matrix
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
