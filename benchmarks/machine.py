"""What a benchmark ran on: hardware, versions, revision, command line.

    python benchmarks/machine.py

prints it as JSON; the other benchmarks keep it beside their results.
"""

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from embeddings_assets.extraction.memory import host_memory
from embeddings_assets.workers.process import default_workers

PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "open_clip_torch",
    "sentence-transformers",
    "Pillow",
    "pyarrow",
    "pandas",
    "numpy",
    "embeddings-assets",
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def machine() -> dict[str, Any]:
    """As JSON values; None where something is not known or not there."""
    cpuinfo = _cpuinfo()
    flags = set(cpuinfo.get("flags", cpuinfo.get("Features", "")).split())
    return {
        "hardware": {
            "system": platform.platform(),
            "cpu": cpuinfo.get("model name") or platform.processor() or platform.machine(),
            "cores": default_workers(1024),
            "cores_of_the_machine": os.cpu_count(),
            "memory_gb": round(host_memory() / 1e9, 1),
            "cpu_flags": {name: name in flags for name in CPU_FLAGS},
            "gpus": _gpus(),
            "gpu_driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
            "torch_threads": torch.get_num_threads(),
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "revision": _output("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
    }


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [
        {
            "name": gpu.name,
            "memory_gb": round(gpu.total_memory / 1e9, 1),
            "capability": f"{gpu.major}.{gpu.minor}",
        }
        for gpu in found
    ]


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core."""
    path = Path("/proc/cpuinfo")
    text = path.read_text().split("\n\n")[0] if path.exists() else ""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """The first line that a command prints about this repository; None where it cannot be had."""
    try:
        shown = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=20
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(shown.splitlines()), None)


if __name__ == "__main__":
    print(json.dumps(machine(), indent=1))
