"""The self-test: its records come from elsewhere, it passes here, and it refuses what changes a vector."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from image_tree import DATASET, write_tree
from PIL import Image, JpegImagePlugin
from published_pixels import published_pixels
from self_test_files import drawing, records_of, vectors_of

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
    tiny_vectors,
)
from embeddings_assets.errors import SelfTestError
from embeddings_assets.io.images import decode_image
from embeddings_assets.settings import DataPaths, Settings

NAMES = [model.name for model in MODELS]
FILES = sorted(path.name for path in DATA.iterdir() if path.suffix != ".json")
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


@pytest.mark.parametrize("name", FILES)
def test_the_recorded_pixels_are_those_of_an_independent_implementation(name: str) -> None:
    assert self_test.recorded()["pixels"][name] == records_of(name)


@pytest.mark.parametrize("name", FILES)
def test_another_decoder_gives_the_recorded_files(name: str) -> None:
    from torchvision.io import ImageReadMode, decode_image, read_file

    theirs = decode_image(read_file(str(DATA / name)), mode=ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
    with Image.open(DATA / name) as image:
        ours = np.asarray(image)
    ours = ours[..., None] if ours.ndim == 2 else ours
    # torchvision leaves Adobe's inverted inks as they are stored.
    assert np.array_equal(theirs, 255 - ours if image.mode == "CMYK" else ours)


def test_the_files_are_drawings_by_the_formula() -> None:
    for name in ("photo.jpg", "wide.jpg", "grey.jpg", "cmyk.jpg", "tiny.png"):
        pixels = np.asarray(decode_image(DATA / name))
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        expected = drawing(pixels.shape[1], pixels.shape[0], channels).reshape(pixels.shape)
        off = np.abs(pixels.astype(int) - expected).mean()
        assert off == 0 if name.endswith(".png") else off < 20, name


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_vectors_are_those_of_an_independent_implementation(name: str) -> None:
    spec = get_model(name)
    expected = np.array(self_test.recorded()["vectors"][spec.encoder])
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


@pytest.mark.parametrize(
    "change",
    [_decode_by_pillows_own_colours, _complement_cmyk, _round_the_crop_down, _resize_vertically_first],
)
def test_other_pixels_are_refused(
    change: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    change(monkeypatch)  # type: ignore[operator]
    with pytest.raises(SelfTestError) as refused:
        plan_encoder("DINOv2", weights="random", device="cpu")
    assert PIL.__version__ in refused.value.problem
    assert f"Pillow=={PROVEN['Pillow'][1]}" in str(refused.value.remedy)
    assert not caplog.records
    plan_encoder("DINOv2", weights="random", device="cpu", precision="fast")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="before 13.0, one call does the same")
def test_a_resize_in_one_call_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocessing, "_resize", lambda image, *how: image.resize(*how))
    with pytest.raises(SelfTestError, match=r"tall\.jpg"):
        plan_encoder("CLIP", weights="random", device="cpu")


def _another_gelu(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip.transformer
    import transformers.activations as activations

    if model == "CLIP":
        monkeypatch.setattr(
            open_clip.transformer.QuickGELU, "forward", lambda _, x: torch.nn.functional.gelu(x)
        )
    else:
        names = ("GELUActivation", "GELUTanh") if hasattr(activations, "GELUTanh") else ("GELUActivation",)
        approximate = {"DINOv2": "tanh", "SigLIPv2": "none"}[model]
        for name in (*names, "PytorchGELUTanh"):
            if hasattr(activations, name):
                monkeypatch.setattr(
                    getattr(activations, name),
                    "forward",
                    lambda _, x: torch.nn.functional.gelu(x, approximate=approximate),
                )


@pytest.mark.parametrize(("model", "library"), [("CLIP", "open_clip_torch"), ("DINOv2", "transformers")])
def test_another_gelu_is_refused(
    model: str, library: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _another_gelu(model, monkeypatch)
    with pytest.raises(SelfTestError) as refused:
        plan_encoder(model, weights="random", device="cpu").load()
    assert f"{library}=={PROVEN[library][1]}" in str(refused.value.remedy)
    plan_encoder(model, weights="random", device="cpu", precision="fast").load()
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


def test_planning_runs_the_part_that_needs_no_torch() -> None:
    code = (
        "import sys; from embeddings_assets.encoders.plan import plan_encoder\n"
        "from embeddings_assets.encoders.self_test import pixel_fault\n"
        "plan_encoder('CLIP', weights='random', device='cpu')\n"
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
