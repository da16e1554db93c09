"""The modules that take the place of a block's own in the `fast` profile. Imports torch when loaded."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings_assets.encoders.class_token import linear_of

_QUICK_GELU = 1.702  # a of open_clip/transformer.py: QuickGELU


class LoweringNorm(nn.Module):
    """A layer norm from any dtype to `dtype`, computed in float32."""

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = norm
        self.dtype = dtype

    def forward(self, hidden: Tensor) -> Tensor:
        norm = self.norm
        hidden = functional.layer_norm(
            hidden.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps
        )
        return hidden.to(self.dtype)


class FusedAttention(nn.Module):
    """nn.MultiheadAttention of a block over itself, by the fused kernel that PyTorch has for it.

    Takes and gives [n, tokens, d] or [tokens, n, d], as the module that it takes the place of.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.qkv = linear_of(attention.in_proj_weight, attention.in_proj_bias)
        self.out = attention.out_proj
        self.batch_first = attention.batch_first

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_: object) -> tuple[Tensor, None]:
        hidden = query if self.batch_first else query.transpose(0, 1)
        shape = (*hidden.shape[:2], 3, self.heads, hidden.shape[2] // self.heads)
        queries, keys, values = self.qkv(hidden).view(shape).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(queries, keys, values)
        given = self.out(mixed.transpose(1, 2).flatten(2))
        return given if self.batch_first else given.transpose(0, 1), None


def fold_quick_gelu(mlp: nn.Sequential) -> None:
    """Let Linear, QuickGELU, Linear be Linear, SiLU, Linear, in place; float32 parameters.

    a x sigmoid(a x) is SiLU of a x: the first layer gives a times as much, the second takes it back. SiLU is
    one kernel where QuickGELU, x sigmoid(a x), is three.
    """
    if [type(layer).__name__ for layer in mlp] != ["Linear", "QuickGELU", "Linear"]:
        return
    with torch.no_grad():
        for parameter in mlp[0].parameters():
            parameter.mul_(_QUICK_GELU)
        mlp[2].get_parameter("weight").div_(_QUICK_GELU)
    mlp[1] = nn.SiLU()
