"""SigLIP 2 base, patch 16, 224 pixels: recipe, parameters and forward pass of the vision tower.

The published model is `model_type: "siglip"` in transformers, with the tanh approximation of GELU. The text
tower (three quarters of the file) is never read.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from embeddings_assets.encoders.family import CheckpointFiles, NetworkSize
from embeddings_assets.encoders.recipe import Recipe
from embeddings_assets.encoders.weights.find import WeightsSource

if TYPE_CHECKING:
    import torch

# preprocessor_config.json of google/siglip2-base-patch16-224.
RECIPE = Recipe(
    rgb_first=True,
    resize="squash",
    resize_to=224,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    resize_order="horizontal first",
)
CHECKPOINT = CheckpointFiles(
    companions={"model.safetensors": "config.json"}, hub_extras=("preprocessor_config.json",)
)
LIBRARIES = ("transformers",)

BASE = NetworkSize(width=768, layers=12, heads=12, output=768)


def architecture(size: NetworkSize = BASE) -> dict[str, Any]:
    """transformers' configuration of a vision tower of this size."""
    return {
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    }


def shapes(size: NetworkSize = BASE) -> dict[str, tuple[int, ...]]:
    """The parameters of the vision tower under their public names: 208 in the base model."""
    width = size.width
    attention = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    mlp = {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    found: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 16, 16),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "vision_model.embeddings.position_embedding.weight": (196, width),
        "vision_model.head.probe": (1, 1, width),
        "vision_model.head.attention.in_proj_weight": (3 * width, width),
        "vision_model.head.attention.in_proj_bias": (3 * width,),
    }
    head = {"head.attention.out_proj": (width, width)}
    linear = {f"head.{name}": shape for name, shape in mlp.items()} | head
    norms = ["post_layernorm", "head.layernorm"]
    for index in range(size.layers):
        layer = f"encoder.layers.{index}"
        linear |= {f"{layer}.{name}": shape for name, shape in (attention | mlp).items()}
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
    for name, shape in linear.items():
        found |= {f"vision_model.{name}.weight": shape, f"vision_model.{name}.bias": shape[:1]}
    for name in norms:
        found |= {f"vision_model.{name}.weight": (width,), f"vision_model.{name}.bias": (width,)}
    return found


def build(source: WeightsSource) -> "torch.nn.Module":
    """A float32 module from normalised pixels [n, 3, 224, 224] to pooled vectors [n, 768].

    Raises:
        WeightsError: the checkpoint is not that of google/siglip2-base-patch16-224.
    """
    from embeddings_assets.encoders.weights.checkpoint import check_config, load_parameters

    if source.folder is not None:
        stated = {f"vision_config.{key}": value for key, value in architecture().items()}
        check_config(source.folder / "config.json", {"model_type": "siglip", **stated})
    return assemble(load_parameters(source, shapes(), _vision_name), BASE)


def assemble(parameters: dict[str, "torch.Tensor"], size: NetworkSize) -> "torch.nn.Module":
    """The vision tower of these parameters."""
    import torch

    from embeddings_assets.encoders.families.vit14 import require_complete
    from embeddings_assets.encoders.quiet import quiet_transformers

    with quiet_transformers():
        from transformers import SiglipVisionConfig, SiglipVisionModel

        tower, report = SiglipVisionModel.from_pretrained(
            None,
            config=SiglipVisionConfig(**architecture(size)),
            state_dict=parameters,
            output_loading_info=True,
            dtype=torch.float32,
        )
    require_complete(report, "SiglipVisionModel")

    class Pooled(torch.nn.Module):
        def __init__(self, tower: torch.nn.Module) -> None:
            super().__init__()
            self.tower = tower

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = self.tower(pixel_values=pixels).pooler_output
            return pooled

    # Handed over: what a class made here closed over would live until the garbage is collected.
    return Pooled(tower).eval()


def blocks(model: "torch.nn.Module") -> "Iterable[torch.nn.Module]":
    """The transformer blocks of a built model; the pooling head is none of them."""
    tower: Any = model.tower
    found: Iterable[torch.nn.Module] = getattr(tower, "vision_model", tower).encoder.layers
    return found


def class_token_parts(model: "torch.nn.Module") -> None:
    """None: the pooling head reads every token."""


def _vision_name(key: str) -> str | None:
    known_elsewhere = key.startswith("text_model.") or key in ("logit_scale", "logit_bias")
    return None if known_elsewhere else key
