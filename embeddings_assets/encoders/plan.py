"""What an encoder will be, decided and described without loading weights or importing torch."""

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from embeddings_assets.catalog import ModelSpec, get_model
from embeddings_assets.encoders.dtypes import EXACT, FAST_ARITHMETIC, compute_dtype
from embeddings_assets.encoders.family import family_of
from embeddings_assets.encoders.projection import PROJECTION_NAME, PROJECTION_SHA256, PROJECTION_SHAPE
from embeddings_assets.encoders.recipe import Recipe
from embeddings_assets.encoders.self_test import require_network, require_pixels
from embeddings_assets.encoders.weights.find import WeightsSource, find_weights
from embeddings_assets.errors import EmbeddingsError, SettingsError
from embeddings_assets.settings import PRECISIONS

if TYPE_CHECKING:
    from embeddings_assets.encoders.encoder import Encoder

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")


@dataclass(frozen=True)
class EncoderPlan:
    """One encoder, fully decided: equal plans give equal vectors.

    Attributes:
        width: of the vectors that `encode` returns.
        device: "auto" (the first GPU, else the CPU), "cpu", "cuda" or "cuda:N"; decided when loaded.
        compute_dtype: of the matrix products inside the blocks. Vectors are float32 always.
    """

    spec: ModelSpec
    source: WeightsSource
    recipe: Recipe
    precision: str
    width: int
    device: str
    compute_dtype: str

    @property
    def projected(self) -> bool:
        return self.width != self.spec.native_width

    def footer(self) -> dict[str, Any]:
        """What an embedding file's footer says about its encoder. Loads nothing, names no path or machine."""
        return {
            "model": self.spec.name,
            "checkpoint": self.spec.checkpoint,
            "architecture": self.spec.architecture,
            "licence": self.spec.licence,
            "weights_sha256": self.source.sha256,
            "trained": self.source.trained,
            "weights_origin": self.source.origin,
            "recipe": self.recipe.as_dict(),
            "projection": PROJECTION_NAME if self.projected else None,
            "projection_sha256": PROJECTION_SHA256 if self.projected else None,
            "native_width": self.spec.native_width,
            "width": self.width,
            "normalised": True,
            "precision": self.precision,
            "compute_dtype": self.compute_dtype,
            "libraries": self._libraries(),
            **({"fast_arithmetic": FAST_ARITHMETIC} if self.compute_dtype != EXACT else {}),
        }

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """One image as this profile prepares it: uint8 [S, S, 3], RGB. Uses no weights.

        Raises:
            ImageError: the image's proportions are beyond what is resized.
            SelfTestError: as `to_pixels`.
        """
        return self.to_pixels()(image)

    def to_pixels(self) -> Callable[[Image.Image], npt.NDArray[np.uint8]]:
        """`pixels`, as something to send to another process: it can be pickled and brings no weights.

        Raises:
            SelfTestError: images are not prepared here as by the published code, and the profile is `exact`.
        """
        require_pixels(self.precision)
        return self.recipe.pixels if self.precision == "exact" else self.recipe.pixels_fast

    def exact(self) -> "EncoderPlan":
        """The same encoder in the `exact` profile."""
        return replace(self, precision="exact", compute_dtype=compute_dtype("exact", self.device))

    def load(self) -> "Encoder":
        """The encoder itself, weights in memory on its device.

        Raises:
            SettingsError: the device is a GPU that is not there.
            WeightsError: the weights do not load or are of another architecture.
            SelfTestError: the network does not give the published values here, and the profile is `exact`.
            EmbeddingsError: memory is short.
        """
        from embeddings_assets.encoders.encoder import Encoder, resolve_device
        from embeddings_assets.encoders.shortage import device_errors

        try:
            with device_errors():
                require_network(self.spec, self.precision, resolve_device(self.device))
                return Encoder(self)
        except MemoryError as error:
            raise EmbeddingsError(
                f"There is not enough memory for the weights of {self.spec.name} ({error}).",
                remedy="free memory on the device, or use another: --device cpu",
            ) from error

    def _libraries(self) -> dict[str, str]:
        names = ("torch", "Pillow", "numpy", *family_of(self.spec).LIBRARIES)
        return {name: importlib.metadata.version(name) for name in names}


def plan_encoder(
    model: str,
    *,
    weights: str | Path | WeightsSource,
    precision: str = "exact",
    width: str | int | None = "contract",
    device: str = "auto",
) -> EncoderPlan:
    """Decide an encoder; torch is not imported and no weights are loaded, only hashed.

    Args:
        weights: as `find_weights` takes it, or what it gave.
        precision: "exact" (float32, reference pixels) or "fast" (bfloat16 where the device has it, fused
            attention, tensor resize).
        width: "contract" or None, "native", or one of those two widths as a number.

    Raises:
        UnknownNameError: no such model.
        SettingsError: a precision, width or device outside its closed list.
        WeightsError: as `find_weights`.
    """
    spec = get_model(model)
    if precision not in PRECISIONS:
        raise SettingsError(f"precision is {precision!r}; it can be {' or '.join(map(repr, PRECISIONS))}.")
    check_device(device)
    return EncoderPlan(
        spec=spec,
        source=weights if isinstance(weights, WeightsSource) else find_weights(spec.name, weights),
        recipe=family_of(spec).RECIPE,
        precision=precision,
        width=_stored_width(spec, width),
        device=device,
        compute_dtype=compute_dtype(precision, device),
    )


def check_device(device: str) -> None:
    """Raise SettingsError if this is no name of a device; whether it is there shows when it is used."""
    if _DEVICE.fullmatch(device) is None:
        raise SettingsError(f"device is {device!r}; it can be 'auto', 'cpu', 'cuda' or 'cuda:N'.")


def _stored_width(spec: ModelSpec, width: str | int | None) -> int:
    widths = {"contract": spec.width, None: spec.width, "native": spec.native_width}
    stored = widths.get(width) if width is None or isinstance(width, str) else width
    possible = {spec.native_width, spec.width}
    if stored not in possible:
        raise SettingsError(
            f"width is {width!r}; {spec.name} can be stored as 'contract' ({spec.width}) "
            f"or 'native' ({spec.native_width})."
        )
    if stored != spec.native_width and (spec.native_width, stored) != PROJECTION_SHAPE:
        raise SettingsError(
            f"{spec.name}: no projection from {spec.native_width} to {stored} dimensions exists."
        )
    return stored
