"""The modules of the `fast` profile, each against what it takes the place of."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from embeddings_assets.encoders.dtypes import cpu_has_bfloat16
from embeddings_assets.encoders.encoder import Encoder
from embeddings_assets.encoders.family import family_of
from embeddings_assets.encoders.fast_blocks import PackedLinear, attend, can_pack, pack_linears
from embeddings_assets.encoders.plan import plan_encoder

packing = pytest.mark.skipif(
    not (can_pack() and cpu_has_bfloat16()), reason="this CPU has no bfloat16 products that torch packs"
)


class Mlp(nn.Module):
    """As transformers writes one: the activation first."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.first = nn.Linear(64, 256)
        self.second = nn.Linear(256, 64)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.second(self.activation(self.first(hidden)))
        return given


def gelus() -> list[nn.Module]:
    from transformers.activations import GELUActivation, GELUTanh

    return [nn.GELU(), nn.GELU(approximate="tanh"), GELUActivation(), GELUTanh()]


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@packing
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_gives_the_same_bits(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(768, 2304, bias=bias).to(torch.bfloat16)
    hidden = drawn(4, 50, 768).to(torch.bfloat16)
    with torch.inference_mode():
        assert torch.equal(PackedLinear(linear)(hidden), linear(hidden))


@packing
@pytest.mark.parametrize("number", range(4))
def test_a_gelu_goes_with_the_product_before_it_and_is_no_less_exact(number: int) -> None:
    torch.manual_seed(0)
    mlp, hidden = Mlp(gelus()[number]), drawn(512, 64)
    with torch.inference_mode():
        exact = mlp(hidden)
        plain = mlp.to(torch.bfloat16)(hidden.to(torch.bfloat16)).float()
        pack_linears(mlp)
        packed = mlp(hidden.to(torch.bfloat16)).float()
    assert [type(child).__name__ for child in mlp.children()] == ["Identity", "PackedLinear", "PackedLinear"]
    assert (packed - exact).square().mean() <= (plain - exact).square().mean()


@packing
@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU])
def test_any_other_activation_stays(activation: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    mlp, hidden = Mlp(activation()).to(torch.bfloat16), drawn(32, 64).to(torch.bfloat16)
    with torch.inference_mode():
        plain = mlp(hidden)
        pack_linears(mlp)
        assert torch.equal(mlp(hidden), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_that_of_torch(dtype: torch.dtype) -> None:
    query, key, value = drawn(3, 2, 4, 50, 64).to(dtype).unbind(0)
    given = attend(query, key, value)
    assert given.dtype == dtype
    exact = functional.scaled_dot_product_attention(query.float(), key.float(), value.float())
    assert (given.float() - exact).abs().max() <= (0 if dtype == torch.float32 else 0.02)


@pytest.fixture(scope="module")
def clip() -> Encoder:
    return plan_encoder("CLIP", weights="random", precision="fast", device="cpu").load()


@packing
def test_every_product_of_the_blocks_is_packed(clip: Encoder) -> None:
    model = clip._model
    assert model is not None
    for block in family_of(clip.plan.spec).blocks(model):
        kinds = [type(module) for module in block.modules()]
        assert kinds.count(PackedLinear) >= 4
        assert nn.Linear not in kinds


def test_the_last_block_computes_the_class_token_alone(clip: Encoder) -> None:
    model = clip._model
    assert model is not None
    *_, last = family_of(clip.plan.spec).blocks(model)
    with torch.inference_mode():
        assert last(drawn(2, 50, 768)).shape == (2, 1, 768)
