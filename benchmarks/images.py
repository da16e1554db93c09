"""The images of the benchmarks: JPEG files repeated under new ids in a class tree."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from embeddings_assets.settings import DataPaths

DATASET, SPLIT = "CUB-200-2011", "train"
CLASSES = 200


def drawn(folder: Path, count: int = 200) -> Path:
    """JPEG files of 500 x 375 pixels with the detail of a photograph, for want of real ones."""
    folder.mkdir(parents=True)
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{seed:04d}.jpg", quality=85)
    return folder


def jpeg_files(folder: Path) -> list[Path]:
    """The JPEG files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def build_tree(root: Path, images: Path, count: int, split: str) -> DataPaths:
    """A data root with `count` files in one split, and one in each other."""
    sources = jpeg_files(images)
    paths = DataPaths.from_root(root)
    for name in ("train", "validation", "test"):
        for number in range(count if name == split else 1):
            folder = paths.processed_split(DATASET, name) / f"class-{number % CLASSES:03d}"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sources[number % len(sources)], folder / f"{number:06d}.jpg")
    return paths
