"""A prepared tree of images, and a copy of it for each test. The module that asks says how many: `ROWS`."""

import shutil
from pathlib import Path

import pytest
from image_tree import CLASSES, write_tree

from embeddings_assets.settings import DataPaths


@pytest.fixture(scope="module")
def prepared_tree(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    write_tree(root, per_class=request.module.ROWS // len(CLASSES))
    return root


@pytest.fixture(scope="module")
def undisturbed(
    request: pytest.FixtureRequest, prepared_tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The files of a split that the module's `run` makes of all rows."""
    tree = _copied(prepared_tree, tmp_path_factory.mktemp("undisturbed"))
    request.module.run(tree)
    content: dict[str, bytes] = request.module.content(tree)
    return content


@pytest.fixture
def tree(prepared_tree: Path, tmp_path: Path) -> DataPaths:
    return _copied(prepared_tree, tmp_path)


def _copied(prepared_tree: Path, where: Path) -> DataPaths:
    shutil.copytree(prepared_tree, where / "data")
    return DataPaths.from_root(where / "data")
