"""Franca ViT/14: recipe, key conversion and forward pass.

The published architecture is DINOv2's with SwiGLU feed-forward layers (github.com/valeoai/Franca); releases
hold {"teacher": {...}} whose keys may start with `module.` or `backbone.`, with blocks in chunks:
`blocks.<chunk>.<global index>.*`. `ModelSpec.native_width` says which size a model is.
The weights are for research only.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from embeddings_assets.encoders.families.vit14 import (
    BASE,
    backbone_blocks,
    backbone_class_token_parts,
    build_dinov2,
    size_of,
)
from embeddings_assets.encoders.family import CheckpointFiles, ClassTokenParts, NetworkSize
from embeddings_assets.encoders.recipe import IMAGENET_MEAN, IMAGENET_STD, Recipe
from embeddings_assets.encoders.weights.find import WeightsSource

if TYPE_CHECKING:
    import torch

RECIPE = Recipe(
    rgb_first=True,
    resize="shorter",
    resize_to=256,
    interpolation="bicubic",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
CHECKPOINT = CheckpointFiles(any_name=True)  # published under several names
LIBRARIES = ("transformers",)

_PREFIXES = re.compile(r"^(?:module\.|backbone\.)+")
_CHUNK = re.compile(r"^blocks\.\d+\.(\d+)\.")

# Names of one block in transformers, for those that are copied as they are.
_BLOCK_NAMES = {
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}
_OUTER_NAMES = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}


def shapes(size: NetworkSize = BASE) -> dict[str, tuple[int, ...]]:
    """The parameters under their published names without prefix and chunk: 175 in ViT-B."""
    width = size.width
    hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8  # of SwiGLU: franca's SwiGLUFFNFused
    linear = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.w12": (2 * hidden, width),
        "mlp.w3": (width, hidden),
    }
    found: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "mask_token": (1, width),
        "pos_embed": (1, 1370, width),
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in (f"blocks.{index}" for index in range(size.layers)):
        for name, shape in linear.items():
            found |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            found |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
        found |= {f"{block}.ls{index}.gamma": (width,) for index in (1, 2)}
    return found


def plain_name(key: str) -> str:
    """A published key without `module.`, `backbone.` and the chunk index."""
    return _CHUNK.sub(r"blocks.\1.", _PREFIXES.sub("", key))


def to_transformers(state: dict[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """Plain Franca parameters under the public names of a transformers DINOv2 with SwiGLU."""
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        block = re.match(r"blocks\.(\d+)\.(.+)$", name)
        if block is None:
            converted[_translate(name, _OUTER_NAMES)] = tensor
            continue
        layer, inner = f"encoder.layer.{block[1]}", block[2]
        if inner.startswith("attn.qkv."):
            end = inner.removeprefix("attn.qkv.")
            for part, values in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                converted[f"{layer}.attention.attention.{part}.{end}"] = values.clone()
        else:
            converted[f"{layer}.{_translate(inner, _BLOCK_NAMES)}"] = tensor
    return converted


def build(source: WeightsSource) -> "torch.nn.Module":
    """A float32 module from normalised pixels [n, 3, 224, 224] to native vectors [n, width].

    Raises:
        WeightsError: the checkpoint is not that of a Franca of this width.
        EmbeddingsError: the catalog states a width that no Franca has.
    """
    from embeddings_assets.encoders.weights.checkpoint import load_parameters

    size = size_of(source.model)
    return assemble(load_parameters(source, shapes(size), plain_name), size)


def assemble(parameters: dict[str, "torch.Tensor"], size: NetworkSize) -> "torch.nn.Module":
    """The network of these parameters."""
    return build_dinov2(to_transformers(parameters), size, swiglu=True)


def blocks(model: "torch.nn.Module") -> "Iterable[torch.nn.Module]":
    """The transformer blocks of a built model."""
    return backbone_blocks(model)


def class_token_parts(model: "torch.nn.Module") -> ClassTokenParts | None:
    """The last block of a built model."""
    return backbone_class_token_parts(model)


def _translate(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        if name == ours or name.startswith(f"{ours}."):
            return theirs + name[len(ours) :]
    return name
