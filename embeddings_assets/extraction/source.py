"""What the engine asks of an encoder."""

from typing import Any, Protocol

import numpy as np
from PIL import Image


class Encoder(Protocol):
    """A loaded model."""

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3] to float32 [n, width], rows of unit norm."""
        ...


class EncoderSource(Protocol):
    """An encoder that need not be loaded yet."""

    def footer(self) -> dict[str, Any]:
        """What an embedding file's footer says about the encoder; loads nothing."""
        ...

    def pixels(self, image: Image.Image) -> np.ndarray:
        """An image as the model's input, uint8 [size, size, 3]; called from many threads."""
        ...

    def device(self) -> str:
        """Where the encoder runs: `cpu`, `cuda` or `cuda:N`."""
        ...

    def load(self) -> Encoder:
        """The encoder with its weights in memory."""
        ...
