"""What the machine allows, in images per second: the forward pass alone, and the decoding alone.

Used by `engine.py`; nothing here is run by itself.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from embeddings_assets.encoders.encoder import Encoder, ieee_float32
from embeddings_assets.extraction.decoding import Decoders, ImageTask
from embeddings_assets.extraction.worker import ToPixels
from embeddings_assets.workers.process import default_workers

WARM_UP = 8  # images for each decoding process


def forward_rate(encoder: Encoder, pixels: np.ndarray, seconds: float) -> float:
    """The forward pass on one batch again and again.

    On a GPU the normalised pixels lie on the device, and it is waited for once, at the end.
    """
    if encoder.device.startswith("cuda"):
        module = encoder._model
        assert module is not None
        with torch.inference_mode(), ieee_float32(), torch.cuda.device(encoder.device):
            batch = encoder.normalised_pixels(pixels)
            return queued_rate(module, batch, seconds, torch.cuda.synchronize)
    encoder.encode(pixels)
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        encoder.encode(pixels)
        done += len(pixels)
    return done / (time.perf_counter() - started)


def queued_rate(
    module: torch.nn.Module, batch: torch.Tensor, seconds: float, synchronise: Callable[[], None]
) -> float:
    """As many passes as fill about `seconds`, queued one after the other and waited for together."""

    def timed(passes: int) -> float:
        synchronise()
        started = time.perf_counter()
        for _ in range(passes):
            module(batch)
        synchronise()
        return time.perf_counter() - started

    timed(1)  # kernels are chosen and memory is reserved
    passes = max(1, round(seconds / timed(1)))
    return passes * len(batch) / timed(passes)


def decode_rate(
    decoders: Decoders, to_pixels: ToPixels, tasks: Sequence[ImageTask], batch_size: int, seconds: float
) -> float:
    """The decoding processes with nobody to wait for; their start is not counted."""
    workers = default_workers(16)
    warm = [(0, [tasks[n % len(tasks)] for n in range(WARM_UP * workers)])]
    for _ in decoders.batches(warm, to_pixels, workers):
        pass
    started = time.perf_counter()

    def batches() -> Iterator[tuple[int, list[ImageTask]]]:
        while True:
            for first in range(0, len(tasks), batch_size):
                yield 0, list(tasks[first : first + batch_size])
                if time.perf_counter() - started > seconds:
                    return

    done = sum(len(batch.positions) for batch in decoders.batches(batches(), to_pixels, workers))
    return done / (time.perf_counter() - started)
