"""Linear layers on CPUs that multiply bfloat16: weights laid out once. Imports torch when loaded."""

import functools
import itertools
import logging
import platform

import torch
from torch import Tensor, nn

from embeddings_assets.encoders.dtypes import cpu_has_bfloat16
from embeddings_assets.encoders.shortage import device_errors

log = logging.getLogger(__name__)

# What oneDNN applies to a product before it is rounded: name and algorithm, by class of torch's and
# transformers' activations.
_ACTIVATIONS = {
    "GELUActivation": ("gelu", "none"),
    "GELUTanh": ("gelu", "tanh"),
    "SiLU": ("swish", ""),
}
# transformers' MLPs in which `fc1` feeds an activation, and the names that it has had. Beside them only
# nn.Sequential itself says what follows what.
_MLPS = ("Dinov2MLP", "SiglipMLP")
_ACTIVATION_NAMES = ("activation_fn", "activation")
_NO_ACTIVATION = ("none", "")


class PackedLinear(nn.Module):
    """nn.Linear with weights as oneDNN multiplies them, which otherwise lays them out for every product.

    The operator is the one that torch.compile puts in for a frozen nn.Linear
    (torch/_inductor/fx_passes/mkldnn_fusion.py). Without an activation it gives what nn.Linear
    gives, but for a rounding.

    Args:
        activation: what follows: a name and an algorithm of the operator.
    """

    # The layout suits products of about so many rows and is right for any: 32 images of 50 tokens.
    _ROWS = 1600

    def __init__(self, linear: nn.Linear, activation: tuple[str, str] = _NO_ACTIVATION) -> None:
        super().__init__()
        self.bias = linear.bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), self._ROWS)
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        name, algorithm = self.activation
        given: Tensor = torch.ops.mkldnn._linear_pointwise(
            hidden, self.weight, self.bias, name, [], algorithm
        )
        return given


@functools.cache
def can_pack() -> bool:
    """Whether this torch does so in bfloat16 on this CPU; on x86 alone, where it was measured."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and cpu_has_bfloat16()
        and _works()
    )


def _works() -> bool:
    """Try it: the operator is torch's own, and ONEDNN_MAX_CPU_ISA can take the instructions away."""
    linear = nn.Linear(16, 16).to(torch.bfloat16)
    try:
        with torch.inference_mode(), device_errors():
            hidden = torch.ones(2, 16, dtype=torch.bfloat16)
            for activation in (_NO_ACTIVATION, *_ACTIVATIONS.values()):
                PackedLinear(linear, activation)(hidden)
    except (AttributeError, RuntimeError) as error:
        log.info("bfloat16 layers are not laid out for this CPU: %s", error)
        return False
    return True


def pack_linears(module: nn.Module) -> None:
    """Replace every nn.Linear below a module, in place, with the activation that it is known to feed.

    nn.MultiheadAttention stays whole: it reads the parameters of its layers.
    """
    feeds = dict(_feeding(module))
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            activation = _NO_ACTIVATION
            fed = feeds.get(name)
            if fed is not None and type(getattr(module, fed)).__name__ in _ACTIVATIONS:
                activation = _ACTIVATIONS[type(getattr(module, fed)).__name__]
                setattr(module, fed, nn.Identity())
            setattr(module, name, PackedLinear(child, activation))
        elif not isinstance(child, nn.MultiheadAttention):
            pack_linears(child)


def _feeding(module: nn.Module) -> list[tuple[str, str]]:
    """Names of children of which the first feeds nothing but the second."""
    if type(module) is nn.Sequential:
        names = [name for name, _ in module.named_children()]
        return list(itertools.pairwise(names))
    if type(module).__name__ not in _MLPS:
        return []
    return [("fc1", name) for name in _ACTIVATION_NAMES if hasattr(module, name)]
