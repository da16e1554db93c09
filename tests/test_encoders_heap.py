"""Memory that is freed between batches: kept while a model computes, given back after it."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from embeddings_assets.catalog import MODELS

BLOCK = 64 << 20  # bytes, as large as tensors of a batch
PAGES = BLOCK // resource.getpagesize()
_HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")

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
import resource, sys, threading
from pathlib import Path
import numpy as np
from embeddings_assets.encoders.plan import plan_encoder

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()

def load_and_encode():
    global encoder
    encoder = plan_encoder(sys.argv[1], weights="random", device="cpu", precision=sys.argv[2]).load()
    encoder.encode(np.zeros((8, 224, 224, 3), np.uint8))

# As the engine does: weights are loaded in a thread of their own.
loading = threading.Thread(target=load_and_encode)
loading.start()
loading.join()
before = resident()
encoder.close()
print(before - resident())
"""

_AFTER_A_CALL = """
import resource, sys
from pathlib import Path
import numpy as np
from PIL import Image
from embeddings_assets.encoders.batch import embed_images, kept_encoder
from embeddings_assets.encoders.heap import give_freed_memory_back
from embeddings_assets.encoders.plan import plan_encoder

def given_back():
    pages = Path("/proc/self/statm")
    before = int(pages.read_text().split()[1])
    give_freed_memory_back()
    return (before - int(pages.read_text().split()[1])) * resource.getpagesize()

plan = plan_encoder("CLIP", weights="random", device="cpu")
embed_images([Image.new("RGB", (300, 300))] * 16, plan)
after_a_call = given_back()
kept_encoder(plan).encode(np.zeros((16, 224, 224, 3), np.uint8))
print(after_a_call, given_back())
"""


def glibc() -> tuple[int, ...]:
    name, version = platform.libc_ver()
    return tuple(int(part) for part in version.split(".")) if name == "glibc" else (0,)


pytestmark = pytest.mark.skipif(
    glibc() < (2, 35) or (_HUGE.is_file() and "[always]" in _HUGE.read_text()),
    reason="counts small pages of glibc's malloc, from 2.35 on",
)


def run(program: str, *arguments: str, **environment: str) -> list[str]:
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC", "GLIBC"))
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_a_block_that_is_freed_is_used_again_without_faults() -> None:
    assert int(run(_FAULTS, "leave")[1]) > 9 * PAGES, "malloc gives blocks back by itself"
    kept, faults = run(_FAULTS, "keep")
    assert kept == "True"
    assert int(faults) < PAGES / 10


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "0"), ("GLIBC_TUNABLES", "glibc.malloc.perturb=0")]
)
def test_what_the_environment_sets_stays(name: str, value: str) -> None:
    kept, faults = run(_FAULTS, "keep", **{name: value})
    assert kept == "False"
    assert int(faults) > 9 * PAGES


def test_tunables_of_anything_else_change_nothing() -> None:
    kept, _ = run(_FAULTS, "keep", GLIBC_TUNABLES="glibc.rtld.optional_static_tls=2048")
    assert kept == "True"


@pytest.mark.parametrize(
    ("name", "precision"), [*((model.name, "exact") for model in MODELS), ("DINOv2", "fast")]
)
def test_a_closed_encoder_gives_its_memory_back(name: str, precision: str) -> None:
    weights = {"exact": 340 << 20, "fast": 170 << 20}[precision]
    assert int(run(_RESIDENT, name, precision)[0]) > weights * 0.9


def test_a_call_of_the_api_gives_back_what_was_kept_for_the_next_batch() -> None:
    after_a_call, after_a_batch = map(int, run(_AFTER_A_CALL))
    assert after_a_batch > 16 << 20, "an encoder keeps it"
    assert after_a_call < after_a_batch / 4
