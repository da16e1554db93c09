"""Plans and footers without torch; random weights; widths, precisions and devices."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from embeddings_assets.catalog import MODELS, get_model
from embeddings_assets.encoders.dtypes import cpu_has_bfloat16
from embeddings_assets.encoders.encoder import Encoder
from embeddings_assets.encoders.plan import plan_encoder
from embeddings_assets.encoders.projection import PROJECTION_SHA256
from embeddings_assets.encoders.weights.find import random_source
from embeddings_assets.encoders.weights.random_weights import random_parameters
from embeddings_assets.errors import EmbeddingsError, SettingsError, UnknownNameError, WeightsError
from embeddings_assets.store.footer import RECIPE_FIELDS, differing_fields, recipe_fingerprint
from embeddings_assets.store.schema import SCHEMA_VERSION

NAMES = [spec.name for spec in MODELS]


def drawing(hue: int, number: int) -> Image.Image:
    """Simple shapes; equal `hue` means equal colours."""
    random = np.random.default_rng(hue * 100 + number)
    colours = np.random.default_rng(hue).integers(0, 256, (2, 3))
    image = Image.new("RGB", (int(random.integers(120, 300)), 200), tuple(map(int, colours[0])))
    draw = ImageDraw.Draw(image)
    for x, y in random.integers(0, 200, (4, 2)):
        draw.ellipse([int(x) - 30, int(y) - 30, int(x) + 30, int(y) + 30], fill=tuple(map(int, colours[1])))
    return image


@pytest.fixture(scope="module", params=NAMES)
def random_encoder(request: pytest.FixtureRequest) -> Encoder:
    return plan_encoder(request.param, weights="random", width="native", device="cpu").load()


def test_a_footer_needs_no_torch() -> None:
    code = """
import sys
from embeddings_assets.encoders.plan import plan_encoder
from embeddings_assets.catalog import MODELS
from PIL import Image
for spec in MODELS:
    plan = plan_encoder(spec.name, weights="random", precision="exact", device="cpu")
    plan.footer()
    plan.pixels(Image.new("L", (300, 200)))
print(sorted({"torch", "torchvision", "transformers", "open_clip", "safetensors"} & set(sys.modules)))
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_a_footer_says_what_decides_the_values(name: str) -> None:
    spec = get_model(name)
    footer = plan_encoder(name, weights="random", device="cpu").footer()
    assert json.loads(json.dumps(footer)) == footer
    assert set(RECIPE_FIELDS) - {"schema_version"} <= set(footer)
    assert (footer["model"], footer["checkpoint"]) == (name, spec.checkpoint)
    assert (footer["trained"], footer["weights_origin"]) == (False, "random seed 0")
    assert (footer["width"], footer["native_width"]) == (spec.width, spec.native_width)
    projected = spec.width != spec.native_width
    assert footer["projection_sha256"] == (PROJECTION_SHA256 if projected else None)
    assert (footer["projection"] is not None) == projected
    assert (footer["precision"], footer["compute_dtype"], footer["normalised"]) == ("exact", "float32", True)
    assert footer["licence"] == spec.licence
    library = "open_clip_torch" if name == "CLIP" else "transformers"
    assert set(footer["libraries"]) == {"torch", "Pillow", "numpy", library}


def test_the_fast_profile_is_written_down() -> None:
    footer = plan_encoder("DINOv2", weights="random", precision="fast", device="cuda").footer()
    assert (footer["precision"], footer["compute_dtype"]) == ("fast", "bfloat16")
    assert "torch" in footer["libraries"]


def test_fast_uses_bfloat16_on_a_cpu_only_where_the_cpu_has_it(tmp_path: Path) -> None:
    def cpu(line: str) -> bool:
        cpuinfo = tmp_path / str(len(list(tmp_path.iterdir())))
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: bf16 in name only\n{line}\n")
        return cpu_has_bfloat16(cpuinfo)

    assert cpu("flags\t\t: fpu avx2 avx512f avx512_bf16 rdpid")
    assert cpu("flags\t\t: fpu avx2 amx_bf16")
    assert cpu("Features\t: fp asimd bf16 i8mm")
    assert not cpu("flags\t\t: fpu avx2 avx512f")
    assert not cpu_has_bfloat16(tmp_path / "absent")
    expected = "bfloat16" if cpu_has_bfloat16() else "float32"
    assert plan_encoder("CLIP", weights="random", precision="fast", device="cpu").compute_dtype == expected


def test_what_changes_values_changes_the_fingerprint_and_nothing_else_does() -> None:
    def fingerprint(model: str = "Franca", **options: str) -> str:
        return recipe_fingerprint(plan_encoder(model, **{"weights": "random", **options}).footer())

    base = fingerprint()
    assert base == fingerprint(device="cpu") == fingerprint(device="cuda:3") == fingerprint(width="contract")
    others = [fingerprint(width="native"), fingerprint(precision="fast"), fingerprint("SigLIPv2")]
    assert len({base, *others}) == 4


