"""One loaded encoder: pixels in, unit vectors out."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from embeddings_assets.encoders.family import family_of
from embeddings_assets.encoders.fast.lowering import lower
from embeddings_assets.encoders.heap import give_freed_memory_back, keep_freed_memory
from embeddings_assets.encoders.plan import EncoderPlan, plan_encoder
from embeddings_assets.encoders.projection import load_projection
from embeddings_assets.encoders.shortage import device_errors
from embeddings_assets.errors import EmbeddingsError, SettingsError, WeightsError

if TYPE_CHECKING:
    import torch

__all__ = ["Encoder", "EncoderPlan", "plan_encoder"]


class Encoder:
    """A model on its device. Not safe for use by several threads at once, except `pixels`.

    Args:
        model: what the plan's family has built; by default it is built from the plan's weights.

    Raises:
        SettingsError: the plan asks for a GPU that is not there.
        WeightsError: the weights do not load, or are of another architecture.
    """

    def __init__(self, plan: EncoderPlan, model: "torch.nn.Module | None" = None) -> None:
        import torch

        self.plan = plan
        self.device = resolve_device(plan.device)
        if self.device == "cpu":
            keep_freed_memory()
        family = family_of(plan.spec)
        model = family.build(plan.source) if model is None else model
        parts = family.class_token_parts(model)
        if parts is not None:
            from embeddings_assets.encoders.class_token import ClassTokenBlock

            parts.blocks[-1] = ClassTokenBlock(parts)
        if plan.precision == "fast":
            lower(model, family, plan.compute_dtype, self.device)
        self._model: torch.nn.Module | None = model.to(self.device).requires_grad_(False).eval()
        # A stream of their own lets copies go on while the batch before is computed.
        self._copies = torch.cuda.Stream(self.device) if self.device.startswith("cuda") else None
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(plan.recipe.mean, dtype=torch.float32, device=self.device).view(shape)
        self._std = torch.tensor(plan.recipe.std, dtype=torch.float32, device=self.device).view(shape)
        self._levels = torch.tensor(255.0, dtype=torch.float32, device=self.device)
        self._projection: torch.Tensor | None = None
        if plan.projected:
            self._projection = torch.from_numpy(load_projection().copy()).to(self.device)
        if self.device == "cpu":
            give_freed_memory_back()  # what loading has used, often in another thread's heap

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """As `EncoderPlan.pixels`."""
        return self.plan.pixels(image)

    def normalised_pixels(self, pixels: npt.NDArray[np.uint8]) -> "torch.Tensor":
        """uint8 [n, S, S, 3] to the network's input: float32 [n, 3, S, S] on the device.

        The same operations in the same order as torchvision's ToTensor and Normalize. The divisors are
        tensors on the device: CUDA would turn a division by a Python number into a multiplication.
        """
        import torch

        batch = torch.from_numpy(np.ascontiguousarray(pixels))
        if self._copies is not None:
            computing = torch.cuda.current_stream(self.device)
            with torch.cuda.stream(self._copies):
                batch = batch.pin_memory().to(self.device, non_blocking=True)
            computing.wait_stream(self._copies)
            batch.record_stream(computing)
        batch = batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return batch.div_(self._levels).sub_(self._mean).div_(self._std)

    def encode(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [n, S, S, 3] to float32 [n, width] of unit L2 norm.

        Raises:
            EmbeddingsError: the array has another shape or dtype, the network another width than the catalog
            states, or the encoder is closed.
            WeightsError: the network gives values that are not finite, or a zero vector.
            MemoryError: too little memory for so many images.
        """
        return self.submit(pixels)()

    def submit(self, pixels: npt.NDArray[np.uint8]) -> Callable[[], npt.NDArray[np.float32]]:
        """Begin with a batch on a GPU, which works on while this process does something else.

        What is returned waits for the vectors; on a CPU it computes them. Both raise as `encode` does.
        """
        size = self.plan.recipe.size
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
            raise EmbeddingsError(
                f"pixels are {pixels.dtype} {list(pixels.shape)}, expected uint8 [n, {size}, {size}, 3]."
            )
        if self._model is None:
            raise EmbeddingsError(f"the encoder of {self.plan.spec.name} is closed.", remedy="load it again")
        if len(pixels) == 0:
            return lambda: np.zeros((0, self.plan.width), dtype=np.float32)
        if self._copies is None:
            return lambda: self._checked(self._forward(pixels).numpy())
        return functools.partial(self._finish, *self._begin(pixels))

    def _forward(self, pixels: npt.NDArray[np.uint8]) -> "torch.Tensor":
        """Vectors on the device, float32 [n, width]."""
        import torch

        if self._model is None:
            raise EmbeddingsError(f"the encoder of {self.plan.spec.name} is closed.", remedy="load it again")
        with torch.inference_mode(), ieee_float32(), device_errors():
            native = self._model(self.normalised_pixels(pixels)).float()
            if native.shape[1] != self.plan.spec.native_width:
                raise EmbeddingsError(
                    f"{self.plan.spec.name}: the network gives vectors of width {native.shape[1]}, "
                    f"but native_width is {self.plan.spec.native_width}.",
                    remedy="correct the model's row in catalog.py, or give the model a family of its own",
                )
            vectors = native / native.norm(dim=1, keepdim=True)
            if self._projection is not None:
                vectors = vectors @ self._projection
                vectors = vectors / vectors.norm(dim=1, keepdim=True)
            return vectors

    def _begin(self, pixels: npt.NDArray[np.uint8]) -> "tuple[torch.Tensor, torch.cuda.Event]":
        """Queue a batch on a GPU: its vectors on their way to pinned memory, and when they arrive."""
        import torch

        with torch.cuda.device(self.device), device_errors():
            vectors = self._forward(pixels)
            arriving = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            arriving.copy_(vectors, non_blocking=True)
            arrived = torch.cuda.Event(blocking=True)  # waiting takes no core from the decoding processes
            arrived.record()
        return arriving, arrived

    def _finish(self, arriving: "torch.Tensor", arrived: "torch.cuda.Event") -> npt.NDArray[np.float32]:
        with device_errors():
            arrived.synchronize()
        return self._checked(arriving.numpy().copy())

    def _checked(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if not np.isfinite(vectors).all():
            weights = self.plan.source.path or self.plan.source.origin
            raise WeightsError(
                f"{weights}: {self.plan.spec.name} gives vectors that are not finite. The file is damaged, "
                "or a library computes wrongly.",
                remedy="embeddings-assets weights verify",
            )
        return vectors

    def rest(self) -> None:
        """Give back what was kept for the next batch; the weights stay."""
        if self._copies is None:
            give_freed_memory_back()

    def reset_peak(self) -> None:
        """Let `peak_device_bytes` count from now."""
        import torch

        if self._copies is not None:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_device_bytes(self) -> int:
        """The most GPU memory that torch has held since `reset_peak`; 0 on a CPU."""
        import torch

        return 0 if self._copies is None else torch.cuda.max_memory_allocated(self.device)

    def close(self) -> None:
        """Free the model's memory. The encoder encodes no more; closing twice is allowed."""
        import torch

        self._model = self._projection = None
        if self._copies is not None:
            with contextlib.suppress(torch.AcceleratorError):  # a GPU that has failed has nothing to free
                torch.cuda.empty_cache()
        else:
            give_freed_memory_back()


def resolve_device(device: str) -> str:
    """ "auto", "cpu", "cuda" or "cuda:N" to the device that will be used.

    Raises:
        SettingsError: a GPU is asked for and is not there.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return "cuda" if gpus else "cpu"
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= gpus:
        raise SettingsError(
            f"device is {device!r}, but torch {torch.__version__} sees {gpus} CUDA device(s).",
            remedy="--device cpu, or install a driver that fits (nvidia-smi; embeddings-assets doctor)",
        )
    return device


def unused_gpu(device: str, driver: Path = Path("/proc/driver/nvidia/gpus")) -> str | None:
    """What to say where an encoder runs on the CPU although there is a GPU; otherwise None.

    Args:
        driver: a folder with an entry for each GPU that the NVIDIA driver knows.
    """
    import torch

    if device != "cpu":
        return None
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} is present but not used; --device cuda uses it"
    if driver.is_dir() and any(driver.iterdir()):
        return (
            f"a GPU is present, but torch {torch.__version__} cannot use it; "
            "look at nvidia-smi and embeddings-assets doctor"
        )
    return None


def device_memory(device: str) -> int:
    """All memory of a GPU in bytes; 0 for a CPU."""
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory) if device.startswith("cuda") else 0


@contextlib.contextmanager
def ieee_float32() -> Iterator[None]:
    """float32 products in full precision: no TF32 on GPUs, no bfloat16 on CPUs, whatever is set globally.

    cuDNN convolutions use TF32 by default. Matrix products heed both the older process-wide setting and the
    newer one per backend, and torch refuses to multiply while the two disagree.
    """
    import torch

    backends: list[Any] = [torch.backends.cuda.matmul]
    for library in (torch.backends.cudnn, torch.backends.mkldnn):
        backends += [
            getattr(library, operation) for operation in ("conv", "matmul") if hasattr(library, operation)
        ]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    products = torch.get_float32_matmul_precision()
    try:
        if products != "highest":
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        if products != "highest":
            torch.set_float32_matmul_precision(products)
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
