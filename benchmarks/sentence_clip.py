"""CLIP in sentence-transformers, on the weights of a loaded open_clip image tower and without the network.

Used by `rivals.py`; nothing here is run by itself.
"""

import re
import tempfile
from typing import TYPE_CHECKING

import torch

from embeddings_assets.encoders.quiet import quiet_transformers

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_NAMES = (
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)


def transformers_state(tower: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of open_clip's ViT-B/32 image tower under the names of transformers' CLIPModel."""
    state = {}
    for key, value in tower.state_dict().items():
        if key == "proj":
            state["visual_projection.weight"] = value.T.contiguous()
            continue
        name = key
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        name = f"vision_model.{name}"
        if ".in_proj_" in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                state[name.replace("in_proj_", f"{part}_proj.")] = third.contiguous()
        else:
            state[name] = value
    return state


def sentence_clip(tower: torch.nn.Module, device: str) -> "SentenceTransformer":
    """A SentenceTransformer whose image vectors are those of `tower`; its text tower is a stub.

    It is made as from the hub, out of a folder with a configuration, parameters and an image processor.
    """
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer

    text = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    layers = len(tower.get_submodule("transformer.resblocks"))
    vision = {"patch_size": 32, "num_hidden_layers": layers}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)
    model = transformers.CLIPModel(config)
    missing, unexpected = model.load_state_dict(transformers_state(tower), strict=False)
    lacking = [name for name in missing if name.startswith(("vision_model.", "visual_projection."))]
    if lacking or unexpected:
        raise ValueError(f"transformers' CLIPModel lacks {lacking[:3]} and does not know {unexpected[:3]}.")
    offline = {"local_files_only": True}
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        model.save_pretrained(folder)
        transformers.CLIPImageProcessor().save_pretrained(folder)
        module = Transformer(
            folder, model_kwargs=offline, processor_kwargs=dict(offline), config_kwargs=dict(offline)
        )
        return SentenceTransformer(modules=[module], device=device)
