"""Preprocessing: equal to torchvision's transforms for every size and mode, nearly so in `fast`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_pixels import published_pixels
from torchvision import transforms

from embeddings_assets.encoders.families import clip, dinov2, franca, siglip2
from embeddings_assets.encoders.recipe import Recipe
from embeddings_assets.errors import ImageError, Reason
from embeddings_assets.io.images import decode_image

BICUBIC, BILINEAR = transforms.InterpolationMode.BICUBIC, transforms.InterpolationMode.BILINEAR
RECIPES = {"CLIP": clip.RECIPE, "DINOv2": dinov2.RECIPE, "Franca": franca.RECIPE, "SigLIPv2": siglip2.RECIPE}


def to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


# Each model's own published transform, written with torchvision.
PUBLISHED = {
    "CLIP": transforms.Compose([transforms.Resize(224, BICUBIC), transforms.CenterCrop(224), to_rgb]),
    "DINOv2": transforms.Compose([to_rgb, transforms.Resize(256, BICUBIC), transforms.CenterCrop(224)]),
    # torchvision calls Pillow, whose order of passes has changed: here too, the horizontal one comes first.
    "SigLIPv2": transforms.Compose(
        [
            to_rgb,
            lambda image: transforms.functional.resize(image, [image.height, 224], BILINEAR),
            transforms.Resize((224, 224), BILINEAR),
        ]
    ),
}
PUBLISHED["Franca"] = PUBLISHED["DINOv2"]
SIZES = [(500, 375), (375, 500), (333, 500), (500, 333), (225, 224), (224, 227), (1, 1), (3, 90), (640, 201)]
SIZES += [(224, 224), (256, 256), (1024, 683), (501, 374), (90, 91), (227, 226), (449, 224)]
# More than twice as tall as wide: Pillow 13 would resize these vertically first for every model.
TALL = [(300, 900), (257, 530), (231, 470)]


def picture(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    width, height = size
    random = np.random.default_rng(width * 10_007 + height)
    coarse = random.integers(0, 256, (7, 9, 4), dtype=np.uint8)
    smooth = Image.fromarray(coarse, "RGBA").resize(size, Image.Resampling.BICUBIC)
    return smooth.convert(mode) if mode in ("RGBA", "LA") else smooth.convert("RGB").convert(mode)


@pytest.mark.parametrize("model", RECIPES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pixels_equal_torchvisions_on_every_size(model: str, size: tuple[int, int]) -> None:
    image = picture(size)
    assert np.array_equal(RECIPES[model].pixels(image), np.asarray(PUBLISHED[model](image)))


@pytest.mark.parametrize("model", RECIPES)
@pytest.mark.parametrize("size", SIZES + TALL, ids=lambda size: f"{size[0]}x{size[1]}")
def test_pixels_equal_those_of_an_independent_implementation(model: str, size: tuple[int, int]) -> None:
    image = picture(size)
    assert np.array_equal(RECIPES[model].pixels(image), published_pixels(model, np.asarray(image)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_an_image_resized_in_its_own_mode_equals_the_independent_implementation(mode: str) -> None:
    if mode == "I;16":  # black beside white: sums overshoot both
        image = Image.fromarray((np.indices((620, 300)).sum(axis=0) // 5 % 2 * 65535).astype(np.uint16))
    else:
        image = picture((300, 620), mode)
    palette = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3) if mode == "P" else None
    found = RECIPES["CLIP"].pixels(image)
    assert np.array_equal(found, published_pixels("CLIP", np.asarray(image), mode, palette))


@pytest.mark.parametrize("model", ["CLIP", "DINOv2", "SigLIPv2"])
@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "LA", "CMYK", "YCbCr"])
def test_pixels_equal_torchvisions_in_every_mode(model: str, mode: str) -> None:
    image = picture((301, 263), mode)
    pixels = RECIPES[model].pixels(image)
    assert np.array_equal(pixels, np.asarray(PUBLISHED[model](image)))
    assert (pixels.shape, pixels.dtype) == ((224, 224, 3), np.uint8)


@pytest.mark.parametrize("model", RECIPES)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_fast_pixels_differ_rarely_and_by_little(model: str, mode: str) -> None:
    image = picture((437, 301), mode)
    exact, fast = RECIPES[model].pixels(image), RECIPES[model].pixels_fast(image)
    assert (fast.shape, fast.dtype) == ((224, 224, 3), np.uint8)
    assert np.abs(exact.astype(int) - fast).max() <= 2
    assert (exact != fast).mean() < 0.03


@pytest.mark.parametrize("model", ["CLIP", "DINOv2"])
def test_a_strip_that_would_fill_the_memory_is_refused(model: str) -> None:
    strip = Image.new("RGB", (1, 30_000))
    for apply in (RECIPES[model].pixels, RECIPES[model].pixels_fast):
        with pytest.raises(ImageError) as caught:
            apply(strip)
        assert caught.value.reason is Reason.OVERSIZED
        assert "1 x 30000" in caught.value.detail


def test_a_squash_does_not_fill_the_memory_between_its_passes() -> None:
    with pytest.raises(ImageError) as caught:
        RECIPES["SigLIPv2"].pixels(Image.new("L", (1, 500_000)))
    assert caught.value.reason is Reason.OVERSIZED


@pytest.mark.parametrize("model", RECIPES)
def test_every_tricky_file_that_decodes_gives_the_published_pixels(model: str, shared: Path) -> None:
    compared = 0
    for path in sorted((shared / "data" / "tricky").rglob("*")):
        if not path.is_file() or path.suffix == ".md":
            continue
        try:
            image = decode_image(path)
        except ImageError:
            continue
        published = np.asarray(PUBLISHED[model](image))
        np.testing.assert_array_equal(RECIPES[model].pixels(image), published, err_msg=path.name)
        assert RECIPES[model].pixels_fast(image).shape == (224, 224, 3), path.name
        compared += 1
    assert compared > 80


def test_the_caller_keeps_its_image() -> None:
    image = picture((90, 91), "P")
    before = (image.mode, image.size, image.tobytes())
    for recipe in RECIPES.values():
        recipe.pixels(image)
        recipe.pixels_fast(image)
    assert (image.mode, image.size, image.tobytes()) == before


@pytest.mark.parametrize("model", RECIPES)
def test_a_recipe_is_json_and_says_all_that_it_does(model: str) -> None:
    recipe = RECIPES[model]
    written = json.loads(json.dumps(recipe.as_dict()))
    assert written == recipe.as_dict()
    again = Recipe(**{**written, "mean": tuple(written["mean"]), "std": tuple(written["std"])})
    assert again == recipe
