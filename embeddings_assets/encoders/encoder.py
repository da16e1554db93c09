"""One loaded encoder: pixels in, unit vectors out."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from embeddings_assets.encoders.lowering import lower_blocks
from embeddings_assets.encoders.plan import EncoderPlan, plan_encoder
from embeddings_assets.encoders.projection import load_projection
from embeddings_assets.errors import EmbeddingsError, SettingsError, WeightsError

if TYPE_CHECKING:
    import torch

__all__ = ["Encoder", "EncoderPlan", "plan_encoder"]


class Encoder:
    """A model on its device. Not safe for use by several threads at once, except `pixels`.

    Raises:
        SettingsError: the plan asks for a GPU that is not there.
        WeightsError: the weights do not load, or are of another architecture.
    """

    def __init__(self, plan: EncoderPlan) -> None:
        import torch

        self.plan = plan
        self.device = resolve_device(plan.device)
        family = importlib.import_module(f"embeddings_assets.encoders.{plan.spec.encoder}")
        model: torch.nn.Module = family.build(plan.source)
        if plan.compute_dtype != "float32":
            lower_blocks(family.blocks(model), getattr(torch, plan.compute_dtype))
        self._model: torch.nn.Module | None = model.to(self.device).requires_grad_(False).eval()
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(plan.recipe.mean, dtype=torch.float32, device=self.device).view(shape)
        self._std = torch.tensor(plan.recipe.std, dtype=torch.float32, device=self.device).view(shape)
        self._levels = torch.tensor(255.0, dtype=torch.float32, device=self.device)
        self._projection: torch.Tensor | None = None
        if plan.projected:
            self._projection = torch.from_numpy(load_projection().copy()).to(self.device)

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """As `EncoderPlan.pixels`."""
        return self.plan.pixels(image)

    def normalised_pixels(self, pixels: npt.NDArray[np.uint8]) -> "torch.Tensor":
        """uint8 [n, S, S, 3] to the network's input: float32 [n, 3, S, S] on the device.

        The same operations in the same order as torchvision's ToTensor and Normalize. The divisors are
        tensors on the device: CUDA would turn a division by a Python number into a multiplication.
        """
        import torch

        batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device)
        batch = batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return batch.div_(self._levels).sub_(self._mean).div_(self._std)

    def encode(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [n, S, S, 3] to float32 [n, width] of unit L2 norm.

        Raises:
            EmbeddingsError: the array has another shape or dtype, or the encoder is closed.
            WeightsError: the network gives values that are not finite, or a zero vector.
        """
        import torch

        size = self.plan.recipe.size
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
            raise EmbeddingsError(
                f"pixels are {pixels.dtype} {list(pixels.shape)}, expected uint8 [n, {size}, {size}, 3]."
            )
        if self._model is None:
            raise EmbeddingsError(f"the encoder of {self.plan.spec.name} is closed.", remedy="load it again")
        if len(pixels) == 0:
            return np.zeros((0, self.plan.width), dtype=np.float32)
        with torch.inference_mode(), ieee_float32():
            native = self._model(self.normalised_pixels(pixels)).float()
            vectors = native / native.norm(dim=1, keepdim=True)
            if self._projection is not None:
                vectors = vectors @ self._projection
                vectors = vectors / vectors.norm(dim=1, keepdim=True)
            result: npt.NDArray[np.float32] = vectors.cpu().numpy()
        if not np.isfinite(result).all():
            weights = self.plan.source.path or self.plan.source.origin
            raise WeightsError(
                f"{weights}: {self.plan.spec.name} gives vectors that are not finite; the file is damaged.",
                remedy="embeddings-assets weights verify",
            )
        return result

    def close(self) -> None:
        """Free the model's memory. The encoder encodes no more; closing twice is allowed."""
        import torch

        self._model = self._projection = None
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


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
