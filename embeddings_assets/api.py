"""The Python API behind `import embeddings_assets`; every default comes from the environment."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from embeddings_assets.catalog import get_dataset, get_model, names_of
from embeddings_assets.errors import SettingsError
from embeddings_assets.extraction.report import ExtractionOptions, SplitReport
from embeddings_assets.pipeline import EncoderChoice, commit_vectors, open_or_prepare, process_all
from embeddings_assets.settings import Settings
from embeddings_assets.store.reading import load_frame, load_matrix

if TYPE_CHECKING:
    from PIL.Image import Image


def extract_embeddings_batch(
    images: Sequence["str | Path | Image"],
    model_name: str,
    *,
    weights: str | Path | None = None,
    precision: str = "exact",
    width: str | None = None,
    batch_size: int | None = None,
    device: str = "auto",
) -> np.ndarray:
    """Embed images held in memory or on disk.

    Args:
        images: paths or PIL images.
        model_name: a catalog name, such as `CLIP`.
        weights: `random`, a weights root, or the model's own folder or file; None takes EMBEDDINGS_WEIGHTS,
            then downloads.
        precision: `exact` or `fast`.
        width: None for the contract's width, `native` for the width before the projection.

    Returns:
        float32 [n, width], rows of unit L2 norm, in the order of `images`.

    Raises:
        EmbeddingsError: unknown model, unusable weights, or an image that cannot be read, which it names.
    """
    from embeddings_assets.encoders.batch import embed_images

    plan = _choice(weights, precision, width or "contract", device).plan(model_name)
    return embed_images(images, plan, batch_size)


def process_model(
    model_name: str,
    dataset_name: str,
    data_dir: str | Path | None = None,
    output_dir: str | Path | None = None,
    split: str | None = None,
    *,
    weights: str | Path | None = None,
    precision: str | None = None,
    width: str | None = None,
    device: str | None = None,
    **options: Any,
) -> list[SplitReport]:
    """Embed one dataset with one model and store it; one report per split.

    Args:
        data_dir: folder of the manifests (default `<data root>/processed`); a dataset never prepared is
            prepared from the folder `raw` beside it, or that of the data root where there is none.
        output_dir: folder of the embeddings (default `<data root>/embeddings`).
        weights, precision, width, device: as the environment says where None (EMBEDDINGS_WEIGHTS ...).
        split: `train`, `validation` or `test`; None for all three.
        options: fields of `ExtractionOptions`, such as `batch_size` or `replace`.

    Raises:
        EmbeddingsError: the first split that failed, after the others were tried.
    """
    known = {field.name for field in fields(ExtractionOptions)}
    if unknown := sorted(set(options) - known):
        raise SettingsError(f"Unknown options {unknown}. Known: {sorted(known)}.")
    outcomes = process_all(
        [get_model(model_name).name],
        [get_dataset(dataset_name).name],
        names_of("split", split),
        Settings.from_environment().paths_with(data_dir, output_dir),
        _choice(weights, precision, width, device),
        options=ExtractionOptions(**options),
    )
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        for other in errors[1:]:
            errors[0].add_note(str(other))
        raise errors[0]
    return [outcome.report for outcome in outcomes if outcome.report is not None]


def save_embeddings(
    embeddings: np.ndarray,
    model_name: str,
    dataset_name: str,
    split: str,
    data_dir: str | Path | None = None,
    output_dir: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    precision: str | None = None,
    width: str | None = None,
    replace: bool = False,
) -> SplitReport:
    """Store vectors that `extract_embeddings_batch` gave for every image of a split's manifest.

    Args:
        embeddings: float32 [rows of the manifest, width], in the manifest's order, rows of unit L2 norm.
        weights, precision, width: as they were given to `extract_embeddings_batch`; they go into the footer.
        replace: replace a split that was made with another recipe.

    Raises:
        StoreError: another number of rows or width, a norm that is not 1, NaN or infinity; or a split of
            another recipe stands there and `replace` is off.
    """
    paths = Settings.from_environment().paths_with(data_dir, output_dir)
    return commit_vectors(
        np.asarray(embeddings),
        open_or_prepare(get_dataset(dataset_name).name, split, paths),
        _choice(weights, precision, width, "cpu").plan(model_name),
        paths,
        replace=replace,
    )


def load_embeddings(
    model_name: str,
    dataset_name: str,
    split: str,
    output_dir: str | Path | None = None,
    *,
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A stored split as a data frame, one row per image; `embedding` holds float32 [width] arrays.

    The arrays are views of one matrix; `load_embedding_matrix` gives that matrix itself.

    Raises:
        StoreError: the split is not there or cannot be read.
    """
    return load_frame(_split_folder(model_name, dataset_name, split, output_dir), columns)


def load_embedding_matrix(
    model_name: str, dataset_name: str, split: str, output_dir: str | Path | None = None
) -> np.ndarray:
    """The vectors of a stored split as one float32 [n, width] array, in row order.

    Raises:
        StoreError: the split is not there or cannot be read.
    """
    return load_matrix(_split_folder(model_name, dataset_name, split, output_dir))


def _split_folder(model: str, dataset: str, split: str, output_dir: str | Path | None) -> Path:
    return Settings.from_environment().paths_with(None, output_dir).embeddings_split(model, dataset, split)


def _choice(
    weights: str | Path | None, precision: str | None, width: str | None, device: str | None
) -> EncoderChoice:
    settings = Settings.from_environment()
    return EncoderChoice(
        weights=settings.weights if weights is None else weights,
        fetch=weights is None,
        precision=settings.precision if precision is None else precision,
        width=settings.width if width is None else width,
        device=settings.device if device is None else device,
    )
