"""The last block of models that read nothing but the class token. Imports torch when loaded.

A twelfth of a ViT/B's work is its last block; most of it goes into tokens that nobody reads. In float32 the
vectors are the same to 3e-7.
"""

from torch import Tensor, nn
from torch.nn import functional

from embeddings_assets.encoders.family import ClassTokenParts


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
        mixed = functional.scaled_dot_product_attention(query, key, value)
        token = token + self.scale1(self.out(mixed.transpose(1, 2).flatten(2)))
        return token + self.scale2(self.mlp(self.norm2(token)))


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """nn.Linear of parameters at hand: weight [out, in], bias [out]."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
