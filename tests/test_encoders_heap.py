"""Memory that is freed between batches: kept while a model computes, given back after it."""

import subprocess
import sys

import pytest

BLOCK = 64 << 20  # bytes, as large as the largest tensors of a batch
PAGE = 4096

_FAULTS = f"""
import resource, sys
import torch
from embeddings_assets.encoders.heap import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else False
for _ in range(20):  # small allocations take their places in the first ones
    torch.ones({BLOCK} // 4)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones({BLOCK} // 4)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

_RESIDENT = """
from pathlib import Path
import numpy as np
from embeddings_assets.encoders.plan import plan_encoder

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096

encoder = plan_encoder("CLIP", weights="random", device="cpu").load()
encoder.encode(np.zeros((8, 224, 224, 3), np.uint8))
before = resident()
encoder.close()
print(before - resident())
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what glibc's malloc does")


def run(program: str, *arguments: str, **environment: str) -> list[str]:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_block_that_is_freed_is_used_again_without_faults() -> None:
    assert int(run(_FAULTS, "leave")[1]) > 9 * BLOCK // PAGE, "malloc gives blocks back by itself"
    kept, faults = run(_FAULTS, "keep")
    assert kept == "True"
    assert int(faults) < BLOCK // PAGE / 10


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_sets_stays(name: str) -> None:
    kept, faults = run(
        _FAULTS, "keep", **{name: "0" if name.startswith("MALLOC") else "glibc.malloc.perturb=0"}
    )
    assert kept == "False"
    assert int(faults) > 9 * BLOCK // PAGE


def test_a_closed_encoder_gives_its_memory_back() -> None:
    weights = 350 << 20
    assert int(run(_RESIDENT)[0]) > weights * 0.9
