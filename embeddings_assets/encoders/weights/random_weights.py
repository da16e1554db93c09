"""Seeded untrained parameters at full architecture, for demonstrations and tests.

Independent of the libraries' own initialisation, and drawn under the checkpoints' public names, so that the
values depend on neither library version. Scales are chosen so that different images get clearly different
vectors: strong patch embeddings, weak position and class tokens, attention sharp enough to pick patches.
Any change of the values must raise `find.RANDOM_VERSION`.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TOKENS = ("class_embedding", "cls_token", "mask_token", "pos", "probe")
_SCALES = ("gamma", "lambda1")
_QUERY_KEY_VALUE = ("qkv", "in_proj", "q_proj", "k_proj", "query", "key")


def random_parameters(
    shapes: Mapping[str, tuple[int, ...]], *, model: str, seed: int
) -> dict[str, "torch.Tensor"]:
    """float32 tensors of these shapes, drawn in sorted name order from one generator per model and seed."""
    import torch

    declared = hashlib.sha256(f"{model} {seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(declared[:8], "big", signed=True))
    drawn = {}
    for name in sorted(shapes):
        shape = shapes[name]
        mean, std = moments(name, shape)
        drawn[name] = (
            torch.randn(shape, generator=generator).mul_(std).add_(mean) if std else torch.full(shape, mean)
        )
    return drawn


def moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of one parameter."""
    leaf = name.lower()
    if any(scale in leaf for scale in _SCALES):
        return 0.5, 0.0
    if any(token in leaf for token in _TOKENS):
        return 0.0, 0.2
    if leaf.endswith("bias"):
        return 0.0, 0.02
    if len(shape) == 1:
        return 1.0, 0.0
    if len(shape) == 4:
        return 0.0, 4.0 / math.sqrt(math.prod(shape[1:]))
    fan_in = shape[0] if leaf.endswith("proj") else shape[1]
    gain = 2.0 if any(part in leaf for part in _QUERY_KEY_VALUE) else 1.5
    return 0.0, gain / math.sqrt(fan_in)
