"""The ViT-S/14, -B/14 and -L/14 of DINOv2 and Franca on transformers' `Dinov2Model`, exact at 224 pixels.

The published code interpolates the 37 x 37 position table by a scale factor of (16 + 0.1) / 37, bicubic
(dinov2/models/vision_transformer.py: interpolate_offset=0.1, interpolate_antialias=False). transformers
interpolates to a size of 16 x 16 without the offset, which moves an embedding by up to 1.5e-3. Here the
table is computed once, as published, for a model of 224 pixels, which transformers leaves alone.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from embeddings_assets.catalog import get_model
from embeddings_assets.encoders.family import ClassTokenParts, NetworkSize
from embeddings_assets.encoders.quiet import quiet_transformers
from embeddings_assets.errors import EmbeddingsError, WeightsError

if TYPE_CHECKING:
    import torch

TABLE_SIDE = 37  # 518 / 14, the grid of the published position tables
GRID_SIDE = 16  # 224 / 14
INTERPOLATE_OFFSET = 0.1

HEAD_WIDTH = 64

# By width: dinov2/models/vision_transformer.py, vit_small, vit_base and vit_large.
SIZES = {
    width: NetworkSize(width=width, layers=layers, heads=width // HEAD_WIDTH, output=width)
    for width, layers in ((384, 12), (768, 12), (1024, 24))
}
BASE = SIZES[768]


def size_of(model: str) -> NetworkSize:
    """The size of a catalog model's network, whose width its row states.

    Raises:
        EmbeddingsError: there is no such size.
    """
    width = get_model(model).native_width
    if width not in SIZES:
        raise EmbeddingsError(
            f"{model}: native_width is {width}; a ViT/14 is one of {', '.join(map(str, SIZES))} wide.",
            remedy="correct the model's row in catalog.py, or give the model a family of its own",
        )
    return SIZES[width]


def architecture(size: NetworkSize) -> dict[str, Any]:
    """transformers' configuration of a network of this size."""
    return {
        "hidden_size": size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "mlp_ratio": 4,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,  # vision_transformer.py: partial(nn.LayerNorm, eps=1e-6)
        "qkv_bias": True,
    }


def interpolate_positions(table: "torch.Tensor", offset: float = INTERPOLATE_OFFSET) -> "torch.Tensor":
    """The published position table [1, 1 + 37 * 37, d] brought to 224 pixels: float32 [1, 1 + 16 * 16, d]."""
    import torch

    cls, patches = table[:, :1].float(), table[:, 1:].float()
    grid = patches.reshape(1, TABLE_SIDE, TABLE_SIDE, -1).permute(0, 3, 1, 2)
    scale = (GRID_SIDE + offset) / TABLE_SIDE
    grid = torch.nn.functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([cls, grid.permute(0, 2, 3, 1).reshape(1, GRID_SIDE * GRID_SIDE, -1)], dim=1)


def build_dinov2(state: dict[str, "torch.Tensor"], size: NetworkSize, *, swiglu: bool) -> "torch.nn.Module":
    """A float32 module from normalised pixels [n, 3, 224, 224] to the class token [n, width], normed.

    Args:
        state: parameters under transformers' public names, with the published 37 x 37 position table.
    """
    import torch

    table = interpolate_positions(state["embeddings.position_embeddings"])
    with quiet_transformers():
        from transformers import Dinov2Config, Dinov2Model

        config = Dinov2Config(**architecture(size), use_swiglu_ffn=swiglu, image_size=GRID_SIDE * 14)
        backbone, report = Dinov2Model.from_pretrained(
            None,
            config=config,
            state_dict={**state, "embeddings.position_embeddings": table},
            output_loading_info=True,
            dtype=torch.float32,
        )
    require_complete(report, "Dinov2Model")

    class ClassToken(torch.nn.Module):
        def __init__(self, backbone: torch.nn.Module) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            pooled: torch.Tensor = self.backbone(pixel_values=pixels).pooler_output
            return pooled

    # Handed over: what a class made here closed over would live until the garbage is collected.
    return ClassToken(backbone).eval()


def backbone_blocks(model: "torch.nn.Module") -> "Iterable[torch.nn.Module]":
    """The transformer blocks of a model that `build_dinov2` made."""
    backbone: Any = model.backbone
    found: Iterable[torch.nn.Module] = backbone.encoder.layer
    return found


def backbone_class_token_parts(model: "torch.nn.Module") -> ClassTokenParts | None:
    """The last block of a model that `build_dinov2` made; its vector is the normed class token.

    None where transformers names the parts of its attention otherwise, as it did in its earlier 5.x.
    """
    backbone: Any = model.backbone
    last = backbone.encoder.layer[-1]
    attention = last.attention
    if not hasattr(attention, "q_proj"):
        return None
    return ClassTokenParts(
        blocks=backbone.encoder.layer,
        heads=attention.num_attention_heads,
        norm1=last.norm1,
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        out=attention.o_proj,
        scale1=last.layer_scale1,
        norm2=last.norm2,
        mlp=last.mlp,
        scale2=last.layer_scale2,
    )


def require_complete(report: dict[str, Any], architecture: str) -> None:
    """Refuse a model that transformers did not fill exactly: its public key names changed.

    Raises:
        WeightsError: keys missing, unexpected or of another shape.
    """
    faults = {name: sorted(map(str, keys))[:3] for name, keys in report.items() if keys}
    if faults:
        raise WeightsError(
            f"transformers' {architecture} does not take the checkpoint's parameters: {faults}.",
            remedy="install the locked versions: pip install -r requirements.lock",
        )
