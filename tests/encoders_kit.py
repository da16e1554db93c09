"""The parity kit as the encoder tests use it: checkpoints, references, encoders loaded once per run."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from embeddings_assets.encoders.encoder import Encoder
from embeddings_assets.encoders.plan import EncoderPlan, plan_encoder
from embeddings_assets.io.images import decode_image

_CORE = ("china", "flower", "rocket", "hubble", "retina", "astronaut", "cat", "coffee")
CORE = tuple(f"{name}.jpg" for name in _CORE)
EDGE = (
    *(f"{name}.jpg" for name in ("gray", "cmyk", "exif6")),
    *("rgba.png", "palette.png", "tiny.jpg", "wide.jpg", "tall.jpg", "square224.png"),
)
MAX_ABS = 2e-6
MIN_COSINE = 0.99999


@dataclass(frozen=True)
class Case:
    """One checkpoint of the kit and the names of its references."""

    model: str
    checkpoint: str
    tag: str
    pixels_tag: str


CASES = {
    "clip-openai": Case("CLIP", "clip_openai", "clip_vitb32", "clip_vitb32"),
    "clip-open_clip": Case("CLIP", "clip_open_clip", "clip_vitb32", "clip_vitb32"),
    "dinov2": Case("DINOv2", "dinov2_hf", "dinov2_vitb14", "dinov2_vitb14"),
    "franca-v1.0": Case("Franca", "franca/franca_vitb14_In21K.pth", "franca_vitb14", "franca"),
    "franca-v1.1": Case("Franca", "franca/franca_vitb14_In21K_518.pth", "franca_vitb14", "franca"),
    "siglip2": Case("SigLIPv2", "siglip2_hf", "siglip2_b16_224", "siglip2_b16_224"),
}
ONE_PER_MODEL = ("clip-openai", "dinov2", "franca-v1.0", "siglip2")


def load_encoder(kit: Path, name: str, precision: str = "exact", width: str = "native") -> Encoder:
    """An encoder of a checkpoint of the kit, on the CPU."""
    return kit_plan(kit, name, precision, width).load()


def kit_plan(kit: Path, name: str, precision: str = "exact", width: str = "native") -> EncoderPlan:
    """The plan of a checkpoint of the kit, on the CPU."""
    weights = kit / CASES[name].checkpoint
    return plan_encoder(CASES[name].model, weights=weights, precision=precision, width=width, device="cpu")


@cache
def kit_encoder(kit: Path, name: str) -> Encoder:
    """The exact encoder of native width; one load for the whole test run."""
    return load_encoder(kit, name)


@cache
def kit_pixels(shared: Path, recipe_of: Encoder, names: tuple[str, ...]) -> np.ndarray:
    folder = shared / "parity" / "images"
    return np.stack([recipe_of.pixels(decode_image(folder / name)) for name in names])


@cache
def kit_vectors(kit: Path, shared: Path, name: str) -> np.ndarray:
    """Exact vectors of the core and edge images, native width."""
    encoder = kit_encoder(kit, name)
    return encoder.encode(kit_pixels(shared, encoder, CORE + EDGE))


def reference(shared: Path, stem: str) -> np.ndarray:
    return np.load(shared / "parity" / "reference" / f"{stem}.npy")
