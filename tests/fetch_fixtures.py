"""Fixtures of the tests that fetch: a small dataset as published archives."""

from pathlib import Path

import pytest
from fetch_support import publish, tree_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flowers")
    publish(folder)
    return folder


@pytest.fixture(scope="module")
def published(made: Path) -> Path:
    return made / "published"


@pytest.fixture(scope="module")
def expected(made: Path) -> dict[str, str]:
    return tree_of(made / "made" / "flowers-102")
