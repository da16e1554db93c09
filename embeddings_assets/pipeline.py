"""Where the rooms meet outside Dagster: one dataset, one model, one split after the other.

The graph, the command line, the script and the Python API all go through these functions, so that they
cannot differ.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embeddings_assets.catalog import DATASETS, MODELS, SPLITS, get_dataset, get_model, get_split
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.encoders.encoder import Encoder, EncoderPlan, plan_encoder, resolve_device
from embeddings_assets.encoders.fetch import find_or_fetch
from embeddings_assets.encoders.weights import find_weights
from embeddings_assets.errors import EmbeddingsError, SettingsError
from embeddings_assets.extraction.engine import extract_split, store_vectors
from embeddings_assets.extraction.report import ExtractionOptions, Progress, SplitReport
from embeddings_assets.settings import RANDOM_WEIGHTS, DataPaths
from embeddings_assets.store.manifest import Manifest, open_manifest
from embeddings_assets.store.schema import MANIFEST_NAME

log = logging.getLogger(__name__)

ProgressFor = Callable[[str, str, str], Progress]
"""Gives the progress callback of a (model, dataset, split)."""


class EncoderHolder:
    """The encoder of a plan, loaded when it is first wanted and kept for every split after."""

    def __init__(self, plan: EncoderPlan) -> None:
        self.plan = plan
        self._encoder: Encoder | None = None

    def footer(self) -> dict[str, Any]:
        return self.plan.footer()

    def pixels(self, image: Image.Image) -> np.ndarray:
        return self.plan.pixels(image)

    def device(self) -> str:
        return resolve_device(self.plan.device)

    def load(self) -> Encoder:
        if self._encoder is None:
            self._encoder = self.plan.load()
        return self._encoder

    def close(self) -> None:
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None


@dataclass
class Outcome:
    """What became of one split: a report, or the error that stopped it."""

    model: str
    dataset: str
    split: str
    report: SplitReport | None = None
    error: EmbeddingsError | None = None


@dataclass(frozen=True)
class EncoderChoice:
    """How to make an encoder.

    Attributes:
        weights: a weights root, a model's own folder or file, or `random`.
        fetch: download into the root what is not there; for weights that nobody named explicitly.
        precision: `exact` or `fast`; width: `contract` or `native`; device: `auto`, `cpu` or `cuda`.
    """

    weights: str | Path
    fetch: bool = False
    precision: str = "exact"
    width: str = "contract"
    device: str = "auto"

    def plan(self, model: str) -> EncoderPlan:
        """The encoder of a model as far as it is known without loading it.

        Raises:
            WeightsError: no usable weights.
            SettingsError: a device or precision that cannot be had.
        """
        if not str(self.weights):
            raise SettingsError("No weights are named.", remedy="--weights DIR, or --weights random")
        can_fetch = self.fetch and str(self.weights) != RANDOM_WEIGHTS
        source = find_or_fetch(model, Path(self.weights)) if can_fetch else find_weights(model, self.weights)
        return plan_encoder(
            model, weights=source, precision=self.precision, width=self.width, device=self.device
        )


def open_or_prepare(dataset: str, split: str, paths: DataPaths) -> Manifest:
    """The manifest of a split; a dataset that was never prepared is prepared first.

    Raises:
        RawDataError: there is neither a manifest nor a raw dataset to make it from.
        StoreError: the manifest is damaged.
    """
    if not (paths.processed_split(dataset, split) / MANIFEST_NAME).is_file():
        log.info("%s is not prepared yet; preparing it", dataset)
        prepare_dataset(dataset, paths)
    return open_manifest(paths, dataset, split)


def process_split(
    holder: EncoderHolder,
    dataset: str,
    split: str,
    paths: DataPaths,
    *,
    options: ExtractionOptions | None = None,
    progress: Progress | None = None,
) -> SplitReport:
    """Embed one split with one encoder (see `extract_split` for what is raised)."""
    return extract_split(
        open_or_prepare(dataset, split, paths),
        holder,
        target=paths.embeddings_split(holder.plan.spec.name, dataset, split),
        staging_root=paths.staging,
        options=options,
        progress=progress,
    )


def commit_vectors(
    vectors: np.ndarray, manifest: Manifest, plan: EncoderPlan, paths: DataPaths, *, replace: bool = False
) -> SplitReport:
    """Store vectors computed elsewhere, float32 [rows, width] in manifest order (see `store_vectors`)."""
    return store_vectors(
        manifest,
        EncoderHolder(plan),
        vectors,
        target=paths.embeddings_split(plan.spec.name, manifest.dataset, manifest.split),
        staging_root=paths.staging,
        replace=replace,
    )


def process_all(
    models: Sequence[str],
    datasets: Sequence[str],
    splits: Sequence[str],
    paths: DataPaths,
    choice: EncoderChoice,
    *,
    options: ExtractionOptions | None = None,
    progress: ProgressFor | None = None,
) -> list[Outcome]:
    """Embed every combination; a model is loaded once, and an error stops only its own split."""
    outcomes: list[Outcome] = []
    for model in models:
        mine = [Outcome(model, dataset, split) for dataset in datasets for split in splits]
        outcomes += mine
        try:
            holder = EncoderHolder(choice.plan(model))
        except EmbeddingsError as error:
            for outcome in mine:
                outcome.error = error
            continue
        for outcome in mine:
            callback = progress(model, outcome.dataset, outcome.split) if progress else None
            try:
                outcome.report = process_split(
                    holder, outcome.dataset, outcome.split, paths, options=options, progress=callback
                )
            except EmbeddingsError as error:
                outcome.error = error
        holder.close()
    return outcomes


def names_of(kind: str, value: str | None) -> list[str]:
    """The catalog names that `value` stands for; `all` and None stand for every one.

    Args:
        kind: `model`, `dataset` or `split`.

    Raises:
        UnknownNameError: no such model, dataset or split.
    """
    known: dict[str, tuple[list[str], Callable[[str], Any]]] = {
        "model": ([model.name for model in MODELS], get_model),
        "dataset": ([dataset.name for dataset in DATASETS], get_dataset),
        "split": (list(SPLITS), get_split),
    }
    every, lookup = known[kind]
    if value is None or value == "all":
        return every
    lookup(value)
    return [value]
