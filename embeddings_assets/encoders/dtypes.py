"""The dtype of a profile's matrix products, by the device that will compute them."""

import functools
from pathlib import Path

EXACT = "float32"
LOWERED = "bfloat16"
FAST_ARITHMETIC = 2  # raised by whatever changes vectors that are computed in less than float32

# Names that Linux gives to instructions for bfloat16 products: x86 (AVX512, AMX) and arm64.
_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_GPU_DRIVERS = ("/proc/driver/nvidia/gpus", "/dev/nvidia0", "/dev/dxg")


def compute_dtype(precision: str, device: str) -> str:
    """`float32` for `exact`; for `fast`, `bfloat16` on a GPU and on CPUs that have instructions for it.

    Other CPUs would emulate it, at a sixth of the speed of float32 (AMD Zen 3).
    """
    if precision == "exact":
        return EXACT
    return LOWERED if _is_gpu(device) or cpu_has_bfloat16() else EXACT


@functools.cache
def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU multiplies bfloat16 itself; False where the system does not say."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    words = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return not _INSTRUCTIONS.isdisjoint(words)


def _is_gpu(device: str) -> bool:
    if device != "auto":
        return device.startswith("cuda")
    if not any(Path(name).exists() for name in _GPU_DRIVERS):
        return False  # known without the seconds that importing torch takes
    import torch

    return torch.cuda.is_available()