# Of the exact profile with random weights, as of version 0.1.0. Equal ones are what lets vectors be reused.
FINGERPRINTS = {
    "CLIP": "9bc1213854bc46a71729c2eb3993b3459d53ec96ede4aebdaffe2e8b2d5fdc88",
    "DINOv2": "8883fbf7b3cff5291d631686f2f10bf97853d56871d90c5ba2a53797c643505e",
    "Franca": "9a3cb2f5ea115994a94be75d41e5ed939580a55466442f30ce8406aa5c1e9743",
    "SigLIPv2": "a433b9359ee4d84ab64a3bd445603781898ec74ef84e519eb8123ae7f4f5e513",
}


def test_only_the_fingerprint_of_siglip_changed_with_the_order_of_its_passes() -> None:
    footers = {name: plan_encoder(name, weights="random", device="cpu").footer() for name in NAMES}
    assert footers["SigLIPv2"]["recipe"]["resize_order"] == "horizontal first"
    former = {key: value for key, value in footers["SigLIPv2"]["recipe"].items() if key != "resize_order"}
    before = {**footers, "SigLIPv2": {**footers["SigLIPv2"], "recipe": former}}
    assert {name: recipe_fingerprint(footer) for name, footer in before.items()} == FINGERPRINTS
    now = {name: recipe_fingerprint(footer) for name, footer in footers.items()}
    assert {name for name in NAMES if now[name] != FINGERPRINTS[name]} == {"SigLIPv2"}
    stated = {"schema_version": SCHEMA_VERSION}
    old, new = ({**footer["SigLIPv2"], **stated} for footer in (before, footers))
    assert differing_fields(old, new) == ["recipe.resize_order"]


@pytest.mark.parametrize("name", NAMES)
def test_widths_are_the_contracts_or_the_networks_own(name: str) -> None:
    spec = get_model(name)

    def width(choice: str | int | None) -> int:
        return plan_encoder(name, weights="random", width=choice).width

    assert width("contract") == width(None) == width(spec.width) == spec.width
    assert width("native") == width(spec.native_width) == spec.native_width
    for wrong in ("wide", 100, 0, -1):
        with pytest.raises(SettingsError, match="width"):
            width(wrong)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"precision": "half"}, SettingsError),
        ({"device": "tpu"}, SettingsError),
        ({"device": "cuda:"}, SettingsError),
        ({"weights": "/nowhere"}, WeightsError),
        ({"model": "CLIPP"}, UnknownNameError),
    ],
)
def test_what_has_no_meaning_is_refused(options: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        plan_encoder(**{"model": "CLIP", "weights": "random", **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match="cuda"):
        plan_encoder("CLIP", weights="random", device="cuda").load()


def test_random_weights_tell_images_apart(random_encoder: Encoder) -> None:
    images = [drawing(hue, number) for hue in range(3) for number in range(2)]
    vectors = random_encoder.encode(np.stack([random_encoder.pixels(image) for image in images]))
    assert vectors.shape == (6, random_encoder.plan.spec.native_width)
    cosines = vectors @ vectors.T
    hues = np.arange(6) // 2
    assert cosines[hues[:, None] != hues].mean() < 0.9, "different images get clearly different vectors"
    np.fill_diagonal(cosines, -1)
    assert (hues[cosines.argmax(axis=1)] == hues).mean() >= 0.8, "similar images get similar vectors"


@pytest.mark.parametrize("name", ["CLIP", "Franca", "SigLIPv2"])
def test_loading_is_silent(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    plan_encoder(name, weights="random", device="cpu").load()
    assert capfd.readouterr() == ("", "")


def test_encode_checks_its_input_and_closes(random_encoder: Encoder) -> None:
    empty = random_encoder.encode(np.zeros((0, 224, 224, 3), np.uint8))
    assert (empty.shape, empty.dtype) == ((0, random_encoder.plan.width), np.float32)
    for wrong in (np.zeros((1, 224, 224, 3), np.float32), np.zeros((224, 224, 3), np.uint8)):
        with pytest.raises(EmbeddingsError, match="expected uint8"):
            random_encoder.encode(wrong)
    random_encoder.close()
    random_encoder.close()
    with pytest.raises(EmbeddingsError, match="closed"):
        random_encoder.encode(np.zeros((1, 224, 224, 3), np.uint8))


def test_random_parameters_depend_on_model_and_seed_only() -> None:
    shapes = {"blocks.0.weight": (8, 16), "norm.weight": (8,), "pos_embed": (1, 3, 8), "head.bias": (8,)}
    first = random_parameters(shapes, model="CLIP", seed=0)
    again = random_parameters(dict(reversed(shapes.items())), model="CLIP", seed=0)
    assert all(torch.equal(first[name], again[name]) for name in shapes)
    for other in ({"model": "DINOv2", "seed": 0}, {"model": "CLIP", "seed": 1}):
        assert not torch.equal(
            first["blocks.0.weight"], random_parameters(shapes, **other)["blocks.0.weight"]
        )
    assert torch.equal(first["norm.weight"], torch.ones(8))
    assert random_source("CLIP", 1).sha256 != random_source("CLIP", 0).sha256


def test_random_values_stay_what_their_declared_version_says() -> None:
    drawn = random_parameters({"blocks.0.weight": (4, 4)}, model="CLIP", seed=0)["blocks.0.weight"]
    expected = [0.44340861, -0.35994279, -0.42798281, -0.10275629]  # of version 1
    assert drawn.flatten()[:4].tolist() == pytest.approx(expected, abs=1e-6)
