"""Names and types that the dataset tests and their fixtures share."""

from collections.abc import Callable
from pathlib import Path

from embeddings_assets.catalog import DATASETS
from embeddings_assets.datasets.listing import Listing

NAMES = tuple(spec.name for spec in DATASETS)
CLASSES, TRAIN, TEST = 5, 6, 2

ReadFolder = Callable[[str, Path], Listing]
CopyRaw = Callable[[str], Path]
