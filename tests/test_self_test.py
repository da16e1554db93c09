"""The self-test: its records come from elsewhere, it passes here, and it refuses what changes a vector."""

import errno
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial, partialmethod
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from image_tree import DATASET, write_tree
from PIL import Image, JpegImagePlugin
from published_pixels import published_pixels
from self_test_files import FILES, drawing, drawn, records_of, vectors_of

from embeddings_assets import process_model
from embeddings_assets.catalog import MODELS, get_model
from embeddings_assets.cli.doctor import examine
from embeddings_assets.encoders import recipe as preprocessing
from embeddings_assets.encoders import self_test
from embeddings_assets.encoders.family import family_of
from embeddings_assets.encoders.plan import plan_encoder
from embeddings_assets.encoders.recipe import Recipe
from embeddings_assets.encoders.self_test import (
    DATA,
    MAX_DIFFERENCE,
    PROVEN,
    network_fault,
    pixel_fault,
    recorded,
    tiny_vectors,
)
from embeddings_assets.errors import EmbeddingsError, SelfTestError
from embeddings_assets.io.images import decode_image
from embeddings_assets.settings import DataPaths, Settings

NAMES = [model.name for model in MODELS]
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def not_yet_run() -> Iterator[None]:
    """The self-test as it is in a process that has not run it."""
    for remembered in (pixel_fault, network_fault):
        remembered.cache_clear()
    yield
    for remembered in (pixel_fault, network_fault):
        remembered.cache_clear()


def test_it_passes_here() -> None:
    assert pixel_fault() is None
    assert [network_fault(model, "cpu") for model in MODELS] == [None] * 4


@pytest.mark.parametrize(("name", "mode"), [(name, mode) for name, _, mode, _, _ in FILES])
def test_the_recorded_pixels_are_those_of_an_independent_implementation(name: str, mode: str) -> None:
    assert recorded()["pixels"][name] == records_of(name, mode)


def test_the_files_are_drawings_by_the_formula() -> None:
    assert {path.name for path in DATA.iterdir()} == {"expected.json", *(name for name, *_ in FILES)}
    for name, size, mode, blur, _ in FILES:
        if blur or mode == "P":
            continue  # softened by Pillow, or with its choice of colours
        pixels = np.asarray(decode_image(DATA / name)).astype(int)
        off = np.abs(pixels - drawn(*size, mode)).mean()
        assert off == 0 if name.endswith(".png") else off < 20, name


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_vectors_are_those_of_an_independent_implementation(name: str) -> None:
    spec = get_model(name)
    expected = np.array(recorded()["vectors"][spec.encoder])
    assert np.abs(expected - vectors_of(spec.encoder, family_of(spec))).max() <= 1e-7
    assert np.abs(expected - tiny_vectors(spec, "cpu")).max() <= MAX_DIFFERENCE["cpu"]


def test_every_built_in_recipe_is_tested() -> None:
    def steps(recipe: Recipe) -> tuple[object, ...]:
        return (recipe.rgb_first, recipe.resize, recipe.resize_to, recipe.interpolation, recipe.size)

    tested = {steps(recipe) for recipe in self_test.RECIPES.values()}
    assert tested == {steps(family_of(model).RECIPE) for model in MODELS}


def _decode_by_pillows_own_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """YCbCr to RGB by Pillow's tables in the place of libjpeg's: off by one here and there."""
    load = JpegImagePlugin.JpegImageFile.load

    def converted(image: Image.Image) -> object:
        if image.mode != "RGB":
            return load(image)
        image.draft("YCbCr", image.size)
        access = load(image)
        image._im, image._mode = image.im.convert("RGB", 0), "RGB"
        return access

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", converted)


def _complement_cmyk(monkeypatch: pytest.MonkeyPatch) -> None:
    convert = Image.Image.convert

    def converted(image: Image.Image, mode: str, *arguments: object, **options: object) -> Image.Image:
        if image.mode == "CMYK":
            return Image.fromarray(255 - np.asarray(image)[..., :3])
        return convert(image, mode, *arguments, **options)

    monkeypatch.setattr(Image.Image, "convert", converted)


def _round_the_crop_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "_offset", lambda recipe, length: (length - recipe.size) // 2)


