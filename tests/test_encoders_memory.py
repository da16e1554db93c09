"""An encoder that is short of memory says so in one way, whatever runs short inside torch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_tree import DATASET, write_tree

from embeddings_assets.catalog import SPLITS
from embeddings_assets.encoders.encoder import Encoder, unused_gpu
from embeddings_assets.encoders.shortage import device_errors
from embeddings_assets.errors import DeviceError
from embeddings_assets.pipeline import EncoderChoice, process_all

_LIMITED = """
import resource, sys
import numpy as np
from embeddings_assets.pipeline import EncoderChoice, EncoderHolder

holder = EncoderHolder(EncoderChoice(weights="random", precision=sys.argv[1]).plan("CLIP"))
encoder = holder.load()
pixels = np.zeros((2048, 224, 224, 3), np.uint8)
pixels[:, 0, 0, 0] = np.arange(2048) % 256
encoder.encode(pixels[:2])
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + 300 * 2**20, resource.RLIM_INFINITY))
try:
    encoder.encode(pixels)
except MemoryError as error:
    print("short:", error)

from embeddings_assets.extraction.batching import Batcher
batcher = Batcher(64)
print(batcher.submit(encoder, pixels[:64])().shape)
"""


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_what_torch_raises_becomes_a_memory_error_and_the_encoder_goes_on(precision: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _LIMITED, precision],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    assert "short:" in ended.stdout
    assert "(64, 512)" in ended.stdout


_LIMITED_LOAD = """
import resource
import torch
from embeddings_assets.errors import EmbeddingsError
from embeddings_assets.pipeline import EncoderChoice, EncoderHolder
import embeddings_assets.encoders.encoder

plan = EncoderChoice(weights="random").plan("CLIP")
torch.ones(1 << 22).exp()  # threads that torch could not start later would end the process
size = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (size * 1024 + 200 * 2**20, resource.RLIM_INFINITY))
try:
    EncoderHolder(plan).load()
except EmbeddingsError as error:
    print("said:", error)
"""


def test_weights_that_do_not_fit_are_told() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _LIMITED_LOAD],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    assert "said: There is not enough memory for the weights of CLIP" in ended.stdout


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"
        ),
        RuntimeError("could not create a memory object"),
        RuntimeError("could not create a primitive"),
        RuntimeError("std::bad_alloc"),
        MemoryError("Unable to allocate 1.2 GiB for an array"),
    ],
    ids=lambda error: str(error)[:40],
)
def test_every_way_to_be_short_of_memory_is_a_memory_error(error: Exception) -> None:
    with pytest.raises(MemoryError) as short, device_errors():
        raise error
    assert str(short.value) == str(error)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered",
        "could not create a primitive descriptor for the matmul primitive",
    ],
)
def test_other_failures_of_a_device_stay_what_they_are(said: str) -> None:
    error = RuntimeError(said)
    with pytest.raises(RuntimeError) as failed, device_errors():
        raise error
    assert failed.value is error


def test_a_failed_gpu_is_an_error_with_a_way_out() -> None:
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with ...")
    with pytest.raises(DeviceError) as failed, device_errors():
        raise error
    assert "illegal memory access" in failed.value.problem
    assert "\n" not in failed.value.problem
    assert "--device cpu" in str(failed.value.remedy)


def test_a_failed_gpu_is_not_tried_again_for_the_models_other_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fail(encoder: Encoder, pixels: np.ndarray) -> torch.Tensor:
        asked.append(len(pixels))
        with device_errors():
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Encoder, "_forward", fail)
    paths = write_tree(tmp_path, per_class=1)
    choice = EncoderChoice(weights="random", device="cpu")
    outcomes = process_all(["CLIP"], [DATASET], SPLITS, paths, choice)
    assert [(outcome.split, type(outcome.error)) for outcome in outcomes] == [
        (split, DeviceError) for split in SPLITS
    ]
    assert len(asked) == 1


def test_a_gpu_that_lies_idle_is_told(tmp_path: Path) -> None:
    assert unused_gpu("cuda", tmp_path) is None
    assert unused_gpu("cpu", tmp_path / "none") is None or torch.cuda.is_available()
    (tmp_path / "0000:01:00.0").mkdir()
    said = unused_gpu("cpu", tmp_path)
    assert said is not None
    assert "present" in said
