"""What people run otherwise, on the same weights, in float32: image files in, vectors out.

They differ in how the images reach the model, which is what costs or saves time. None of them writes a file.
They run in a process of their own, in which nothing of ours is set.
Used by `engine.py`; nothing here is run by itself.
"""

import functools
import importlib.util
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from embeddings_assets.encoders.family import family_of
from embeddings_assets.encoders.plan import EncoderPlan
from embeddings_assets.encoders.recipe import Recipe
from embeddings_assets.workers.process import default_workers

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


class Rivals:
    """The ways to run the model of a plan in `exact`, by name; all are loaded once they have run."""

    def __init__(self, plan: EncoderPlan, device: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, spawn, initializer=start_rivals, initargs=(plan, device))
        self.names: list[str] = self._process.submit(_names).result()

    def vectors(self, name: str, files: list[Path]) -> np.ndarray:
        return self._process.submit(_vectors, name, files).result()

    def rate(self, name: str, files: list[Path]) -> float:
        """Images per second."""
        return self._process.submit(rate, name, files).result()

    def close(self) -> None:
        self._process.shutdown()


RIVALS: dict[str, Rival] = {}  # of the process for them


def start_rivals(plan: EncoderPlan, device: str) -> None:
    """Fill RIVALS for the model of a plan, in a process for them."""
    # A spawned process would have DataLoader spawn its own: users get the system's default.
    multiprocessing.set_start_method(None, force=True)
    module = family_of(plan.spec).build(plan.source).to(device)
    transform, processor = _transform(plan.recipe), _processor_of(plan.spec.name)
    RIVALS.clear()
    RIVALS.update(
        {
            "serial loop": lambda files: _serial(files, module, transform, device),
            "DataLoader": lambda files: _loader(files, module, transform, device),
            "transformers processor": lambda files: _processor(files, module, processor, device),
        }
    )
    if plan.spec.name == "CLIP":
        published = _open_clip_transform()
        RIVALS["open_clip + DataLoader"] = lambda files: _loader(files, module, published, device)
        if importlib.util.find_spec("sentence_transformers"):
            from sentence_clip import sentence_clip

            # Made on first use: what goes wrong with it is its own.
            sentences = functools.cache(lambda: sentence_clip(module, device))
            RIVALS["sentence-transformers"] = lambda files: _sentences(files, sentences())


def _names() -> list[str]:
    return list(RIVALS)


def _vectors(name: str, files: list[Path]) -> np.ndarray:
    return RIVALS[name](files)


def rate(name: str, files: list[Path]) -> float:
    started = time.perf_counter()
    return len(_vectors(name, files)) / (time.perf_counter() - started)


def _transform(recipe: Recipe) -> Any:
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
