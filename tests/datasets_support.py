"""Names and types that the dataset tests and their fixtures share."""

from collections.abc import Callable
from pathlib import Path

from embeddings_assets.catalog import DATASETS
from embeddings_assets.datasets.layouts.listing import Listing
from embeddings_assets.datasets.sources import find_source
from embeddings_assets.settings import DataPaths

NAMES = tuple(spec.name for spec in DATASETS)
CLASSES, TRAIN, TEST = 5, 6, 2


def listing_of(dataset: str, paths: DataPaths, raw_dir: Path | None = None) -> Listing:
    """What the lists of the folder say that `prepare` would read."""
    return find_source(dataset, paths, raw_dir).read()


ReadFolder = Callable[[str, Path], Listing]
CopyRaw = Callable[[str], Path]
