"""DINOv2 (facebook/dinov2-small, -base and -large): recipe, parameters and forward pass.

`ModelSpec.native_width` says which size a model is. The variants with registers are other networks.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from embeddings_assets.encoders.families.vit14 import (
    BASE,
    architecture,
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

# dinov2/data/transforms.py: make_classification_eval_transform.
RECIPE = Recipe(
    rgb_first=True,
    resize="shorter",
    resize_to=256,
    interpolation="bicubic",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
)
CHECKPOINT = CheckpointFiles(
    companions={"model.safetensors": "config.json"}, hub_extras=("preprocessor_config.json",)
)
LIBRARIES = ("transformers",)


def shapes(size: NetworkSize = BASE) -> dict[str, tuple[int, ...]]:
    """The parameters under their public names: 223 in facebook/dinov2-base and -small, 439 in -large."""
    width = size.width
    linear = {
        "attention.attention.query": (width, width),
        "attention.attention.key": (width, width),
        "attention.attention.value": (width, width),
        "attention.output.dense": (width, width),
        "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }
    found: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 1370, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    for layer in (f"encoder.layer.{index}" for index in range(size.layers)):
        for name, shape in linear.items():
            found |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            found |= {f"{layer}.{name}.weight": (width,), f"{layer}.{name}.bias": (width,)}
        found |= {f"{layer}.layer_scale{index}.lambda1": (width,) for index in (1, 2)}
    return found


def build(source: WeightsSource) -> "torch.nn.Module":
    """A float32 module from normalised pixels [n, 3, 224, 224] to native vectors [n, width].

    Raises:
        WeightsError: the checkpoint is not that of a DINOv2 of this width.
        EmbeddingsError: the catalog states a width that no DINOv2 has.
    """
    from embeddings_assets.encoders.weights.checkpoint import check_config, load_parameters

    size = size_of(source.model)
    if source.folder is not None:
        expected = {**architecture(size), "model_type": "dinov2", "use_swiglu_ffn": False, "image_size": 518}
        check_config(source.folder / "config.json", expected)
    return assemble(load_parameters(source, shapes(size), lambda key: key), size)


def assemble(parameters: dict[str, "torch.Tensor"], size: NetworkSize) -> "torch.nn.Module":
    """The network of these parameters."""
    return build_dinov2(parameters, size, swiglu=False)


def blocks(model: "torch.nn.Module") -> "Iterable[torch.nn.Module]":
    """The transformer blocks of a built model."""
    return backbone_blocks(model)


def class_token_parts(model: "torch.nn.Module") -> ClassTokenParts | None:
    """The last block of a built model."""
    return backbone_class_token_parts(model)
