"""How many images go through the encoder at once, and what happens where memory is short."""

import logging

import numpy as np

from embeddings_assets.errors import EmbeddingsError
from embeddings_assets.extraction.memory import host_memory
from embeddings_assets.extraction.source import Encoder, EncoderSource, Vectors

log = logging.getLogger(__name__)

CPU_BATCH = 32
GPU_BATCH = 256

# What a ViT-B at 224 pixels takes per image in float32, rounded up: 257 tokens, 768 wide, 3072 inside.
_BYTES_PER_IMAGE = 24 * 2**20
_SHARE_OF_MEMORY = 0.25


def choose_batch_size(source: EncoderSource) -> int:
    """A power of two that fits a quarter of the device's memory.

    It goes by how much memory there is, not by how much is free: the same machine forms the same batches
    again, and the size of a batch shows in the last bit of a vector.
    """
    gpu = source.device_memory()
    fits = int((gpu or host_memory()) * _SHARE_OF_MEMORY / _BYTES_PER_IMAGE)
    most = GPU_BATCH if gpu else CPU_BATCH
    return min(most, 2 ** max(0, fits.bit_length() - 1))


class Batcher:
    """Hands batches to an encoder; cuts them where memory is short, and goes on.

    Attributes:
        size: the largest batch that is encoded in one piece.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def submit(self, encoder: Encoder, pixels: np.ndarray) -> Vectors:
        """Begin with a batch; what is returned gives its vectors.

        Raises:
            EmbeddingsError: memory is short for a single image.
        """
        if len(pixels) > self.size:
            return lambda: self._in_pieces(encoder, pixels)
        try:
            begun = encoder.submit(pixels)
        except MemoryError as error:
            self._halve(len(pixels), error)
            return lambda: self._in_pieces(encoder, pixels)
        return lambda: self._finished(encoder, pixels, begun)

    def _finished(self, encoder: Encoder, pixels: np.ndarray, begun: Vectors) -> np.ndarray:
        try:
            return begun()
        except MemoryError as error:
            self._halve(len(pixels), error)
        return self._in_pieces(encoder, pixels)

    def _in_pieces(self, encoder: Encoder, pixels: np.ndarray) -> np.ndarray:
        pieces = [pixels[first : first + self.size] for first in range(0, len(pixels), self.size)]
        return np.concatenate([self.submit(encoder, piece)() for piece in pieces])

    def _halve(self, images: int, error: MemoryError) -> None:
        if images == 1:
            raise EmbeddingsError(
                f"There is not enough memory for a single image ({error}).",
                remedy="free memory on the device, or use another: --device cpu",
            ) from error
        if images // 2 < self.size:  # else a batch that was on its way when the one before it failed
            self.size = images // 2
            log.warning("memory is short for %d images at once; going on with %d", images, self.size)
