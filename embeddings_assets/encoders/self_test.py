"""Proof on this machine, before the first vector, that the installed libraries give the published values.

A few small files are decoded and preprocessed, and a tiny network of the family is run; all must give the
values recorded in `self_test_data/expected.json`. tests/self_test_files.py makes the files by a formula and
the records with NumPy (tests/published_pixels.py, tests/published_networks.py), without the tested libraries.
"""

import functools
import hashlib
import importlib.metadata
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, features

from embeddings_assets.catalog import ModelSpec
from embeddings_assets.encoders.dtypes import EXACT
from embeddings_assets.encoders.family import NetworkSize, family_of
from embeddings_assets.encoders.recipe import IMAGENET_MEAN, IMAGENET_STD, Recipe
from embeddings_assets.encoders.weights.find import random_source
from embeddings_assets.encoders.weights.random_weights import moments
from embeddings_assets.errors import ImageError, SelfTestError
from embeddings_assets.io.images import decode_image

log = logging.getLogger(__name__)

DATA = Path(__file__).with_name("self_test_data")
TINY = NetworkSize(width=64, layers=2, heads=2, output=64)
# Of the values of a unit vector. float32 gives 9e-7; another GELU would give 7e-5.
MAX_DIFFERENCE = {"cpu": 5e-6, "cuda": 5e-5}
# The oldest and the newest versions with which the whole parity suite has passed.
PROVEN = {
    "Pillow": ("12.0.0", "13.0.0"),
    "torch": ("2.9.0", "2.15.0"),
    "transformers": ("5.0.0", "5.23.0"),
    "open_clip_torch": ("3.3.0", "3.3.0"),
}

# What the built-in models do to an image, by the name that the records have for it.
RECIPES = {
    name: Recipe(rgb_first, resize, size, interpolation, IMAGENET_MEAN, IMAGENET_STD)  # type: ignore[arg-type]
    for name, rgb_first, resize, size, interpolation in (
        ("resize shorter side to 224, crop, then RGB", False, "shorter", 224, "bicubic"),
        ("RGB, resize shorter side to 256, crop", True, "shorter", 256, "bicubic"),
        ("RGB, squash to 224 x 224", True, "squash", 224, "bilinear"),
    )
}


@dataclass(frozen=True)
class Fault:
    """A value that is not the recorded one: what differs under which versions, and how to mend it."""

    problem: str
    remedy: str


def require_pixels(precision: str) -> None:
    """Decode and preprocess the files, once per process. No torch is imported.

    Raises:
        SelfTestError: a value differs, and the profile is `exact`; `fast` logs a warning.
    """
    _judge(pixel_fault(), precision)


def require_network(spec: ModelSpec, precision: str, device: str) -> None:
    """Run a tiny network of the model's family, once per process and device.

    Args:
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        SelfTestError: the vectors differ, and the profile is `exact`; `fast` logs a warning.
    """
    _judge(network_fault(spec, device), precision)


def _judge(fault: Fault | None, precision: str) -> None:
    if fault is None:
        return
    if precision == "exact":
        raise SelfTestError(fault.problem, remedy=f"{fault.remedy}; or --precision fast, which only warns")
    log.warning("%s", fault.problem)


@functools.cache
def pixel_fault() -> Fault | None:
    """The first decoded or preprocessed file that is not as recorded."""
    for name, expected in recorded()["pixels"].items():
        try:
            image = decode_image(DATA / name)
            if image_digest(image) != expected["decoded"]:
                return _fault(f"decoding {name} gives other pixels", "Pillow")
            for steps, recipe in RECIPES.items():
                found = hashlib.sha256(recipe.pixels(image).tobytes()).hexdigest()
                if found != expected[steps]:
                    return _fault(f"preprocessing {name} ({steps}) gives other pixels", "Pillow")
        except ImageError as error:
            return _fault(f"{name} cannot be decoded ({error.detail})", "Pillow")
    return None


@functools.cache
def network_fault(spec: ModelSpec, device: str) -> Fault | None:
    """What is wrong with the network of a model's family on a device, if anything.

    None for a family without recorded vectors: one that is not built in.
    """
    expected = recorded()["vectors"].get(spec.encoder)
    if expected is None:
        return None
    difference = float(np.abs(tiny_vectors(spec, device) - np.asarray(expected)).max())
    most = MAX_DIFFERENCE[device.partition(":")[0]]
    if difference <= most:
        return None
    return _fault(
        f"a small network of the family of {spec.name} is off by {difference:.1e} on {device}, "
        f"at most {most:.0e} is expected",
        *family_of(spec).LIBRARIES,
        "torch",
    )


def tiny_vectors(spec: ModelSpec, device: str) -> npt.NDArray[np.float32]:
    """What the tiny network of a model's family gives on a device: unit vectors, float32 [2, 64]."""
    import torch

    from embeddings_assets.encoders.encoder import Encoder
    from embeddings_assets.encoders.plan import EncoderPlan

    family = family_of(spec)
    parameters = tiny_parameters(family.shapes(TINY))
    network = family.assemble({name: torch.from_numpy(array) for name, array in parameters.items()}, TINY)
    plan = EncoderPlan(
        spec=replace(spec, native_width=TINY.output, width=TINY.output),
        source=random_source(spec.name),
        recipe=family.RECIPE,
        precision="exact",
        width=TINY.output,
        device=device,
        compute_dtype=EXACT,
    )
    encoder = Encoder(plan, network)
    try:
        return encoder.encode(tiny_pixels())
    finally:
        encoder.close()


def tiny_parameters(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, npt.NDArray[np.float32]]:
    """float32 arrays of these shapes, the same everywhere: from the raw words of Philox, keyed by name."""
    drawn = {}
    for name, shape in shapes.items():
        mean, std = moments(name, shape)
        uniform = (_words(name, math.prod(shape)) >> np.uint64(11)).astype(np.float64) / 2.0**53 - 0.5
        drawn[name] = (uniform * math.sqrt(12.0) * std + mean).astype(np.float32).reshape(shape)
    return drawn


def tiny_pixels() -> npt.NDArray[np.uint8]:
    """Two images for the tiny networks: uint8 [2, 224, 224, 3]."""
    count = 2 * 224 * 224 * 3
    return (_words("pixels", count) >> np.uint64(56)).astype(np.uint8).reshape(2, 224, 224, 3)


def image_digest(image: Image.Image) -> str:
    """sha256 of an image's mode, size and pixels, in hexadecimal."""
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


def _words(name: str, count: int) -> npt.NDArray[np.uint64]:
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return np.random.Philox(key=key).random_raw(count)


@functools.cache
def recorded() -> dict[str, Any]:
    """`pixels`, digests by file and by steps of RECIPES; `vectors`, [2][64] by the family's module name."""
    found: dict[str, Any] = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
    return found


def _fault(what: str, *libraries: str) -> Fault:
    """A fault that one of these distributions has brought, the likeliest first."""
    versions = [
        f"{name} {importlib.metadata.version(name)} (proven: {PROVEN[name][0]} to {PROVEN[name][1]})"
        for name in libraries
    ]
    if "Pillow" in libraries:
        versions.append(f"libjpeg-turbo {features.version('libjpeg_turbo') or 'not used'}")
    return Fault(
        f"The self-test failed: {what}. Installed: {', '.join(versions)}.",
        "pip install --force-reinstall " + " ".join(f"'{name}=={PROVEN[name][1]}'" for name in libraries),
    )
