"""The modules that take the place of a block's own in the `fast` profile. Imports torch when loaded."""

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings_assets.encoders.family import ClassTokenParts

# Activations that oneDNN applies to a product before it is rounded, by class: transformers' and torch's.
_GELUS = {"GELUActivation": "none", "GELUTanh": "tanh", "GELU": None}


class LoweringNorm(nn.Module):
    """A layer norm from float32 to `dtype`."""

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
    """nn.MultiheadAttention of a block over itself, by the fused kernel that PyTorch has for it."""

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
        mixed = attend(queries, keys, values)
        given = self.out(mixed.transpose(1, 2).flatten(2))
        return given if self.batch_first else given.transpose(0, 1), None


class ClassTokenBlock(nn.Module):
    """The last block of a model that reads nothing but its first token: float32 [n, tokens, d] to [n, 1, d].

    The class token attends to all tokens as before; what the others would become is not computed.
    """

    def __init__(self, parts: ClassTokenParts) -> None:
        super().__init__()
        self.heads = parts.heads
        self.norm1, self.norm2 = parts.norm1, parts.norm2
        self.query, self.key, self.value, self.out = parts.query, parts.key, parts.value, parts.out
        self.scale1, self.scale2 = parts.scale1, parts.scale2
        self.mlp = parts.mlp

    def forward(self, hidden: Tensor, *_: object, **__: object) -> Tensor:
        normed, token = self.norm1(hidden), hidden[:, :1]
        shape = (len(hidden), -1, self.heads, hidden.shape[2] // self.heads)
        query, key, value = (
            project(source).view(shape).transpose(1, 2)
            for project, source in ((self.query, normed[:, :1]), (self.key, normed), (self.value, normed))
        )
        mixed = attend(query, key, value)
        token = token + self.scale1(self.out(mixed.transpose(1, 2).flatten(2)))
        return token + self.scale2(self.mlp(self.norm2(token)))


class PackedLinear(nn.Module):
    """A linear layer on a CPU whose weights lie as oneDNN multiplies them, not laid out anew each time.

    The products are the same bit for bit. The operator is the one that torch.compile puts in for a frozen
    nn.Linear (torch/_inductor/fx_passes/mkldnn_fusion.py).

    Args:
        gelu: the approximation of a GELU that follows, "none" or "tanh", to be applied before rounding.
    """

    # The layout suits products of about so many rows and is right for any: 32 images of 50 tokens.
    _ROWS = 1600

    def __init__(self, linear: nn.Linear, gelu: str | None = None) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), self._ROWS)
        self.after = ("none", "") if gelu is None else ("gelu", gelu)

    def forward(self, hidden: Tensor) -> Tensor:
        name, algorithm = self.after
        given: Tensor = torch.ops.mkldnn._linear_pointwise(
            hidden, self.weight, self.bias, name, [], algorithm
        )
        return given


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of [n, heads, tokens, d] to the same shape, by what is fastest on the device.

    On CPUs torch's fused kernel takes twice as long in bfloat16 as two products with a softmax between them.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        return scores.softmax(dim=-1) @ value
    return functional.scaled_dot_product_attention(query, key, value)


def attend_in_products(model: nn.Module) -> None:
    """Have the attention of transformers' models computed as `attend` does in bfloat16 on CPUs."""
    for module in model.modules():
        choose = getattr(module, "set_attn_implementation", None)
        if choose is not None:
            choose("eager")


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """nn.Linear of parameters at hand: weight [out, in], bias [out]."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def can_pack() -> bool:
    """Whether this torch has the operator, on a CPU for which it was tried: x86."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def pack_linears(module: nn.Module) -> None:
    """Replace every nn.Linear below a module, in place; in an MLP of two, with the GELU between them."""
    linears = [name for name, child in module.named_children() if isinstance(child, nn.Linear)]
    gelus = [name for name, child in module.named_children() if type(child).__name__ in _GELUS]
    gelu: str | None = None
    if len(linears) == 2 and len(gelus) == 1:
        activation: Any = module.get_submodule(gelus[0])
        gelu = _GELUS[type(activation).__name__] or activation.approximate
        setattr(module, gelus[0], nn.Identity())
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, PackedLinear(child, gelu if name == linears[0] else None))
        else:
            pack_linears(child)
