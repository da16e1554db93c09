"""DINOv2 ViT-B/14 (facebook/dinov2-base): recipe, parameters and forward pass."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from embeddings_assets.encoders.recipe import IMAGENET_MEAN, IMAGENET_STD, Recipe
from embeddings_assets.encoders.weights import WeightsSource

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


def shapes() -> dict[str, tuple[int, ...]]:
    """The 223 parameters of facebook/dinov2-base under their public names."""
    linear = {
        "attention.attention.query": (768, 768),
        "attention.attention.key": (768, 768),
        "attention.attention.value": (768, 768),
        "attention.output.dense": (768, 768),
        "mlp.fc1": (3072, 768),
        "mlp.fc2": (768, 3072),
    }
    found: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, 768),
        "embeddings.mask_token": (1, 768),
        "embeddings.position_embeddings": (1, 1370, 768),
        "embeddings.patch_embeddings.projection.weight": (768, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (768,),
        "layernorm.weight": (768,),
        "layernorm.bias": (768,),
    }
    for layer in (f"encoder.layer.{index}" for index in range(12)):
        for name, shape in linear.items():
            found |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            found |= {f"{layer}.{name}.weight": (768,), f"{layer}.{name}.bias": (768,)}
        found |= {f"{layer}.layer_scale{index}.lambda1": (768,) for index in (1, 2)}
    return found


def build(source: WeightsSource) -> "torch.nn.Module":
    """A float32 module from normalised pixels [n, 3, 224, 224] to native vectors [n, 768].

    Raises:
        WeightsError: the checkpoint is not that of facebook/dinov2-base.
    """
    from embeddings_assets.encoders.checkpoint import check_config, load_parameters
    from embeddings_assets.encoders.vit14 import ARCHITECTURE, build_dinov2

    if source.folder is not None:
        expected = {**ARCHITECTURE, "model_type": "dinov2", "use_swiglu_ffn": False, "image_size": 518}
        check_config(source.folder / "config.json", expected)
    return build_dinov2(load_parameters(source, shapes(), lambda key: key), swiglu=False)


def blocks(model: "torch.nn.Module") -> "Iterable[torch.nn.Module]":
    """The transformer blocks of a built model."""
    from embeddings_assets.encoders.vit14 import backbone_blocks

    return backbone_blocks(model)
