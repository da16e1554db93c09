"""Exactness: pixels and vectors equal those of each model's own published code, and small faults show."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders_kit import (
    CASES,
    CORE,
    EDGE,
    MAX_ABS,
    MIN_COSINE,
    ONE_PER_MODEL,
    kit_encoder,
    kit_pixels,
    kit_plan,
    kit_vectors,
    load_encoder,
    reference,
)

from embeddings_assets.encoders.dtypes import cpu_has_bfloat16
from embeddings_assets.encoders.encoder import ieee_float32
from embeddings_assets.encoders.families import clip, dinov2, franca, siglip2
from embeddings_assets.encoders.families.vit14 import interpolate_positions
from embeddings_assets.encoders.projection import PROJECTION_PATH
from embeddings_assets.encoders.recipe import Recipe
from embeddings_assets.encoders.weights.checkpoint import load_parameters
from embeddings_assets.encoders.weights.find import WeightsSource
from embeddings_assets.io.images import decode_image

FAMILIES = {"clip-openai": clip, "dinov2": dinov2, "franca-v1.0": franca, "siglip2": siglip2}


@pytest.mark.parametrize("name", ONE_PER_MODEL)
def test_vectors_equal_the_published_codes(name: str, parity_kit: Path, shared: Path) -> None:
    expected = np.concatenate([reference(shared, f"{CASES[name].tag}.{part}") for part in ("core", "edge")])
    vectors = kit_vectors(parity_kit, shared, name)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - expected).max() <= MAX_ABS
    assert (vectors.astype(np.float64) * expected).sum(axis=1).min() >= MIN_COSINE
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() <= 1e-6


@pytest.mark.parametrize("name", ["clip-open_clip", "franca-v1.1"])
def test_the_other_published_format_gives_the_same(name: str, parity_kit: Path, shared: Path) -> None:
    encoder = load_encoder(parity_kit, name)
    pixels = [encoder.pixels(decode_image(shared / "parity" / "images" / image)) for image in CORE[:3]]
    vectors = encoder.encode(np.stack(pixels))
    assert np.abs(vectors - reference(shared, f"{CASES[name].tag}.core")[:3]).max() <= MAX_ABS


@pytest.mark.parametrize("name", ONE_PER_MODEL)
def test_input_tensors_equal_the_published_codes_bit_for_bit(
    name: str, parity_kit: Path, shared: Path
) -> None:
    encoder = kit_encoder(parity_kit, name)
    tensors = encoder.normalised_pixels(kit_pixels(shared, encoder, CORE)).numpy()
    assert np.array_equal(tensors, reference(shared, f"{CASES[name].pixels_tag}.core.pixels"))


@pytest.mark.parametrize("name", ONE_PER_MODEL)
def test_batch_size_changes_nothing_but_rounding(name: str, parity_kit: Path, shared: Path) -> None:
    encoder = kit_encoder(parity_kit, name)
    pixels = kit_pixels(shared, encoder, CORE + EDGE)[:2]
    single = np.concatenate([encoder.encode(pixels[:1]), encoder.encode(pixels[1:])])
    assert np.abs(single - kit_vectors(parity_kit, shared, name)[:2]).max() <= 1e-6
    assert np.array_equal(encoder.encode(pixels[:1]), single[:1]), "the same input gives the same bytes"


@pytest.mark.parametrize("name", ONE_PER_MODEL)
def test_fast_stays_close_to_exact(name: str, parity_kit: Path, shared: Path) -> None:
    # In bfloat16 on any CPU, emulated where it must be: a GPU would compute so.
    plan = kit_plan(parity_kit, name, "fast")
    encoder = replace(plan, compute_dtype="bfloat16").load()
    # Two photographs, and the edge cases of mode and size; emulated, one image takes seconds.
    chosen = [0, 4, *range(8, 14)] if cpu_has_bfloat16() else [0, 9]
    images = [decode_image(shared / "parity" / "images" / (CORE + EDGE)[index]) for index in chosen]
    vectors = encoder.encode(np.stack([encoder.pixels(image) for image in images]))
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() <= 1e-5
    cosines = (vectors * kit_vectors(parity_kit, shared, name)[chosen]).sum(axis=1)
    assert cosines.min() >= 0.9995
    assert cosines.max() < 1 - 1e-7, "the fast profile computes in lower precision"


@pytest.mark.parametrize("name", ONE_PER_MODEL)
def test_fast_in_float32_differs_from_exact_by_its_pixels_alone(
    name: str, parity_kit: Path, shared: Path
) -> None:
    """What `fast` is on a CPU that would have to emulate bfloat16."""
    encoder = replace(kit_plan(parity_kit, name, "fast"), compute_dtype="float32").load()
    exact = kit_encoder(parity_kit, name)
    pixels = kit_pixels(shared, exact, CORE + EDGE)[:2]
    assert np.abs(encoder.encode(pixels) - kit_vectors(parity_kit, shared, name)[:2]).max() <= MAX_ABS


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_full_precision_holds_whatever_is_set_globally(setting: str) -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul)
    torch.set_float32_matmul_precision(setting)
    try:
        before = [backend.fp32_precision for backend in backends]
        with ieee_float32():
            assert [backend.fp32_precision for backend in backends] == ["ieee"] * 3
            assert not torch.backends.cuda.matmul.allow_tf32, "readable: the two settings agree"
        assert [backend.fp32_precision for backend in backends] == before
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision("highest")


def test_projected_vectors_are_the_native_ones_projected(parity_kit: Path, shared: Path) -> None:
    native = kit_encoder(parity_kit, "siglip2")
    encoder = load_encoder(parity_kit, "siglip2", width="contract")
    vectors = encoder.encode(kit_pixels(shared, native, CORE + EDGE)[:1])
    matrix = np.load(PROJECTION_PATH)
    expected = kit_vectors(parity_kit, shared, "siglip2")[:1].astype(np.float64) @ matrix
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert vectors.shape == (1, 512)
    assert np.abs(vectors - expected).max() <= 1e-6
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() <= 1e-6


def _vectors_of(model: torch.nn.Module, tensors: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        native = model(tensors)
    return (native / native.norm(dim=1, keepdim=True)).numpy()


def _exact_gelu(model: torch.nn.Module, source: WeightsSource) -> None:
    for parent in list(model.modules()):
        for child in ("gelu", "activation_fn"):
            if hasattr(parent, child):
                setattr(parent, child, torch.nn.GELU())


def _other_epsilon(model: torch.nn.Module, source: WeightsSource) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6 if module.eps == 1e-5 else 1e-5


def _positions_without_offset(model: torch.nn.Module, source: WeightsSource) -> None:
    name = "embeddings.position_embeddings"
    if source.model == "DINOv2":
        table = load_parameters(source, dinov2.shapes(), str)[name]
    else:
        table = load_parameters(source, franca.shapes(), franca.plain_name)["pos_embed"]
    embeddings = model.backbone.embeddings
    assert torch.equal(interpolate_positions(table), embeddings.position_embeddings)
    embeddings.position_embeddings = torch.nn.Parameter(interpolate_positions(table, offset=0.0))


@pytest.mark.parametrize(
    ("name", "mutate"),
    [
        ("clip-openai", _exact_gelu),
        ("siglip2", _exact_gelu),
        ("clip-openai", _other_epsilon),
        ("dinov2", _other_epsilon),
        ("franca-v1.0", _other_epsilon),
        ("siglip2", _other_epsilon),
        ("dinov2", _positions_without_offset),
        ("franca-v1.0", _positions_without_offset),
    ],
)
def test_a_small_fault_in_the_network_breaks_the_bound(
    name: str, mutate: Callable[[torch.nn.Module, WeightsSource], None], parity_kit: Path, shared: Path
) -> None:
    encoder = kit_encoder(parity_kit, name)
    tensors = encoder.normalised_pixels(kit_pixels(shared, encoder, CORE + EDGE)[:1])
    expected = reference(shared, f"{CASES[name].tag}.core")[:1]
    model = FAMILIES[name].build(encoder.plan.source)
    mutate(model, encoder.plan.source)
    assert np.abs(_vectors_of(model, tensors) - expected).max() > 2 * MAX_ABS


@pytest.mark.parametrize("name", ["clip-openai", "dinov2"])
def test_a_crop_offset_rounded_down_breaks_the_bound(name: str, parity_kit: Path, shared: Path) -> None:
    class FloorRecipe(Recipe):
        def _offset(self, length: int) -> int:
            return (length - self.size) // 2

    encoder = kit_encoder(parity_kit, name)
    recipe = FloorRecipe(**vars(encoder.plan.recipe))
    pixels = kit_pixels(shared, encoder, CORE + EDGE)
    shifted = [
        index
        for index, image in enumerate(CORE + EDGE)
        if not np.array_equal(
            recipe.pixels(decode_image(shared / "parity" / "images" / image)), pixels[index]
        )
    ]
    assert shifted, "the kit holds images whose crop depends on the rounding"
    first = decode_image(shared / "parity" / "images" / (CORE + EDGE)[shifted[0]])
    vector = encoder.encode(recipe.pixels(first)[None])
    assert np.abs(vector - kit_vectors(parity_kit, shared, name)[shifted[0]]).max() > 100 * MAX_ABS
