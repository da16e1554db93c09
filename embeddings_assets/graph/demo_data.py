"""The demo's data on disk: written only where nothing real stands, and recognised again when removed."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from embeddings_assets.catalog import DATASETS, MODELS, SPLITS
from embeddings_assets.datasets.seen import SEEN_NAME
from embeddings_assets.datasets.synthetic.writer import (
    MARKER,
    SYNTHETIC_LAYOUTS,
    remove_synthetic,
    write_synthetic,
)
from embeddings_assets.encoders.weights.lock import remove_random_lock, write_random_lock
from embeddings_assets.errors import RawDataError, StoreError
from embeddings_assets.settings import RANDOM_WEIGHTS, DataPaths, Settings
from embeddings_assets.store.manifest import Manifest, open_manifest
from embeddings_assets.store.reading import read_split_footer
from embeddings_assets.store.schema import LEDGER_NAME, MANIFEST_NAME

# Those whose official layout can be drawn.
DEMO_DATASETS = tuple(dataset for dataset in DATASETS if dataset.layout in SYNTHETIC_LAYOUTS)

# 24 rows in every split, the fewest whose files stay below the size of the raw vectors: 432 images in all.
SIZE = {"classes": 24, "train_per_class": 2, "test_per_class": 1}


def refuse_real_data(settings: Settings) -> None:
    """Refuse a data root where the demo would replace raw data, manifests or embeddings of a real dataset.

    Raises:
        RawDataError: such data stands there.
    """
    paths = settings.paths
    for dataset in DEMO_DATASETS:
        raw = paths.raw_folder(dataset.name)
        if _is_synthetic(raw):
            _refuse_other_origins(paths, dataset.name)
            continue
        standing = [raw, *(paths.processed_split(dataset.name, split) / MANIFEST_NAME for split in SPLITS)]
        standing += [
            paths.embeddings_split(model.name, dataset.name, split) for model in MODELS for split in SPLITS
        ]
        for path in standing:
            if path.exists():
                raise _not_of_the_demo(path)


def _refuse_other_origins(paths: DataPaths, dataset: str) -> None:
    """Refuse manifests of a raw folder elsewhere, and embeddings of real weights, beside the drawn images."""
    for split in SPLITS:
        try:
            manifest = open_manifest(paths, dataset, split)
        except StoreError:
            continue  # absent or damaged: nothing to lose
        if manifest.footer.get("raw_folder"):
            raise _not_of_the_demo(manifest.path)
        for model in MODELS:
            folder = paths.embeddings_split(model.name, dataset, split)
            footer = read_split_footer(folder)
            if footer is not None and footer.get("trained") is not False:
                raise _not_of_the_demo(folder)


def _not_of_the_demo(path: Path) -> RawDataError:
    return RawDataError(
        f"{path}: is not of the demo, which would replace it.",
        remedy="give the demo a data root of its own: EMBEDDINGS_DATA=demo-data make demo",
    )


def write_demo_data(settings: Settings) -> Iterator[str]:
    """Write the raw datasets and ask for random weights; says what was done, one line at a time.

    Raises:
        RawDataError: a raw folder that is not synthetic.
    """
    for dataset in DEMO_DATASETS:
        folder = write_synthetic(settings.paths.raw, dataset.name, **SIZE)
        yield f"drawn images of {dataset.name} in {folder}"
    if settings.weights != RANDOM_WEIGHTS:
        write_random_lock(Path(settings.weights))
        yield f"random weights for models without weights, by {settings.weights}/weights.lock"


def remove_demo_data(settings: Settings) -> None:
    """Delete the synthetic raw datasets, what was made from them, and the requests for random weights."""
    paths = settings.paths
    for dataset in DEMO_DATASETS:
        if not _is_synthetic(paths.raw_folder(dataset.name)):
            continue
        # Made by reading the synthetic images; where other images were read since, it is merely made again.
        (paths.processed / dataset.name / SEEN_NAME).unlink(missing_ok=True)
        for split in SPLITS:
            manifest = _demo_manifest(paths, dataset.name, split)
            if manifest is None:
                continue
            for model in MODELS:
                _remove_if_made_from(manifest, paths.embeddings_split(model.name, dataset.name, split))
            for name in (MANIFEST_NAME, LEDGER_NAME):
                (manifest.path.parent / name).unlink(missing_ok=True)
            _remove_empty(manifest.path.parent, paths.processed)
        remove_synthetic(paths.raw, dataset.name)
    if settings.weights != RANDOM_WEIGHTS:
        remove_random_lock(Path(settings.weights))


def _is_synthetic(raw: Path) -> bool:
    return (raw / MARKER).is_file()


def _demo_manifest(paths: DataPaths, dataset: str, split: str) -> Manifest | None:
    """The manifest, if it was made from the raw folder in the data root."""
    try:
        manifest = open_manifest(paths, dataset, split)
    except StoreError:
        return None
    return None if manifest.footer.get("raw_folder") else manifest


def _remove_if_made_from(manifest: Manifest, folder: Path) -> None:
    try:
        footer = read_split_footer(folder)
    except StoreError:
        return
    if footer is not None and footer.get("manifest_fingerprint") == manifest.fingerprint:
        shutil.rmtree(folder)
        _remove_empty(folder.parent, manifest.paths.embeddings)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove a folder and its parents below `root` while they are empty."""
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent
