"""A model is one row, a new family one file more, an image-folder dataset one row; what stands stays.

Each test does what a person would: it edits catalog.py of a copy of the package, and goes on with a data root
and a Dagster instance in which the catalog as it is has materialised everything of one dataset.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from catalog_rows import Account, Run, Visit, visit
from graph_support import CUB, store_unit_vectors
from image_tree import write_image

import embeddings_assets
from embeddings_assets.catalog import MODELS, SPLITS
from embeddings_assets.datasets.synthetic.writer import write_synthetic
from embeddings_assets.encoders.recipe import Recipe
from embeddings_assets.io.images import decode_image
from embeddings_assets.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::dagster.BetaWarning")

PACKAGE = Path(embeddings_assets.__file__).parent
TESTS = Path(__file__).parent
PARTITIONS = sorted(f"{CUB}|{split}" for split in SPLITS)
EMBEDDINGS = [f"embeddings/{model.name}" for model in MODELS]
OLD = {f"{asset} {key}" for asset in ("processed_images", *EMBEDDINGS) for key in PARTITIONS}

DINOV2_SMALL = """
    ModelSpec(
        name="DINOv2-S",
        encoder="dinov2",
        architecture="ViT-S/14",
        checkpoint="facebook/dinov2-small",
        native_width=384,
        width=384,
        filename="model.safetensors",
        description="Meta DINOv2 ViT-S/14: class token after the final LayerNorm.",
        licence="Apache-2.0",
        homepage="https://github.com/facebookresearch/dinov2",
        citation="https://arxiv.org/abs/2304.07193",
        hub_repo="facebook/dinov2-small",
    ),
"""

PIXELS = """
    ModelSpec(
        name="Pixels",
        encoder="random_projection",
        architecture="16 x 16 pixels, projected",
        checkpoint="nobody/pixels",
        native_width=64,
        width=64,
        filename="projection.npz",
        description="A linear map of small images.",
        licence="MIT",
        homepage="https://example.org/",
        citation="https://example.org/",
    ),
"""

RANDOM_PROJECTION = '''
"""A linear map of 16 x 16 pixels, whose checkpoints are NumPy archives with a JSON file beside them."""

from embeddings_assets.encoders.family import CheckpointFiles
from embeddings_assets.encoders.recipe import Recipe

RECIPE = Recipe(
    rgb_first=True,
    resize="squash",
    resize_to=16,
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    size=16,
)
CHECKPOINT = CheckpointFiles(companions={"projection.npz": "projection.json"})
LIBRARIES = ("scipy",)


def build(source):
    import numpy as np
    import torch

    from embeddings_assets.encoders.weights.random_weights import random_parameters

    if source.path is None:
        weight = random_parameters({"weight": (64, 768)}, model=source.model, seed=source.seed)["weight"]
    else:
        with np.load(source.path) as archive:
            weight = torch.from_numpy(archive["weight"])
    linear = torch.nn.Linear(768, 64, bias=False)
    linear.load_state_dict({"weight": weight})
    return torch.nn.Sequential(torch.nn.Flatten(), linear)


def blocks(model):
    return ()


def class_token_parts(model):
    return None
'''

# The first publishes its counts and a validation split, the second neither.
LEAVES = """
    DatasetSpec(
        name="Leaves",
        layout="image_folder",
        raw_folder="leaves",
        classes=2,
        counts=MappingProxyType({"train": 6, "validation": 2, "test": 4}),
        description="Drawings of leaves.",
        licence="CC0",
        homepage="https://example.org/",
        citation="https://example.org/",
    ),
"""
STONES = """
    DatasetSpec(
        name="Field Stones",
        layout="image_folder",
        raw_folder="stones",
        classes=None,
        description="Drawings of stones.",
        licence="CC0",
        homepage="https://example.org/",
        citation="https://example.org/",
    ),
