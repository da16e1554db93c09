"""The modules of the `fast` profile, each against what it takes the place of."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from embeddings_assets.catalog import MODELS
from embeddings_assets.encoders.class_token import ClassTokenBlock
from embeddings_assets.encoders.dtypes import FAST_ARITHMETIC
from embeddings_assets.encoders.encoder import Encoder
from embeddings_assets.encoders.family import family_of
from embeddings_assets.encoders.fast.packing import PackedLinear, can_pack, pack_linears
from embeddings_assets.encoders.plan import plan_encoder
from embeddings_assets.store.footer import differing_fields, recipe_fingerprint
from embeddings_assets.store.schema import SCHEMA_VERSION

packing = pytest.mark.skipif(not can_pack(), reason="torch does not pack bfloat16 on this CPU")
# Blocks of each model, the linear layers of one, and those that take an activation with them.
PACKED = {"CLIP": (12, 4, 1), "DINOv2": (12, 6, 1), "Franca": (12, 7, 0), "SigLIPv2": (12, 6, 1)}


class Gated(nn.Sequential):
    """As timm's GluMlp: a half of what the first layer gives does not go through the activation."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 256), nn.SiLU(), nn.Linear(128, 64))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        plain, gate = self[0](hidden).chunk(2, dim=-1)
        given: torch.Tensor = self[2](plain * self[1](gate))
        return given


def mlps() -> dict[str, Callable[[], nn.Module]]:
    from transformers import Dinov2Config, SiglipVisionConfig
    from transformers.models.dinov2.modeling_dinov2 import Dinov2MLP
    from transformers.models.siglip.modeling_siglip import SiglipMLP

    return {
        "SiLU": lambda: nn.Sequential(nn.Linear(768, 3072), nn.SiLU(), nn.Linear(3072, 768)),
        "GELU": lambda: Dinov2MLP(Dinov2Config()),
        "GELU by tanh": lambda: SiglipMLP(SiglipVisionConfig()),
        "GELU of an earlier transformers": lambda: _earlier(Dinov2MLP(Dinov2Config())),
    }


def _earlier(mlp: nn.Module) -> nn.Module:
    """The MLP with its activation under the name that it had before."""
    activation = mlp._modules.pop("activation_fn")
    mlp.add_module("activation", activation)
    mlp.forward = lambda hidden: mlp.fc2(mlp.activation(mlp.fc1(hidden)))  # type: ignore[assignment, operator]
    return mlp


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@packing
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_gives_what_the_layer_gives(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(768, 2304, bias=bias).to(torch.bfloat16)
    hidden = drawn(4, 50, 768).to(torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(hidden), linear(hidden), rtol=0.02, atol=1e-3)


@packing
@pytest.mark.parametrize("name", ["SiLU", "GELU", "GELU by tanh", "GELU of an earlier transformers"])
def test_an_activation_goes_with_the_product_before_it_and_is_no_less_exact(name: str) -> None:
    torch.manual_seed(0)
    mlp, hidden = mlps()[name](), drawn(512, 768)
    with torch.inference_mode():
        exact = mlp(hidden)
        plain = mlp.to(torch.bfloat16)(hidden.to(torch.bfloat16)).float()
        pack_linears(mlp)
        packed = mlp(hidden.to(torch.bfloat16)).float()
    kinds = Counter(type(child).__name__ for child in mlp.children())
    assert kinds == {"PackedLinear": 2, "Identity": 1}
    assert (packed - exact).square().mean() <= (plain - exact).square().mean() * 1.05


@packing
def test_an_activation_that_is_not_known_to_follow_stays() -> None:
    torch.manual_seed(0)
    gated, hidden = Gated().to(torch.bfloat16), drawn(32, 64).to(torch.bfloat16)
    attention = nn.MultiheadAttention(64, 4, batch_first=True).to(torch.bfloat16)
    with torch.inference_mode():
        plain, mixed = gated(hidden), attention(hidden, hidden, hidden)[0]
        pack_linears(gated)
        pack_linears(nn.Sequential(attention))
        torch.testing.assert_close(gated(hidden), plain, rtol=0.02, atol=2e-3)
        torch.testing.assert_close(attention(hidden, hidden, hidden)[0], mixed)


@pytest.fixture(scope="module", params=[model.name for model in MODELS])
def fast(request: pytest.FixtureRequest) -> Iterator[Encoder]:
    encoder = plan_encoder(request.param, weights="random", precision="fast", device="cpu").load()
    yield encoder
    encoder.close()


@packing
def test_every_product_of_the_blocks_is_packed(fast: Encoder) -> None:
    assert fast._model is not None
    blocks = list(family_of(fast.plan.spec).blocks(fast._model))
    count, linears, activations = PACKED[fast.plan.spec.name]
    assert len(blocks) == count
    for block in blocks:
        packed = [module for module in block.modules() if isinstance(module, PackedLinear)]
        assert len(packed) == linears or block is blocks[-1]
        assert sum(module.activation[0] != "none" for module in packed) == activations
        assert not any(isinstance(module, nn.Linear) for module in block.modules())


@pytest.mark.parametrize("name", ["CLIP", "DINOv2", "Franca"])
def test_the_last_block_computes_the_class_token_as_the_whole_block_does(name: str) -> None:
    plan = plan_encoder(name, weights="random", device="cpu")
    family = family_of(plan.spec)
    model = family.build(plan.source)
    whole = list(family.blocks(model))[-1]
    parts = family.class_token_parts(model)
    assert parts is not None
    tokens = drawn(2, 50, 768)
    with torch.inference_mode():
        expected = whole(tokens)[:, :1]
        given = ClassTokenBlock(parts)(tokens)
    assert given.shape == (2, 1, 768)
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["CLIP", "DINOv2", "Franca"])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_an_encoder_has_that_block(name: str, precision: str) -> None:
    encoder = plan_encoder(name, weights="random", precision=precision, device="cpu").load()
    assert encoder._model is not None
    assert isinstance(list(family_of(encoder.plan.spec).blocks(encoder._model))[-1], ClassTokenBlock)
    encoder.close()


@pytest.mark.parametrize("name", [model.name for model in MODELS])
def test_in_float32_fast_computes_what_exact_computes(name: str) -> None:
    plan = plan_encoder(name, weights="random", device="cpu", width="native")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    exact = plan.load().encode(pixels)
    fast = replace(plan, precision="fast").load().encode(pixels)
    assert np.abs(fast - exact).max() <= 2e-6


def test_how_fast_computes_is_part_of_its_recipe_alone() -> None:
    plan = plan_encoder("CLIP", weights="random", device="cpu")
    exact = plan.footer()
    plan = replace(plan, precision="fast")
    assert "fast_arithmetic" not in exact
    assert "fast_arithmetic" not in plan.footer(), "in float32 it is the arithmetic of exact"
    fast = replace(plan, compute_dtype="bfloat16").footer()
    older = {**fast, "fast_arithmetic": FAST_ARITHMETIC - 1}
    first = {name: value for name, value in fast.items() if name != "fast_arithmetic"}
    assert len({recipe_fingerprint(footer) for footer in (fast, older, first)}) == 3
    stated = {"schema_version": SCHEMA_VERSION}
    assert differing_fields({**first, **stated}, {**fast, **stated}) == ["fast_arithmetic"]
    assert "fast_arithmetic" not in differing_fields({**exact, **stated}, {**fast, **stated})


@packing
def test_where_the_instructions_are_taken_away_nothing_is_packed() -> None:
    program = "from embeddings_assets.encoders.fast.packing import can_pack; print(can_pack())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
