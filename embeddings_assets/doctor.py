"""What is ready and what is missing, each with the command that gets it; nothing is changed."""

import importlib.metadata
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from embeddings_assets.catalog import DATASETS
from embeddings_assets.datasets.processed import raw_status
from embeddings_assets.encoders.inventory import list_weights
from embeddings_assets.settings import RANDOM_WEIGHTS, Settings

State = Literal["ready", "missing", "wrong", "note"]

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
_GIB = 2**30


@dataclass(frozen=True)
class Line:
    """One line of the report: what was looked at, its state, what was found, the next command if any."""

    topic: str
    item: str
    state: State
    found: str
    remedy: str = ""


def examine(settings: Settings) -> list[Line]:
    """Look at raw data, weights, disk, memory, device and package versions."""
    return [*_datasets(settings), *_weights(settings), *_machine(settings), *_versions()]


def _datasets(settings: Settings) -> list[Line]:
    lines = []
    for spec in DATASETS:
        status = raw_status(spec.name, settings.paths)
        count = f"{status.found:,} of {status.listed:,} images" if status.listed else "no images listed"
        prepare = f'embeddings-assets prepare --dataset "{spec.name}"'
        if status.state in ("present", "processed-tree"):
            found = f"{count} in {status.folder}" + (f"; {status.problem}" if status.problem else "")
            lines.append(Line("raw data", spec.name, "ready", found, prepare))
        elif status.state == "partial":
            remedy = f"complete {status.folder}, or {prepare} --allow-missing"
            lines.append(Line("raw data", spec.name, "wrong", count, remedy))
        elif status.state == "wrong":
            lines.append(
                Line(
                    "raw data", spec.name, "wrong", status.problem or "not the official layout", spec.homepage
                )
            )
        else:
            place = f"{spec.homepage} -> {settings.paths.raw / spec.raw_folder}"
            lines.append(Line("raw data", spec.name, "missing", "no raw folder", place))
    return lines


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


def _machine(settings: Settings) -> list[Line]:
    existing = next(
        path for path in [settings.data_root, *settings.data_root.resolve().parents] if path.exists()
    )
    free = shutil.disk_usage(existing).free
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [
        Line("machine", "disk", "note", f"{free / _GIB:.0f} GiB free at {existing.resolve()}"),
        Line("machine", "memory", "note", f"{memory / _GIB:.0f} GiB, {os.cpu_count()} cores"),
        Line("machine", "device", "note", _device()),
    ]


def _device() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device; the CPU will be used"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _versions() -> list[Line]:
    return [Line("versions", name, "ready", importlib.metadata.version(name)) for name in _PACKAGES]