def _resize_vertically_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one call of Pillow 13.0 does with a tall image."""

    def resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        return image.resize((image.width, size[1]), resample).resize(size, resample)

    monkeypatch.setattr(preprocessing, "_resize", resize)


def _resize_with_a_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda image, size, resample: resize(image, size, resample, reducing_gap=1.5)
    )


def _fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def crop(image: Image.Image, box: object) -> Image.Image:
        raise TypeError("crop takes four arguments")

    monkeypatch.setattr(Image.Image, "crop", crop)


@pytest.mark.parametrize(
    "change",
    [
        _decode_by_pillows_own_colours,
        _complement_cmyk,
        _round_the_crop_down,
        _resize_vertically_first,
        _resize_with_a_shortcut,
        _fail,
    ],
)
def test_other_pixels_are_refused_where_images_are_prepared(
    change: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    change(monkeypatch)
    plan = plan_encoder("DINOv2", weights="random", device="cpu")
    with pytest.raises(SelfTestError) as refused:
        plan.to_pixels()
    assert PIL.__version__ in refused.value.problem
    assert f"'Pillow=={PIL.__version__}'" in str(refused.value.remedy)
    assert not caplog.records
    for model in NAMES:
        plan_encoder(model, weights="random", device="cpu", precision="fast").to_pixels()
    assert [record.levelname for record in caplog.records] == ["WARNING"], "once, not for every model"


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="before 13.0, one call does the same")
def test_a_resize_in_one_call_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "_resize", lambda image, *how: image.resize(*how))
    with pytest.raises(SelfTestError, match=r"tall\.jpg"):
        plan_encoder("CLIP", weights="random", device="cpu").to_pixels()


def test_a_shortage_of_the_machine_is_no_fault_of_a_library_and_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = plan_encoder("CLIP", weights="random", device="cpu")
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        patch.setattr(os, "open", refuse)
        with pytest.raises(EmbeddingsError) as short:
            plan.to_pixels()
    assert not isinstance(short.value, SelfTestError)
    assert plan.to_pixels()


def test_what_pillow_raises_is_a_fault_though_it_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def crop(*_: object) -> Image.Image:
        raise OSError("broken data stream")

    monkeypatch.setattr(Image.Image, "crop", crop)
    assert pixel_fault() is not None


def test_a_renamed_class_is_a_fault_and_an_absent_package_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(*_: object) -> torch.nn.Module:
        raise ImportError("cannot import name 'Dinov2Model'")

    def absent(*_: object) -> torch.nn.Module:
        raise ModuleNotFoundError("No module named 'no_such_package'", name="no_such_package")

    spec = get_model("DINOv2")
    monkeypatch.setattr(family_of(spec), "assemble", absent)
    with pytest.raises(ModuleNotFoundError):
        network_fault(spec, "cpu")
    monkeypatch.setattr(family_of(spec), "assemble", renamed)
    assert network_fault(spec, "cpu") is not None


def test_a_version_that_nobody_has_tried_is_what_is_to_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", {"Pillow": "14.1.0"}.__getitem__)
    _round_the_crop_down(monkeypatch)
    fault = pixel_fault()
    assert fault is not None
    assert fault.remedy == f"pip install 'Pillow>={PROVEN['Pillow'][0]},<={PROVEN['Pillow'][1]}'"
    assert "Pillow 14.1.0" in fault.problem


def _another_gelu(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exact GELU for the others', its approximation for the exact one, and GELU for Franca's SiLU."""
    gelu = torch.nn.functional.gelu
    if model == "CLIP":
        import open_clip.transformer

        monkeypatch.setattr(open_clip.transformer.QuickGELU, "forward", lambda _, x: gelu(x))
    elif model == "Franca":
        monkeypatch.setattr(torch.nn.functional, "silu", lambda x, **_: gelu(x))
    else:
        from transformers import activations

        approximate = {"DINOv2": "tanh", "SigLIPv2": "none"}[model]
        for name in ("GELUActivation", "GELUTanh", "PytorchGELUTanh"):  # whichever this transformers has
            if hasattr(activations, name):
                forward = partialmethod(_gelu, approximate=approximate)
                monkeypatch.setattr(getattr(activations, name), "forward", forward)


