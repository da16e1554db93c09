"""A small class-folder dataset on disk, prepared: what the engine and the faces work on."""

from pathlib import Path

import numpy as np
from PIL import Image

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.settings import DataPaths

DATASET = "CUB-200-2011"
CLASSES = ("albatross", "auklet", "blackbird")


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((48, 36), Image.Resampling.BICUBIC).save(path, quality=90)


def write_tree(root: Path, *, per_class: int = 20) -> DataPaths:
    """`processed/<dataset>/<split>/<class>/<image>` for three splits, with manifests."""
    paths = DataPaths.from_root(root)
    seed = 0
    for split, count in (("train", per_class), ("validation", 8), ("test", 8)):
        for name in CLASSES:
            for number in range(count):
                seed += 1
                write_image(paths.processed_split(DATASET, split) / name / f"{number:03d}.jpg", seed)
    prepare_dataset(DATASET, paths)
    return paths
