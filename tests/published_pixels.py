"""What the models' published code makes of an image, in NumPy: nothing of Pillow's is used.

Resampling is that of Pillow before 13.0 (src/libImaging/Resample.c): the horizontal pass first, each pass in
fixed point, rounded to eight bits. torchvision's Resize and CenterCrop decide the sizes.
"""

from collections.abc import Callable

import numpy as np

_PRECISION_BITS = 22
_SIZE = 224


def _bicubic(x: float) -> float:
    x, a = abs(x), -0.5
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0


def _bilinear(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


_FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
}


def _coefficients(length: int, resized: int, interpolation: str) -> np.ndarray:
    """float64 [resized, length], rows that sum to 1."""
    kernel, support = _FILTERS[interpolation]
    scale = length / resized
    stretch = max(scale, 1.0)
    found = np.zeros((resized, length))
    for index in range(resized):
        centre = (index + 0.5) * scale
        first = max(int(centre - support * stretch + 0.5), 0)
        last = min(int(centre + support * stretch + 0.5), length)
        weights = [kernel((at - centre + 0.5) * (1.0 / stretch)) for at in range(first, last)]
        found[index, first:last] = np.array(weights) / sum(weights)
    return found


def _along_first(pixels: np.ndarray, resized: int, interpolation: str) -> np.ndarray:
    """One pass over the first axis of [length, ...]; uint8 in fixed point, uint16 in floating point."""
    if len(pixels) == resized:
        return pixels
    weights = _coefficients(len(pixels), resized, interpolation)
    flat = pixels.reshape(len(pixels), -1)
    if pixels.dtype == np.uint16:
        summed = np.floor(weights @ flat + 0.5)
        return np.clip(summed, 0, 65535).astype(np.uint16).reshape(resized, *pixels.shape[1:])
    fixed = np.trunc(weights * 2**_PRECISION_BITS + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
    summed = (fixed @ flat.astype(np.int64) + 2 ** (_PRECISION_BITS - 1)) >> _PRECISION_BITS
    return np.clip(summed, 0, 255).astype(np.uint8).reshape(resized, *pixels.shape[1:])


def resize(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """[height, width, ...] to (width, height) pixels, the horizontal pass first."""
    horizontal = _along_first(pixels.swapaxes(0, 1), size[0], interpolation).swapaxes(0, 1)
    return _along_first(horizontal, size[1], interpolation)


def _nearest(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (
        np.floor((np.arange(resized) + 0.5) * length / resized).astype(int)
        for length, resized in ((pixels.shape[0], size[1]), (pixels.shape[1], size[0]))
    )
    return pixels[rows][:, columns]


def _multiplied(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b / 255, rounded: MULDIV255 of Pillow's ImagingUtils.h."""
    product = a.astype(np.int64) * b + 128
    return ((product >> 8) + product) >> 8


def _resize_in_mode(pixels: np.ndarray, mode: str, size: tuple[int, int], interpolation: str) -> np.ndarray:
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    if mode in ("P", "1"):
        return _nearest(pixels, size)
    if mode not in ("RGBA", "LA"):
        return resize(pixels, size, interpolation)
    alpha = pixels[..., -1:]
    premultiplied = np.concatenate([_multiplied(pixels[..., :-1], alpha).astype(np.uint8), alpha], axis=2)
    colours, alpha = np.split(resize(premultiplied, size, interpolation).astype(np.int64), [-1], axis=2)
    plain = np.where((alpha == 0) | (alpha == 255), colours, 255 * colours // np.maximum(alpha, 1))
    return np.concatenate([np.minimum(plain, 255), alpha], axis=2).astype(np.uint8)


def to_rgb(pixels: np.ndarray, mode: str, palette: np.ndarray | None = None) -> np.ndarray:
    """uint8 [height, width, 3]: without alpha, 16-bit values clipped, CMYK by its complement."""
    if mode == "RGB":
        return pixels
    if mode == "RGBA":
        return pixels[..., :3]
    if mode == "LA":
        return np.repeat(pixels[..., :1], 3, axis=2)
    if mode == "P":
        assert palette is not None
        return palette[pixels]
    if mode == "CMYK":
        light = 255 - pixels[..., 3:].astype(np.int64)
        return np.clip(light - _multiplied(pixels[..., :3], light), 0, 255).astype(np.uint8)
    grey = np.minimum(pixels * (255 if mode == "1" else 1), 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _shorter(width: int, height: int, to: int) -> tuple[int, int]:
    """torchvision.transforms.functional._compute_resized_output_size."""
    if width <= height:
        return to, int(to * height / width)
    return int(to * width / height), to


def _centre(pixels: np.ndarray) -> np.ndarray:
    """torchvision.transforms.functional.center_crop, of images that are large enough."""
    top, left = (round((length - _SIZE) / 2.0) for length in pixels.shape[:2])
    return pixels[top : top + _SIZE, left : left + _SIZE]


def published_pixels(
    model: str, pixels: np.ndarray, mode: str = "RGB", palette: np.ndarray | None = None
) -> np.ndarray:
    """uint8 [224, 224, 3] as the model's published code prepares an image.

    Args:
        pixels: uint8 [height, width(, channels)] in the image's mode; uint16 in mode "I;16".
        palette: uint8 [256, 3], of mode "P".
    """
    height, width = pixels.shape[:2]
    if model == "CLIP":
        size = _shorter(width, height, _SIZE)
        return to_rgb(_centre(_resize_in_mode(pixels, mode, size, "bicubic")), mode, palette)
    rgb = to_rgb(pixels, mode, palette)
    if model == "SigLIPv2":
        return resize(rgb, (_SIZE, _SIZE), "bilinear")
    return _centre(resize(rgb, _shorter(width, height, 256), "bicubic"))
