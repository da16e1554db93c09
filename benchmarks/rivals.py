"""What people run otherwise, on the same weights, in float32: image files in, vectors out.

They differ in how the images reach the model, which is what costs or saves time. None of them writes a file.
Used by `engine.py`; nothing here is run by itself.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sentence_clip import sentence_clip
from torchvision import transforms

from embeddings_assets.children import default_workers
from embeddings_assets.encoders.encoder import Encoder

BATCH = 32
LOADER_PROCESSES = default_workers(1024)  # one for each core
IMAGES_AT_ONCE = 256  # handed to sentence-transformers in one call; each is an open file until it is read

Rival = Callable[[list[Path]], np.ndarray]
"""Embeds files: float32 [n, native width], unit vectors in the order of the files."""


class Images(torch.utils.data.Dataset):
    """Files through a transform, as in every tutorial."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.files = files
        self.transform = transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[index]).convert("RGB"))


def rivals_of(encoder: Encoder) -> dict[str, Rival]:
    """The ways to run the model of an encoder in `exact`, by name; all are loaded by then."""
    model, device, module = encoder.plan.spec.name, encoder.device, encoder._model
    assert module is not None
    transform, processor = _transform(encoder), _processor_of(model)
    rivals: dict[str, Rival] = {
        "serial loop": lambda files: _serial(files, module, transform, device),
        "DataLoader": lambda files: _loader(files, module, transform, device),
        "transformers processor": lambda files: _processor(files, module, processor, device),
    }
    if model == "CLIP":
        published = _open_clip_transform()
        rivals["open_clip + DataLoader"] = lambda files: _loader(files, module, published, device)
        if importlib.util.find_spec("sentence_transformers"):
            sentences = sentence_clip(module, device)
            rivals["sentence-transformers"] = lambda files: _sentences(files, sentences)
    return rivals


def _transform(encoder: Encoder) -> Any:
    recipe = encoder.plan.recipe
    filters = {
        "bicubic": transforms.InterpolationMode.BICUBIC,
        "bilinear": transforms.InterpolationMode.BILINEAR,
    }
    side = recipe.resize_to if recipe.resize == "shorter" else (recipe.resize_to, recipe.resize_to)
    return transforms.Compose(
        [
            transforms.Resize(side, interpolation=filters[recipe.interpolation]),
            transforms.CenterCrop(recipe.size),
            transforms.ToTensor(),
            transforms.Normalize(recipe.mean, recipe.std),
        ]
    )


def _open_clip_transform() -> Any:
    import open_clip

    return open_clip.image_transform(224, is_train=False)


def _processor_of(model: str) -> Any:
    import transformers

    if model == "CLIP":
        return transformers.CLIPImageProcessor()
    if model == "SigLIPv2":
        return transformers.SiglipImageProcessor(size={"height": 224, "width": 224})
    return transformers.BitImageProcessor(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, do_convert_rgb=True
    )


def _embed(module: torch.nn.Module, pixels: torch.Tensor, device: str) -> np.ndarray:
    with torch.no_grad():
        vectors = module(pixels.to(device, non_blocking=True))
    return (vectors / vectors.norm(dim=1, keepdim=True)).cpu().numpy()


def _serial(files: list[Path], module: torch.nn.Module, transform: Any, device: str) -> np.ndarray:
    return np.concatenate(
        [_embed(module, transform(Image.open(file).convert("RGB"))[None], device) for file in files]
    )


def _loader(files: list[Path], module: torch.nn.Module, transform: Any, device: str) -> np.ndarray:
    loader = torch.utils.data.DataLoader(
        Images(files, transform),
        batch_size=BATCH,
        num_workers=LOADER_PROCESSES,
        pin_memory=device.startswith("cuda"),
    )
    return np.concatenate([_embed(module, batch, device) for batch in loader])


def _processor(files: list[Path], module: torch.nn.Module, processor: Any, device: str) -> np.ndarray:
    vectors = []
    for first in range(0, len(files), BATCH):
        images = [Image.open(file).convert("RGB") for file in files[first : first + BATCH]]
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        vectors.append(_embed(module, pixels, device))
    return np.concatenate(vectors)


def _sentences(files: list[Path], model: Any) -> np.ndarray:
    vectors = []
    for first in range(0, len(files), IMAGES_AT_ONCE):
        images = [Image.open(file) for file in files[first : first + IMAGES_AT_ONCE]]
        vectors.append(model.encode(images, batch_size=BATCH, normalize_embeddings=True))
    return np.concatenate(vectors)
