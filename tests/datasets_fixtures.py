"""Fixtures of the dataset tests: the official listings, and small synthetic datasets to read or to copy."""

import shutil
from pathlib import Path

import pytest
from datasets_support import CLASSES, NAMES, TEST, TRAIN, CopyRaw, ReadFolder

from embeddings_assets.catalog import DATASETS, get_dataset
from embeddings_assets.datasets.layouts.listing import Listing
from embeddings_assets.datasets.sources import LAYOUTS
from embeddings_assets.datasets.synthetic.writer import write_synthetic
from embeddings_assets.settings import DataPaths


@pytest.fixture(scope="session")
def annotations(shared: Path) -> Path:
    return shared / "data" / "annotations"


@pytest.fixture(scope="session")
def read_folder() -> ReadFolder:
    """Read a raw folder by the layout of a dataset."""
    return lambda dataset, folder: LAYOUTS[get_dataset(dataset).layout].read(folder)


@pytest.fixture(scope="session")
def official(annotations: Path, read_folder: ReadFolder) -> dict[str, Listing]:
    """The listings of the complete official lists."""
    return {spec.name: read_folder(spec.name, annotations / spec.raw_folder) for spec in DATASETS}


@pytest.fixture(scope="session")
def synthetic_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw root with all six synthetic datasets; tests that change one work on a copy."""
    root = tmp_path_factory.mktemp("synthetic") / "raw"
    for name in NAMES:
        write_synthetic(root, name, classes=CLASSES, train_per_class=TRAIN, test_per_class=TEST)
    return root


@pytest.fixture
def copy_raw(synthetic_raw: Path, paths: DataPaths) -> CopyRaw:
    """Copy a synthetic dataset to its place below `paths`, to be damaged or rearranged."""

    def copy(dataset: str) -> Path:
        folder = paths.raw_folder(dataset)
        shutil.copytree(synthetic_raw / folder.name, folder)
        return folder

    return copy