"""


@dataclass(frozen=True)
class World:
    """A data root and the home of a Dagster instance, and what was last seen there."""

    folder: Path
    account: Account

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def files(self) -> dict[str, tuple[str, int]]:
        """Digest and time of last change of every manifest and embedding file."""
        return {
            str(path.relative_to(self.data)): (
                hashlib.sha256(path.read_bytes()).hexdigest(),
                path.stat().st_mtime_ns,
            )
            for folder in ("processed", "embeddings")
            for path in sorted((self.data / folder).rglob("*.parquet"))
        }

    def go_on(self, edit: Callable[[Path], None], *runs: Run) -> Account:
        """Make runs in a process of its own, with a copy of the package that `edit` has changed."""
        package = self.folder / "code" / PACKAGE.name
        shutil.copytree(PACKAGE, package)
        edit(package)
        given = Visit(str(self.folder / "home"), str(self.data), list(runs), 20, self.account.cursor)
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("EMBEDDINGS_", "DAGSTER"))
        }
        process = subprocess.run(
            [sys.executable, str(TESTS / "catalog_rows.py"), json.dumps(asdict(given))],
            cwd=self.folder,
            env={**environment, "PYTHONPATH": str(package.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        account = Account(**json.loads(process.stdout.splitlines()[-1]))
        assert account.package == str(package)
        assert account.failures == []
        return account


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One dataset with every model, materialised with the catalog as it is; the vectors are made up."""
    folder = tmp_path_factory.mktemp("rows")
    data, home = folder / "data", folder / "home"
    home.mkdir()
    shutil.copy(TESTS.parent / "dagster.yaml", home)
    write_synthetic(data / "raw", CUB, classes=5, train_per_class=4, test_per_class=2)
    prepared = visit(Visit(str(home), str(data), [Run(["processed_images"], key) for key in PARTITIONS]))
    settings = Settings(data_root=data, weights="random", device="cpu")
    for model in MODELS:
        for split in SPLITS:
            store_unit_vectors(settings, model.name, split)
    embedded = [Run(EMBEDDINGS, key) for key in PARTITIONS]
    account = visit(Visit(str(home), str(data), embedded, 10, prepared.cursor))
    assert prepared.failures + account.failures == []
    assert set(account.after) == OLD
    assert account.asked_before == dict.fromkeys(EMBEDDINGS, PARTITIONS)
    assert account.asked_after == {}
    return World(folder, account)


@pytest.fixture
def world(first: World, tmp_path: Path) -> World:
    """A copy of the data and the instance, to go on with."""
    for name in ("data", "home"):
        shutil.copytree(first.folder / name, tmp_path / name)
    return World(tmp_path, first.account)


def add_row(package: Path, row: str, *, before: str) -> None:
    """Insert a row into the catalog in front of the line that `before` is the beginning of."""
    catalog = package / "catalog.py"
    text = catalog.read_text()
    assert text.count(before) == 1
    catalog.write_text(text.replace(before, row.lstrip("\n") + before))


END_OF_MODELS = ")\n\nDATASETS:"
END_OF_DATASETS = ")\n\n\ndef get_model"


def assert_untouched(world: World, account: Account, files: dict[str, tuple[str, int]]) -> None:
    """What stood before has the same events, versions and bytes, and is not stale."""
    assert account.before == world.account.after
    assert set(account.before) == OLD
    assert {key: account.after[key] for key in OLD} == account.before
    assert {seen["status"] for seen in account.after.values()} == {"FRESH"}
    now = world.files()
    assert {name: now[name] for name in files} == files


def assert_all_passed(checks: dict[str, tuple[bool, str]], *, trained: bool = False) -> None:
    checks = {name: tuple(result) for name, result in checks.items()}
    assert len(checks) > 1
    if not trained:
        assert checks.pop("weights_trained") == (False, "WARN")
    assert {name for name, (passed, _) in checks.items() if not passed} == set()


def vectors_of(world: World, model: str, dataset: str, split: str) -> pd.DataFrame:
    return pd.read_parquet(world.data / "embeddings" / model / dataset / split)


def test_a_model_of_a_known_family_is_one_row(world: World) -> None:
    files = world.files()
    account = world.go_on(
        lambda package: add_row(package, DINOV2_SMALL, before=END_OF_MODELS),
        Run(["embeddings/DINOv2-S"], f"{CUB}|test"),
    )
    assert_untouched(world, account, files)
    assert set(account.after) == OLD | {f"embeddings/DINOv2-S {CUB}|test"}
    assert account.asked_before == {"embeddings/DINOv2-S": PARTITIONS}
    assert account.asked_after == {"embeddings/DINOv2-S": without("test")}
    assert_all_passed(account.checks[0]["embeddings/DINOv2-S"])
    stored = vectors_of(world, "DINOv2-S", CUB, "test")
    assert np.stack(stored["embedding"]).shape == (10, 384)
    assert set(stored["model"]) == {"DINOv2-S"}


