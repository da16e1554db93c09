"""What the engine asks of an encoder."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from embeddings_assets.extraction.worker import ToPixels

Vectors = Callable[[], np.ndarray]
"""Waits for the vectors of a batch: float32 [n, width], rows of unit norm. May raise MemoryError."""


class Encoder(Protocol):
    """A loaded model."""

    def submit(self, pixels: np.ndarray) -> Vectors:
        """Begin with a batch, uint8 [n, size, size, 3], where the device works beside this process.

        Raises:
            MemoryError: the device has too little memory for so many images.
        """
        ...

    def peak_device_bytes(self) -> int:
        """The most memory of the device that was in use; 0 where that is the host's."""
        ...


class EncoderSource(Protocol):
    """An encoder that need not be loaded yet."""

    def footer(self) -> dict[str, Any]:
        """What an embedding file's footer says about the encoder; loads nothing."""
        ...

    def to_pixels(self) -> ToPixels:
        """What makes the model's input of an image: uint8 [size, size, 3]. Can be pickled."""
        ...

    def on(self, device: str) -> "EncoderSource":
        """The same encoder for another device; can be pickled."""
        ...

    def device(self) -> str:
        """Where the encoder runs: `cpu`, `cuda` or `cuda:N`."""
        ...

    def device_memory(self) -> int:
        """Memory of a GPU in bytes; 0 for a CPU."""
        ...

    def load(self) -> Encoder:
        """The encoder with its weights in memory."""
        ...
