"""Preprocessing as data, and the two ways to apply it: Pillow (the reference) and uint8 tensors (`fast`).

Sizes follow torchvision: the longer side is truncated, the crop offset is rounded half to even. Other
libraries floor the offset, which shifts the crop of about a quarter of all image sizes by one pixel.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from embeddings_assets.errors import ImageError, Reason

# Pillow's own warning limit: a 1 x 30,000 strip would otherwise be enlarged to 1.5 billion pixels.
MAX_RESIZED_PIXELS = 89_478_485

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_PILLOW_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}  # what Pillow resizes in their place


@dataclass(frozen=True)
class Recipe:
    """How an image becomes the pixels of one encoder.

    `resize` "shorter" scales the shorter side to `resize_to` and crops the centre `size` x `size`;
    "squash" scales to `resize_to` x `resize_to` whatever the proportions. `rgb_first` converts to RGB
    before the resize; otherwise the image is resized and cropped in its own mode and converted last.
    `mean` and `std` apply to channels in [0, 1].

    The horizontal pass of a resize always comes first. `resize_order` says so in the recipe of a model whose
    earlier files may have been made in the other order.
    """

    rgb_first: bool
    resize: Literal["shorter", "squash"]
    resize_to: int
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int = 224
    resize_order: Literal["horizontal first"] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The recipe as JSON values, for the footer; an order that is not stated is left out."""
        stated = {name: value for name, value in asdict(self).items() if value is not None}
        return {**stated, "mean": list(self.mean), "std": list(self.std)}

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The reference pixels [size, size, 3], RGB, by Pillow.

        Raises:
            ImageError: `oversized`, where the proportions would make the resized image enormous.
        """
        if self.rgb_first:
            image = image.convert("RGB")
        width, height = self._resized(*image.size)
        if (width, height) != image.size:
            image = _resize(image, (width, height), _PILLOW_FILTERS[self.interpolation])
        left, top = self._offset(width), self._offset(height)
        image = image.crop((left, top, left + self.size, top + self.size))
        return np.array(image if self.rgb_first else image.convert("RGB"))

    def pixels_fast(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Nearly the reference pixels [size, size, 3], RGB, by torchvision's uint8 antialiased resize.

        About 0.3 % of the values of a photograph differ from `pixels`, by one level. Where the recipe
        converts last and the mode is neither RGB nor grey, the order matters, and Pillow does the work.

        Raises:
            ImageError: as `pixels`.
        """
        if not self.rgb_first and image.mode not in ("RGB", "L"):
            return self.pixels(image)
        import torch

        width, height = self._resized(*image.size)
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        # What torchvision's resize of uint8 tensors does, without the four seconds of importing it.
        pixels = torch.nn.functional.interpolate(
            pixels[None], (height, width), mode=self.interpolation, align_corners=False, antialias=True
        )[0]
        left, top = self._offset(width), self._offset(height)
        pixels = pixels[:, top : top + self.size, left : left + self.size]
        return pixels.permute(1, 2, 0).contiguous().numpy()

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.resize == "squash":
            resized = (self.resize_to, self.resize_to)
        else:
            scaled = int(self.resize_to * max(width, height) / min(width, height))
            resized = (self.resize_to, scaled) if width <= height else (scaled, self.resize_to)
        # After the horizontal pass the image still has its own height.
        if resized[0] * max(height, resized[1]) > MAX_RESIZED_PIXELS:
            raise ImageError(
                Reason.OVERSIZED,
                f"{width} x {height} pixels would be resized to {resized[0]} x {max(height, resized[1])}",
            )
        return resized

    def _offset(self, length: int) -> int:
        return round((length - self.size) / 2.0)


def _resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Resize an image, horizontal pass first: the same pixels under every Pillow from 12.0 on.

    In one call, Pillow 13.0 runs the vertical pass first where the height shrinks by more than twice as many
    pixels as the width (src/libImaging/Resample.c, ImagingResampleInner), and rounds between the passes.
    """
    if image.mode in ("1", "P"):
        return image.resize(size, resample)  # Pillow takes the nearest pixel, which has no passes
    if image.mode in _PREMULTIPLIED:
        return _resize(image.convert(_PREMULTIPLIED[image.mode]), size, resample).convert(image.mode)
    for step in ((size[0], image.height), size):
        if image.mode.startswith("I;16"):
            # Before Pillow 12.3, 16-bit sums beyond black or white wrap around; this conversion clips them.
            image = image.convert("I").resize(step, resample).convert(image.mode)
        else:
            image = image.resize(step, resample)
    return image