def _gelu(self: object, x: torch.Tensor, approximate: str) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate=approximate)


def _other_epsilon(factor: float, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = torch.nn.functional.layer_norm
    monkeypatch.setattr(
        torch.nn.functional,
        "layer_norm",
        lambda x, shape, weight=None, bias=None, eps=1e-5: norm(x, shape, weight, bias, eps * factor),
    )


def _sharper_attention(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, *rest, **options: attention(query * 1.001, *rest, **options),
    )


def _not_finite(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = torch.nn.functional.layer_norm
    monkeypatch.setattr(torch.nn.functional, "layer_norm", lambda *given, **by: norm(*given, **by) / 0)


@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize(
    "change",
    [
        _another_gelu,
        partial(_other_epsilon, 10.0),
        partial(_other_epsilon, 0.1),
        partial(_other_epsilon, 0.0),
        _sharper_attention,
        _not_finite,
    ],
    ids=["gelu", "epsilon x 10", "epsilon / 10", "no epsilon", "attention", "not finite"],
)
def test_another_network_is_refused(
    change: Callable[[str, pytest.MonkeyPatch], None], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(model, monkeypatch)
    fault = network_fault(get_model(model), "cpu")
    assert fault is not None
    assert ("open_clip_torch==" if model == "CLIP" else "transformers==") in fault.remedy


def test_exact_is_refused_and_fast_warned_where_weights_are_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _another_gelu("CLIP", monkeypatch)
    with pytest.raises(SelfTestError):
        plan_encoder("CLIP", weights="random", device="cpu").load()
    plan_encoder("CLIP", weights="random", device="cpu", precision="fast").load()
    assert "WARNING" in [record.levelname for record in caplog.records]


def test_nothing_is_stored_where_it_fails(monkeypatch: pytest.MonkeyPatch, paths: DataPaths) -> None:
    _another_gelu("SigLIPv2", monkeypatch)
    write_tree(paths.raw.parent, per_class=1)
    with pytest.raises(SelfTestError):
        process_model(
            "SigLIPv2",
            DATASET,
            data_dir=paths.processed,
            output_dir=paths.embeddings,
            split="test",
            weights="random",
            device="cpu",
        )
    assert not list(paths.embeddings.rglob("*.parquet"))


def test_the_doctor_shows_it(monkeypatch: pytest.MonkeyPatch, paths: DataPaths) -> None:
    settings = Settings(data_root=paths.raw.parent, weights=str(paths.raw.parent / "weights"))

    def line() -> tuple[str, str]:
        return next((line.state, line.remedy) for line in examine(settings) if line.item == "self-test")

    assert line() == ("ready", "")
    pixel_fault.cache_clear()
    _round_the_crop_down(monkeypatch)
    state, remedy = line()
    assert (state, "Pillow==" in remedy) == ("wrong", True)


def test_the_part_before_decoding_needs_no_torch() -> None:
    code = (
        "import sys; from embeddings_assets.encoders.plan import plan_encoder\n"
        "from embeddings_assets.encoders.self_test import pixel_fault\n"
        "plan_encoder('CLIP', weights='random', device='cpu').to_pixels()\n"
        "print(pixel_fault.cache_info().currsize, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1", "False"]


def test_the_proven_versions_are_those_of_the_environments_that_are_tested() -> None:
    for lock, which in (("requirements-lowest.lock", 0), ("requirements.lock", 1)):
        lines = (REPOSITORY / lock).read_text().splitlines()
        pins = dict(line.split(" ")[0].split("==") for line in lines if "==" in line and line[0] != " ")
        for library, versions in PROVEN.items():
            assert pins[library.lower().replace("_", "-")] == versions[which], (lock, library)


@pytest.mark.parametrize("model", ["CLIP", "DINOv2", "SigLIPv2"])
@pytest.mark.parametrize("size", [(300, 900), (301, 605), (230, 310), (700, 180), (5, 4)])
def test_preprocessing_equals_the_independent_implementation(model: str, size: tuple[int, int]) -> None:
    pixels = drawing(*size, 3)
    found = family_of(get_model(model)).RECIPE.pixels(Image.fromarray(pixels))
    assert np.array_equal(found, published_pixels(model, pixels))
