"""Makes the package's `self_test_data`: `python tests/self_test_files.py`.

Drawings by a formula, in the formats and modes that datasets have, and what the published code gives of them:
decoded by torchvision, preprocessed and embedded in NumPy (published_pixels.py, published_networks.py).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from published_networks import NETWORKS
from published_pixels import published_pixels
from torchvision.io import ImageReadMode, decode_image

from embeddings_assets.catalog import MODELS
from embeddings_assets.encoders.family import Family, family_of
from embeddings_assets.encoders.self_test import (
    DATA,
    RECIPES,
    TINY,
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


# Name, size, mode, radius of a blur, how it is stored. `photo` shrinks fourfold, `tall` changes with the
# order of a resize's passes, `grey16` has sums beyond black and white.
FILES: tuple[tuple[str, tuple[int, int], str, int, dict[str, Any]], ...] = (
    ("photo.jpg", (923, 481), "RGB", 9, {"quality": 20, "subsampling": "4:2:0"}),
    ("tall.jpg", (270, 571), "RGB", 6, {"quality": 40, "subsampling": "4:2:2", "progressive": True}),
    ("wide.jpg", (310, 61), "RGB", 0, {"quality": 70, "subsampling": "4:4:4"}),
    ("grey.jpg", (90, 131), "L", 0, {"quality": 70}),
    ("cmyk.jpg", (77, 58), "CMYK", 0, {"quality": 70}),
    ("tiny.png", (5, 3), "RGBA", 0, {}),
    ("alpha.png", (30, 41), "LA", 0, {}),
    ("palette.png", (101, 80), "P", 0, {"transparency": 3}),
    ("bits.png", (61, 43), "1", 0, {"bits": 1}),
    ("grey16.png", (61, 50), "I;16", 0, {}),
)
_CHANNELS = {"L": 1, "1": 1, "I;16": 1, "LA": 2, "P": 3, "RGB": 3}


def drawn(width: int, height: int, mode: str) -> np.ndarray:
    """A drawing in the values of a mode: [height, width(, channels)]."""
    pixels = drawing(width, height, _CHANNELS.get(mode, 4)).squeeze()
    if mode == "1":
        return pixels > 127
    return np.where(pixels > 127, 65535, 0).astype(np.uint16) if mode == "I;16" else pixels


def _image(width: int, height: int, mode: str) -> Image.Image:
    pixels = drawn(width, height, mode)
    if mode == "P":
        return Image.fromarray(pixels).quantize(64, dither=Image.Dither.NONE)
    if mode in ("1", "I;16"):
        return Image.fromarray(pixels)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def write_files(folder: Path) -> None:
    """Write the images. Other versions may compress them otherwise: records are of the files as they are."""
    for name, size, mode, blur, options in FILES:
        image = _image(*size, mode)
        (image.filter(ImageFilter.BoxBlur(blur)) if blur else image).save(folder / name, **options)


def decoded_elsewhere(name: str, mode: str) -> np.ndarray:
    """A file's pixels by torchvision's decoders, in the values of Pillow's mode."""
    data = torch.frombuffer(bytearray((DATA / name).read_bytes()), dtype=torch.uint8)
    pixels = decode_image(data, mode=ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy().squeeze()
    if mode == "CMYK":
        return 255 - pixels  # as they are stored: Adobe inverts them
    return pixels > 0 if mode == "1" else pixels


def records_of(name: str, mode: str) -> dict[str, str]:
    """What `expected.json` says of a file."""
    pixels = decoded_elsewhere(name, mode)
    palette = None
    if mode == "P":
        with Image.open(DATA / name) as image:
            found = np.array(image.getpalette(), dtype=np.uint8).reshape(-1, 3)
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[: len(found)] = found
    height, width = pixels.shape[:2]
    stored = np.packbits(pixels, axis=1) if mode == "1" else pixels
    header = f"{mode} {(width, height)} ".encode()
    records = {"decoded": hashlib.sha256(header + stored.tobytes()).hexdigest()}
    for recipe, model in _RECIPE_MODELS.items():
        prepared = np.ascontiguousarray(published_pixels(model, pixels, mode, palette))
        records[recipe] = hashlib.sha256(prepared.tobytes()).hexdigest()
    return records


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
        "pixels": {name: records_of(name, mode) for name, _, mode, _, _ in FILES},
        "vectors": {
            spec.encoder: vectors_of(spec.encoder, family_of(spec)).astype(np.float32).tolist()
            for spec in MODELS
        },
    }
    (DATA / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
