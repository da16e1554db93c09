"""Makes the package's `self_test_data`: `python tests/self_test_files.py`.

Drawings by a formula, in the formats and modes that datasets have, and what the published code gives of them,
computed in NumPy (published_pixels.py, published_networks.py).
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from published_networks import NETWORKS
from published_pixels import published_pixels

from embeddings_assets.catalog import MODELS
from embeddings_assets.encoders.family import Family, family_of
from embeddings_assets.encoders.self_test import (
    DATA,
    RECIPES,
    TINY,
    image_digest,
    tiny_parameters,
    tiny_pixels,
)

# The order of the package's RECIPES.
_RECIPE_MODELS = dict(zip(RECIPES, ("CLIP", "DINOv2", "SigLIPv2"), strict=True))


def drawing(width: int, height: int, channels: int) -> np.ndarray:
    """uint8 [height, width, channels]: waves that beat against each other, with sharp edges."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    planes = []
    for channel in range(channels):
        a, b = 3 + 2 * channel, 7 - channel
        wave = np.abs((x * x * a // 64 + y * b * 5) % 510 - 255)
        squares = ((x // (9 + channel) + y // 13) % 2) * 90
        planes.append(np.clip(wave + squares - 45, 0, 255))
    return np.stack(planes, axis=2).astype(np.uint8)


def _image(width: int, height: int, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(drawing(width, height, 1)[..., 0].astype(np.uint16) * 2)
    pixels = drawing(width, height, {"L": 1, "P": 3, "RGB": 3}.get(mode, 4))
    if mode == "P":
        return Image.fromarray(pixels).quantize(64, dither=Image.Dither.NONE)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def write_files(folder: Path) -> None:
    """Write the images. Other versions may compress them otherwise: records are of the files as they are."""
    jpeg = {"quality": 70}
    for name, size, mode, options in (
        ("photo.jpg", (161, 121), "RGB", {**jpeg, "subsampling": "4:2:0"}),
        ("tall.jpg", (270, 571), "RGB", {"quality": 40, "subsampling": "4:2:2", "progressive": True}),
        ("wide.jpg", (310, 61), "RGB", {**jpeg, "subsampling": "4:4:4"}),
        ("grey.jpg", (90, 131), "L", jpeg),
        ("cmyk.jpg", (77, 58), "CMYK", jpeg),
        ("tiny.png", (5, 3), "RGBA", {}),
        ("palette.png", (101, 80), "P", {"transparency": 3}),
        ("grey16.png", (61, 50), "I;16", {}),
    ):
        image = _image(*size, mode)
        if name == "tall.jpg":  # softer, so that the largest of the files stays small
            image = image.filter(ImageFilter.BoxBlur(6))
        image.save(folder / name, **options)


def records_of(name: str) -> dict[str, str]:
    """What `expected.json` says of a file, from its pixels by NumPy."""
    with Image.open(DATA / name) as image:
        image.load()
    palette = None
    if image.mode == "P":
        palette = np.zeros((256, 3), dtype=np.uint8)
        found = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
        palette[: len(found)] = found
    pixels = np.asarray(image)
    return {
        "decoded": image_digest(image),
        **{
            recipe: hashlib.sha256(
                np.ascontiguousarray(published_pixels(model, pixels, image.mode, palette)).tobytes()
            ).hexdigest()
            for recipe, model in _RECIPE_MODELS.items()
        },
    }


def vectors_of(encoder: str, family: Family) -> np.ndarray:
    """Unit vectors of the tiny network of a family, float64 [2, 64]."""
    mean, std = (np.array(values)[None, :, None, None] for values in (family.RECIPE.mean, family.RECIPE.std))
    pixels = (tiny_pixels().transpose(0, 3, 1, 2) / 255.0 - mean) / std
    parameters = tiny_parameters(family.shapes(TINY))
    doubles = {name: values.astype(np.float64) for name, values in parameters.items()}
    return NETWORKS[encoder](pixels, doubles, TINY.heads)


def main() -> None:
    DATA.mkdir(exist_ok=True)
    write_files(DATA)
    expected = {
        "pixels": {path.name: records_of(path.name) for path in sorted(DATA.glob("*.[jp][pn]g"))},
        "vectors": {
            spec.encoder: vectors_of(spec.encoder, family_of(spec)).astype(np.float32).tolist()
            for spec in MODELS
        },
    }
    (DATA / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
