"""Where the rooms meet outside Dagster: one dataset, one model, one split after the other.

The graph, the command line, the script and the Python API all go through these functions, so that they
cannot differ.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.encoders.encoder import (
    Encoder,
    EncoderPlan,
    device_memory,
    plan_encoder,
    resolve_device,
    unused_gpu,
)
from embeddings_assets.encoders.plan import check_device
from embeddings_assets.encoders.weights.fetch import find_or_fetch
from embeddings_assets.encoders.weights.find import find_weights
from embeddings_assets.errors import DeviceError, EmbeddingsError, SettingsError
from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.extraction.engine import extract_split, store_vectors
from embeddings_assets.extraction.fidelity import measure_fidelity
from embeddings_assets.extraction.report import ExtractionOptions, Fidelity, Progress, SplitReport
from embeddings_assets.extraction.worker import ToPixels
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
        self._exact: EncoderHolder | None = None

    def footer(self) -> dict[str, Any]:
        return self.plan.footer()

    def to_pixels(self) -> ToPixels:
        return self.plan.to_pixels()

    def on(self, device: str) -> "EncoderHolder":
        return EncoderHolder(replace(self.plan, device=device))

    def device(self) -> str:
        device = resolve_device(self.plan.device)
        log.info("%s runs on %s", self.plan.spec.name, device)
        unused = unused_gpu(device)
        if unused:
            log.warning("%s", unused)
        return device

    def device_memory(self) -> int:
        return device_memory(resolve_device(self.plan.device))

    def load(self) -> Encoder:
        if self._encoder is None:
            self._encoder = self.plan.load()
        self._encoder.reset_peak()
        return self._encoder

    def exact(self) -> Encoder:
        """The same model in the `exact` profile."""
        if self._exact is None:
            self._exact = EncoderHolder(self.plan.exact())
        return self._exact.load()

    def close(self) -> None:
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None
        if self._exact is not None:
            self._exact.close()


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
        precision: `exact` or `fast`; width: `contract` or `native`; device: `auto`, `cpu`, `cuda`, `cuda:N`,
            or several, separated by commas, to share the work: `cuda:0,cuda:1`.
    """

    weights: str | Path
    fetch: bool = False
    precision: str = "exact"
    width: str = "contract"
    device: str = "auto"

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.device.split(","))

    def plan(self, model: str) -> EncoderPlan:
        """The encoder of a model as far as it is known without loading it.

        Raises:
            WeightsError: no usable weights.
            SettingsError: a device or precision that cannot be had.
        """
        if not str(self.weights):
            raise SettingsError("No weights are named.", remedy="--weights DIR, or --weights random")
        for device in self.devices:
            check_device(device)
        can_fetch = self.fetch and str(self.weights) != RANDOM_WEIGHTS
        source = find_or_fetch(model, Path(self.weights)) if can_fetch else find_weights(model, self.weights)
        return plan_encoder(
            model, weights=source, precision=self.precision, width=self.width, device=self.devices[0]
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
    decoders: Decoders | None = None,
) -> SplitReport:
    """Embed one split with one encoder (see `extract_split` for what is raised).

    What is computed in `fast` is compared with `exact` on a sample before it is committed; where that cannot
    be done, a warning says why, and it is committed without.
    """
    manifest = open_or_prepare(dataset, split, paths)
    fidelity: Fidelity | None = None
    device_bytes = 0

    def compare(folder: Path, made: int) -> None:
        nonlocal fidelity, device_bytes
        try:
            exact = holder.exact()
            workers = options.workers if options else None
            fidelity = measure_fidelity(manifest, folder, exact, made, decoding, workers)
            device_bytes = exact.peak_device_bytes()
        except DeviceError:
            raise  # what it has computed before is not to be trusted: no commit
        except (EmbeddingsError, MemoryError, OSError) as error:
            name = f"{holder.plan.spec.name} {dataset}/{split}"
            log.warning("%s: not compared with exact: %s", name, error)

    with contextlib.ExitStack() as stack:
        decoding = decoders or stack.enter_context(Decoders())
        report = extract_split(
            manifest,
            holder,
            target=paths.embeddings_split(holder.plan.spec.name, dataset, split),
            staging_root=paths.staging,
            options=options,
            progress=progress,
            decoders=decoding,
            before_commit=None if holder.plan.precision == "exact" else compare,
        )
    device_bytes = max(report.peak_device_bytes, device_bytes)
    return replace(report, fidelity=fidelity, peak_device_bytes=device_bytes)


@dataclass(frozen=True)
class SplitRequest:
    """One split to embed: which, from where to where, and how."""

    model: str
    dataset: str
    split: str
    paths: DataPaths
    choice: EncoderChoice
    options: ExtractionOptions


class EncoderCache:
    """What is worth keeping from one split to the next: encoders by model and choice, decoding processes.

    Each is made when it is first wanted.
    """

    def __init__(self) -> None:
        self._holders: dict[tuple[str, EncoderChoice], EncoderHolder] = {}
        self._decoders: Decoders | None = None

    def embed(self, request: SplitRequest, progress: Progress | None = None) -> SplitReport:
        """Embed one split (see `process_split`)."""
        self._decoders = self._decoders or Decoders()
        return process_split(
            self.holder(request.model, request.choice),
            request.dataset,
            request.split,
            request.paths,
            options=request.options,
            progress=progress,
            decoders=self._decoders,
        )

    def close(self) -> None:
        """Free every loaded encoder and end the processes."""
        for holder in self._holders.values():
            holder.close()
        self._holders.clear()
        if self._decoders is not None:
            self._decoders.close()
            self._decoders = None

    def holder(self, model: str, choice: EncoderChoice) -> EncoderHolder:
        """The holder that is kept, unless the weights on disk are others by now."""
        plan = choice.plan(model)
        kept = self._holders.get((model, choice))
        if kept is not None and kept.plan == plan:
            return kept
        if kept is not None:
            kept.close()
        holder = self._holders[model, choice] = EncoderHolder(plan)
        return holder


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
    options = replace(options or ExtractionOptions(), devices=choice.devices)
    with Decoders() as decoders:
        return [
            outcome
            for model in models
            for outcome in _process_model(
                model, datasets, splits, paths, choice, decoders, options=options, progress=progress
            )
        ]


def _process_model(
    model: str,
    datasets: Sequence[str],
    splits: Sequence[str],
    paths: DataPaths,
    choice: EncoderChoice,
    decoders: Decoders,
    *,
    options: ExtractionOptions | None,
    progress: ProgressFor | None,
) -> list[Outcome]:
    outcomes = [Outcome(model, dataset, split) for dataset in datasets for split in splits]
    try:
        holder = EncoderHolder(choice.plan(model))
    except EmbeddingsError as error:
        for outcome in outcomes:
            outcome.error = error
        return outcomes
    with contextlib.closing(holder):
        for outcome in outcomes:
            callback = progress(model, outcome.dataset, outcome.split) if progress else None
            try:
                outcome.report = process_split(
                    holder,
                    outcome.dataset,
                    outcome.split,
                    paths,
                    options=options,
                    progress=callback,
                    decoders=decoders,
                )
            except DeviceError as error:
                for left in outcomes[outcomes.index(outcome) :]:
                    left.error = error
                break
            except EmbeddingsError as error:
                outcome.error = error
    return outcomes
