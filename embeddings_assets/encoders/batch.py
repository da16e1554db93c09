"""Embedding a handful of images in memory; the engine for whole datasets is in extraction/."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from embeddings_assets.encoders.encoder import Encoder
from embeddings_assets.encoders.plan import EncoderPlan
from embeddings_assets.errors import EmbeddingsError, ImageError, SettingsError
from embeddings_assets.io.images import decode_image

DEFAULT_BATCH_SIZE = 32
KEPT_ENCODERS = 2  # 350 MB each

_encoders: OrderedDict[EncoderPlan, Encoder] = OrderedDict()


def embed_images(
    images: Sequence[str | Path | Image.Image], plan: EncoderPlan, batch_size: int | None = None
) -> npt.NDArray[np.float32]:
    """Unit vectors of images, float32 [n, plan.width], in the order given. No image is dropped.

    The encoder stays loaded for the next call with an equal plan; at most two are kept.

    Args:
        images: paths, or PIL images (in any mode; EXIF orientation is not applied).
        batch_size: images per forward pass, 32 by default; results agree to 1e-6 whatever it is.

    Raises:
        EmbeddingsError: `images` is one path or image, not a sequence, or holds something else.
        SettingsError: a batch size below 1, or a device that is not there.
        ImageError: an image cannot be used; the text names its index and file.
        WeightsError: the weights do not load.
    """
    if isinstance(images, (str, bytes, Path, Image.Image)) or not isinstance(images, Sequence):
        raise EmbeddingsError(
            f"images is a {type(images).__name__}, expected a sequence of paths or PIL images.",
            remedy="pass a list, with one image too: [image]",
        )
    size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    if size < 1:
        raise SettingsError(f"batch_size is {size}, expected at least 1.")
    vectors = np.zeros((len(images), plan.width), dtype=np.float32)
    if not images:
        return vectors
    encoder = kept_encoder(plan)
    try:
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            pixels = np.stack([_pixels(encoder, image, start + index) for index, image in enumerate(chunk)])
            vectors[start : start + len(chunk)] = encoder.encode(pixels)
    finally:
        encoder.rest()
    return vectors


def kept_encoder(plan: EncoderPlan) -> Encoder:
    """The loaded encoder of this plan, from the last calls if it is still there."""
    if plan not in _encoders:
        while len(_encoders) >= KEPT_ENCODERS:
            _encoders.popitem(last=False)[1].close()
        _encoders[plan] = plan.load()
    _encoders.move_to_end(plan)
    return _encoders[plan]


def release_encoders() -> None:
    """Free every encoder that earlier calls left loaded."""
    while _encoders:
        _encoders.popitem()[1].close()


def _pixels(encoder: Encoder, image: str | Path | Image.Image, index: int) -> npt.NDArray[np.uint8]:
    if isinstance(image, Image.Image):
        name = f"a PIL image, mode {image.mode}, {image.width} x {image.height}"
    elif isinstance(image, (str, Path)):
        name = str(image)
    else:
        raise EmbeddingsError(f"image {index} is a {type(image).__name__}, expected a path or a PIL image.")
    try:
        return encoder.pixels(image if isinstance(image, Image.Image) else decode_image(Path(image)))
    except ImageError as error:
        raise ImageError(error.reason, f"image {index} ({name}): {error.detail}") from error
