"""Drawn images for the synthetic datasets: classes differ in hue, shape and count; every image is different.

The same arguments give the same bytes with the same Pillow.
"""

import colorsys
import math
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

JPEG_QUALITY = 90

# Outline of each shape: its corners, and the radius between two corners as a share of the radius at a corner.
_SHAPES = ((3, 0.5), (4, 0.7071), (5, 0.45), (32, 1.0), (4, 0.3), (6, 0.866))
_GREY_EVERY = 13
_BANNER_HEIGHT = 20


@dataclass(frozen=True)
class Look:
    """What decides how a dataset's images look. `banner`: the black strip at the foot of Aircraft images."""

    seed: str
    classes: int
    banner: bool = False


def draw_image(look: Look, label: int, index: int) -> Image.Image:
    """Image number `index` of the dataset, of class `label`: 160 to 480 px a side, RGB or greyscale."""
    rng = random.Random(f"{look.seed}/image/{index}")
    short, long = rng.randrange(160, 260), rng.randrange(280, 480)
    width, height = ((long, short), (short, long), (long, long))[index % 3]
    texture = Image.frombytes("RGB", (8, 6), rng.randbytes(8 * 6 * 3))
    image = Image.blend(
        Image.new("RGB", (width, height), (rng.randrange(90, 200),) * 3),
        texture.resize((width, height), Image.Resampling.BICUBIC),
        0.3,
    )
    draw = ImageDraw.Draw(image)
    first_hue = random.Random(look.seed).random()
    count = 1 + label % 4
    corners, inner = _SHAPES[label % len(_SHAPES)]
    for place in range(count):
        hue = first_hue + (label + rng.uniform(-0.2, 0.2)) / look.classes
        channels = colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.75, 1.0), rng.uniform(0.7, 1.0))
        radius = min(width, height) * rng.uniform(0.16, 0.22) * (1.6 if count == 1 else 1.0)
        angle = 2 * math.pi * place / count + rng.uniform(-0.3, 0.3)
        reach = 0.0 if count == 1 else min(width, height) * 0.27
        centre = (width / 2 + reach * math.cos(angle), height / 2 + reach * math.sin(angle))
        outline = _outline(centre, radius, corners, inner, rng.uniform(0, math.pi))
        draw.polygon(outline, fill=tuple(round(255 * channel) for channel in channels), outline=(20, 20, 20))
    if look.banner:
        draw.rectangle((0, height - _BANNER_HEIGHT, width, height), fill=(0, 0, 0))
    return image.convert("L") if index % _GREY_EVERY == 5 else image


def save_image(image: Image.Image, path: Path, *, as_png: bool = False) -> None:
    """Write a JPEG, or an RGBA PNG under the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if as_png:
        image.convert("RGBA").save(path, format="PNG")
    else:
        image.save(path, format="JPEG", quality=JPEG_QUALITY)


def _outline(
    centre: tuple[float, float], radius: float, corners: int, inner: float, turn: float
) -> list[tuple[float, float]]:
    return [
        (
            centre[0] + radius * (inner if step % 2 else 1.0) * math.cos(turn + math.pi * step / corners),
            centre[1] + radius * (inner if step % 2 else 1.0) * math.sin(turn + math.pi * step / corners),
        )
        for step in range(2 * corners)
    ]
