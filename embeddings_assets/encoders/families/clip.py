"""OpenAI CLIP ViT-B/32: recipe, parameters and forward pass of the image tower.

Built as open_clip's `ViT-B-32-quickgelu`: OpenAI trained with QuickGELU, x * sigmoid(1.702 x). The plain
`ViT-B-32` would be off by up to 1.7e-3, silently; others' weights of the same shapes need the plain one.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embeddings_assets.encoders.family import CheckpointFiles, ClassTokenParts, NetworkSize
from embeddings_assets.encoders.recipe import Recipe
from embeddings_assets.encoders.weights.find import WeightsSource
from embeddings_assets.errors import WeightsError

if TYPE_CHECKING:
    import torch

# clip/clip.py: _transform.
RECIPE = Recipe(
    rgb_first=False,
    resize="shorter",
    resize_to=224,
    interpolation="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
CHECKPOINT = CheckpointFiles(companions={"open_clip_model.safetensors": "open_clip_config.json"})
LIBRARIES = ("open_clip_torch",)
BASE = NetworkSize(width=768, layers=12, heads=12, output=512)

# What a CLIP checkpoint holds besides the image tower.
_ELSEWHERE = ("transformer.", "token_embedding.", "ln_final.")
_ELSEWHERE_EXACT = (
    "positional_embedding",
    "text_projection",
    "logit_scale",
    "input_resolution",
    "context_length",
    "vocab_size",
)


def shapes(size: NetworkSize = BASE) -> dict[str, tuple[int, ...]]:
    """The parameters of the image tower, without the prefix `visual.`: 152 in ViT-B/32."""
    width = size.width
    found: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": (50, width),
        "conv1.weight": (width, 3, 32, 32),
        "proj": (width, size.output),
    }
    norms = ["ln_pre", "ln_post"]
    for block in (f"transformer.resblocks.{index}" for index in range(size.layers)):
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        found |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            f"{block}.attn.out_proj.weight": (width, width),
            f"{block}.attn.out_proj.bias": (width,),
            f"{block}.mlp.c_fc.weight": (4 * width, width),
            f"{block}.mlp.c_fc.bias": (4 * width,),
            f"{block}.mlp.c_proj.weight": (width, 4 * width),
            f"{block}.mlp.c_proj.bias": (width,),
        }
    for name in norms:
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return found


def build(source: WeightsSource) -> "torch.nn.Module":
    """A float32 module from normalised pixels [n, 3, 224, 224] to joint-space vectors [n, 512].

    Raises:
        WeightsError: the checkpoint is not that of CLIP ViT-B/32.
    """
    from embeddings_assets.encoders.weights.checkpoint import load_parameters

    state = load_parameters(source, shapes(), _visual_name)
    if source.path is not None and source.path.suffix == ".safetensors":
        _require_quick_gelu(source.path.with_name("open_clip_config.json"))
    return assemble(state, BASE)


def assemble(parameters: dict[str, "torch.Tensor"], size: NetworkSize) -> "torch.nn.Module":
    """The image tower of these parameters."""
    import torch
    from open_clip.transformer import QuickGELU, VisionTransformer

    with torch.device("meta"):
        tower: torch.nn.Module = VisionTransformer(
            image_size=224,
            patch_size=32,
            width=size.width,
            layers=size.layers,
            heads=size.heads,
            mlp_ratio=4.0,
            output_dim=size.output,
            act_layer=QuickGELU,
        )
    tower.load_state_dict(parameters, strict=True, assign=True)
    return tower.requires_grad_(False).eval()


def _require_quick_gelu(config: Path) -> None:
    """Refuse an open_clip folder of a model that was not trained with QuickGELU, such as LAION's.

    Raises:
        WeightsError: `model_cfg.quick_gelu` is not true; open_clip takes a missing one as false.
    """
    try:
        quick = json.loads(config.read_text(encoding="utf-8"))["model_cfg"].get("quick_gelu")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{config}: no open_clip configuration ({error!r}).") from error
    if quick is not True:
        raise WeightsError(
            f"{config}: model_cfg.quick_gelu is not true: not OpenAI's CLIP, or saved under the wrong name.",
            remedy='set it to true if they are OpenAI\'s, or: embeddings-assets weights fetch "CLIP"',
        )


def blocks(model: "torch.nn.Module") -> "Iterable[torch.nn.Module]":
    """The transformer blocks of a built model."""
    transformer: Any = model.transformer
    found: Iterable[torch.nn.Module] = transformer.resblocks
    return found


def class_token_parts(model: "torch.nn.Module") -> ClassTokenParts:
    """The last block; open_clip pools the class token (transformer.py: VisionTransformer, pool_type)."""
    from embeddings_assets.encoders.class_token import linear_of

    transformer: Any = model.transformer
    last = transformer.resblocks[-1]
    weights, biases = last.attn.in_proj_weight.chunk(3), last.attn.in_proj_bias.chunk(3)
    query, key, value = (linear_of(weight, bias) for weight, bias in zip(weights, biases, strict=True))
    return ClassTokenParts(
        blocks=transformer.resblocks,
        heads=last.attn.num_heads,
        norm1=last.ln_1,
        query=query,
        key=key,
        value=value,
        out=last.attn.out_proj,
        scale1=last.ls_1,
        norm2=last.ln_2,
        mlp=last.mlp,
        scale2=last.ls_2,
    )


def _visual_name(key: str) -> str | None:
    if key.startswith(_ELSEWHERE) or key in _ELSEWHERE_EXACT:
        return None
    return key.removeprefix("visual.")