def test_a_new_family_is_one_row_and_one_file(world: World) -> None:
    def edit(package: Path) -> None:
        add_row(package, PIXELS, before=END_OF_MODELS)
        (package / "encoders" / "families" / "random_projection.py").write_text(RANDOM_PROJECTION)

    weight = np.random.default_rng(0).standard_normal((64, 768)).astype(np.float32)
    weights = world.data / "weights"
    (weights / "Pixels").mkdir(parents=True)
    np.savez(weights / "Pixels" / "projection.npz", weight=weight)
    (weights / "Pixels" / "projection.json").write_text("{}")

    files = world.files()
    account = world.go_on(
        edit,
        Run(["embeddings/Pixels"], f"{CUB}|train"),
        Run(["embeddings/Pixels"], f"{CUB}|test", {"weights": str(weights), "precision": "fast"}),
    )
    assert_untouched(world, account, files)
    assert set(account.after) == OLD | {f"embeddings/Pixels {CUB}|{split}" for split in ("train", "test")}
    assert account.asked_before == {"embeddings/Pixels": PARTITIONS}
    assert account.asked_after == {"embeddings/Pixels": without("train", "test")}
    assert_all_passed(account.checks[0]["embeddings/Pixels"])
    assert_all_passed(account.checks[1]["embeddings/Pixels"], trained=True)

    stored = vectors_of(world, "Pixels", CUB, "test")
    half = (0.5, 0.5, 0.5)
    recipe = Recipe(True, "squash", 16, "bilinear", half, half, 16)
    pixels = np.stack([recipe.pixels(decode_image(world.data / path)) for path in stored["image_path"]])
    expected = (pixels / 127.5 - 1).transpose(0, 3, 1, 2).reshape(len(stored), -1) @ weight.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert (np.stack(stored["embedding"]) * expected).sum(axis=1).min() > 0.999


def without(*splits: str) -> list[str]:
    return [key for key in PARTITIONS if key.rpartition("|")[2] not in splits]


def write_class_folders(folder: Path, counts: dict[str, int], seed: int) -> None:
    """Class folders with so many images of each of two classes in each split."""
    for split, count in counts.items():
        for name in ("round", "long"):
            for number in range(count):
                seed += 1
                write_image(folder / split / name / f"{number}.jpg", seed)


def test_a_dataset_of_class_folders_is_one_row_with_or_without_counts(world: World) -> None:
    def edit(package: Path) -> None:
        add_row(package, LEAVES, before='    DatasetSpec(\n        name="CUB-200-2011"')
        add_row(package, STONES, before=END_OF_DATASETS)

    write_class_folders(world.data / "raw" / "leaves", {"train": 3, "val": 1, "test": 2}, seed=0)
    write_class_folders(world.data / "raw" / "stones", {"train": 4, "test": 2}, seed=100)
    prepared = sorted(f"{name}|{split}" for name in ("Leaves", "Field Stones") for split in SPLITS)
    embedded = "Field Stones|validation"

    files = world.files()
    account = world.go_on(
        edit, *(Run(["processed_images"], key) for key in prepared), Run(["embeddings/CLIP"], embedded)
    )
    assert_untouched(world, account, files)
    new = {f"processed_images {key}" for key in prepared}
    assert set(account.after) == OLD | new | {f"embeddings/CLIP {embedded}"}
    assert account.asked_before == {}, "nobody has looked at the new folders yet"
    left = [key for key in prepared if key != embedded]
    assert account.asked_after == {**dict.fromkeys(EMBEDDINGS, prepared), "embeddings/CLIP": left}
    for checks in account.checks[:-1]:
        assert_all_passed(checks["processed_images"], trained=True)
    assert_all_passed(account.checks[-1]["embeddings/CLIP"])

    manifests = {key: pd.read_parquet(world.data / "processed" / key.replace("|", "/")) for key in prepared}
    assert {key: (len(manifest), set(manifest["official_split"])) for key, manifest in manifests.items()} == {
        "Leaves|train": (6, {"train"}),
        "Leaves|validation": (2, {"validation"}),
        "Leaves|test": (4, {"test"}),
        "Field Stones|train": (6, {"train"}),
        "Field Stones|validation": (2, {"train"}),  # held out
        "Field Stones|test": (4, {"test"}),
    }
    stored = vectors_of(world, "CLIP", *embedded.split("|"))
    assert stored["image_path"].str.startswith("raw/stones/train/").all()
    assert set(stored["class_name"]) == {"long", "round"}
