"""What is ready and what is missing, each with the command that gets it; nothing is changed."""

import importlib.metadata
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from embeddings_assets.catalog import DATASETS, MODELS, SPLITS, DatasetSpec
from embeddings_assets.datasets.layouts.parsing import cannot_read
from embeddings_assets.datasets.status import RawStatus, raw_status
from embeddings_assets.encoders.encoder import resolve_device
from embeddings_assets.encoders.self_test import network_fault, pixel_fault
from embeddings_assets.encoders.weights.inventory import list_weights
from embeddings_assets.errors import EmbeddingsError, StoreError
from embeddings_assets.extraction.memory import host_memory
from embeddings_assets.settings import RANDOM_WEIGHTS, Settings
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.schema import MANIFEST_NAME

State = Literal["ready", "missing", "partial", "wrong", "note"]

_PACKAGES = (
    "dagster",
    "torch",
    "torchvision",
    "transformers",
    "open_clip_torch",
    "pandas",
    "pyarrow",
    "Pillow",
)
_FLOAT_BYTES = 4
_REINSTALL = "make setup, or: pip install -r requirements.lock"


@dataclass(frozen=True)
class Line:
    """One line of the report: what was looked at, its state, what was found, the next command if any."""

    topic: str
    item: str
    state: State
    found: str
    remedy: str = ""


def examine(settings: Settings) -> list[Line]:
    """Look at raw data, manifests, weights, disk, memory, device and package versions."""
    statuses = {spec.name: raw_status(spec.name, settings.paths) for spec in DATASETS}
    return [
        *(_dataset(settings, spec, statuses[spec.name]) for spec in DATASETS),
        *_weights(settings),
        *_machine(settings, [spec for spec in DATASETS if statuses[spec.name].state == "missing"]),
        *_versions(),
        _self_test(),
    ]


def _dataset(settings: Settings, spec: DatasetSpec, status: RawStatus) -> Line:
    place = settings.paths.raw / spec.raw_folder
    prepare = f'embeddings-assets prepare --dataset "{spec.name}"'
    prepared, damaged = _prepared(settings, spec)
    if damaged is not None:
        return Line("raw data", spec.name, "wrong", damaged.problem, damaged.remedy or prepare)
    if status.state == "missing":
        found = f"nothing at {place}" + (f"; {prepared}" if not prepared.startswith("0 ") else "")
        return Line("raw data", spec.name, "missing", found, status.remedy or "")
    if status.state == "wrong":
        return Line("raw data", spec.name, "wrong", status.problem or "", status.remedy or "")
    counted = f"{status.found:,} of {status.listed:,} images"
    if status.folder != place:
        counted += f" in {status.folder}"
    if status.state == "partial":
        return Line("raw data", spec.name, "partial", f"{counted}; {prepared}", status.remedy or "")
    note = f" ({status.problem})" if status.problem else ""
    remedy = "" if prepared.startswith(f"{len(SPLITS)} ") else prepare
    return Line("raw data", spec.name, "ready", f"{counted}{note}; {prepared}", remedy)


def _prepared(settings: Settings, spec: DatasetSpec) -> tuple[str, EmbeddingsError | None]:
    """How many splits have a manifest, in words; and what is wrong with one, if anything."""
    whole = 0
    damaged: EmbeddingsError | None = None
    for split in SPLITS:
        path = settings.paths.processed_split(spec.name, split) / MANIFEST_NAME
        try:
            if path.is_file():
                open_manifest(settings.paths, spec.name, split)
                whole += 1
        except StoreError as error:
            damaged = error
        except OSError as error:
            damaged = cannot_read(error.filename or path, error)
    return f"{whole} of {len(SPLITS)} splits prepared", damaged


def _weights(settings: Settings) -> list[Line]:
    if settings.weights == RANDOM_WEIGHTS:
        return [Line("weights", "all models", "note", "random (untrained), by EMBEDDINGS_WEIGHTS")]
    lines = []
    for row in list_weights(Path(settings.weights)):
        fetch = f'embeddings-assets weights fetch "{row.model}"'
        if row.state == "ready":
            known = "published digest" if row.trained else "digest not among the known published ones"
            found = f"{row.path} ({(row.size or 0) / 1e6:.0f} MB, {known})"
            lines.append(Line("weights", row.model, "ready", found))
        elif row.state == "random":
            lines.append(Line("weights", row.model, "note", "random (untrained), by weights.lock", fetch))
        elif row.state == "missing":
            lines.append(Line("weights", row.model, "missing", f"nothing in {settings.weights}", fetch))
        else:
            lines.append(Line("weights", row.model, "wrong", row.problem or "invalid", fetch))
    return lines


def _machine(settings: Settings, absent: list[DatasetSpec]) -> list[Line]:
    return [
        _disk(settings, absent),
        Line("machine", "memory", "note", f"{host_memory() / 1e9:.0f} GB, {os.cpu_count()} cores"),
        Line("machine", "device", "note", _device()),
    ]


def _disk(settings: Settings, absent: list[DatasetSpec]) -> Line:
    root = settings.data_root.resolve()
    existing = next(path for path in [root, *root.parents] if path.exists())
    free = shutil.disk_usage(existing).free
    raw = sum(spec.unpacked_bytes + sum(map(spec.bytes_of, spec.archives)) for spec in absent)
    width = sum(model.stored_width(settings.width) for model in MODELS)
    images = sum(sum(spec.counts.values()) for spec in DATASETS)
    embeddings = images * width * _FLOAT_BYTES
    found = (
        f"{free / 1e9:.1f} GB free at {existing}; about {raw / 1e9:.1f} GB needed for {len(absent)} missing "
        f"datasets and their archives, {embeddings / 1e9:.1f} GB for all embeddings"
    )
    if raw + embeddings > free:
        return Line("machine", "disk", "wrong", found, "make room, or set EMBEDDINGS_DATA to a larger disk")
    return Line("machine", "disk", "ready", found)


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device; the CPU will be used"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _versions() -> list[Line]:
    found, missing = [], []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if not missing:
        return [Line("versions", "packages", "ready", ", ".join(found))]
    return [Line("versions", "packages", "missing", f"without {', '.join(missing)}", _REINSTALL)]


def _self_test() -> Line:
    """Whether images and networks give the published values here, which `exact` asks before any vector."""
    try:
        device = resolve_device("auto")
        faults = [pixel_fault(), *(network_fault(model, device) for model in MODELS)]
    except EmbeddingsError as error:
        return Line("versions", "self-test", "wrong", f"cannot run ({error.problem})", error.remedy or "")
    except (ImportError, OSError, MemoryError, RuntimeError) as error:
        return Line("versions", "self-test", "wrong", f"cannot run ({error})", _REINSTALL)
    for fault in faults:
        if fault is not None:
            return Line("versions", "self-test", "wrong", fault.problem, fault.remedy)
    names = ", ".join(model.name for model in MODELS)
    return Line("versions", "self-test", "ready", f"images and networks as published, on {device}: {names}")
