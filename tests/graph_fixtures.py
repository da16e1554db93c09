"""Fixtures of the graph tests: one small prepared dataset, and CLIP with random weights, loaded once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from graph_support import CLIP, CUB, Graph, graph_of

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.synthetic.writer import write_synthetic
from embeddings_assets.pipeline import EncoderCache
from embeddings_assets.settings import DataPaths, Settings


@pytest.fixture(scope="session")
def prepared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a small synthetic CUB, raw and prepared."""
    root = tmp_path_factory.mktemp("graph") / "data"
    write_synthetic(root / "raw", CUB, classes=5, train_per_class=6, test_per_class=2)
    prepare_dataset(CUB, DataPaths.from_root(root))
    return root


@pytest.fixture(scope="session")
def encoders() -> Iterator[EncoderCache]:
    """Encoders that stay loaded for all tests."""
    cache = EncoderCache()
    yield cache
    cache.close()


@pytest.fixture
def settings(prepared_root: Path, tmp_path: Path) -> Settings:
    """A copy of the prepared data root, and random weights."""
    shutil.copytree(prepared_root, tmp_path / "data")
    return Settings(data_root=tmp_path / "data", weights="random", device="cpu")


@pytest.fixture(scope="session")
def embedded_root(
    prepared_root: Path, encoders: EncoderCache, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The prepared data root with CLIP's embeddings of one split."""
    root = tmp_path_factory.mktemp("embedded") / "data"
    shutil.copytree(prepared_root, root)
    result = graph_of(Settings(data_root=root, weights="random", device="cpu"), encoders).run(CLIP)
    assert result.success
    return root


@pytest.fixture
def embedded(embedded_root: Path, encoders: EncoderCache, tmp_path: Path) -> Graph:
    """A graph over a copy of the data root that holds CLIP's embeddings of one split."""
    root = tmp_path / "embedded"
    shutil.copytree(embedded_root, root)
    return graph_of(Settings(data_root=root, weights="random", device="cpu"), encoders)


@pytest.fixture
def graph(settings: Settings, encoders: EncoderCache) -> Graph:
    return graph_of(settings, encoders)
