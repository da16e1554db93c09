"""Proof on this machine, before the first vector, that the installed libraries give the published values.

A few small files are decoded and preprocessed, and a tiny network of the family is run; all must give the
values recorded in `self_test_data/expected.json`. tests/self_test_files.py makes the files by a formula and
the records without the tested libraries: decoded by torchvision's decoders, all else computed in NumPy.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import re
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
from embeddings_assets.errors import EmbeddingsError, ImageError, Reason, SelfTestError, WeightsError
from embeddings_assets.io.images import decode_image

log = logging.getLogger(__name__)

DATA = Path(__file__).with_name("self_test_data")
TINY = NetworkSize(width=64, layers=2, heads=2, output=64)
# Of the values of a unit vector. float32 gives 3e-7 on a CPU; the least of the changes that tests make, 3e-6.
MAX_DIFFERENCE = {"cpu": 2e-6, "cuda": 2e-5}
# The oldest and the newest versions with which the whole parity suite has passed.
PROVEN = {
    "Pillow": ("12.0.0", "13.0.0"),
    "torch": ("2.9.0", "2.15.0"),
    "transformers": ("5.0.0", "5.23.0"),
    "open_clip_torch": ("3.3.0", "3.3.0"),
}

# Parts of the names of parameters whose products are added to the residual stream. In the tiny networks these
# are small, or the epsilon of the layer norms would not show.
_STREAM = (
    *("patch", "conv1", "pos", "token", "class_embedding", "probe"),
    *("out_proj", "attn.proj", "output.dense", "fc2", "c_proj", "w3"),
)
_STREAM_SCALE = 0.1

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
        raise SelfTestError(fault.problem, remedy=fault.remedy)
    _warn(fault)


@functools.cache
def _warn(fault: Fault) -> None:
    """Once per process: every model meets the same pixels."""
    log.warning("%s", SelfTestError(fault.problem, remedy=fault.remedy))


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
        except Exception as error:  # whatever a changed library raises is what is looked for
            if _is_the_machines(error):
                raise
            return _fault(f"{name} cannot be prepared ({_first_line(error)})", "Pillow")
    return None


@functools.cache
def network_fault(spec: ModelSpec, device: str) -> Fault | None:
    """What is wrong with the network of a model's family on a device, if anything.

    None for a family without recorded vectors: one that is not built in.

    Raises:
        DeviceError, RuntimeError: the GPU fails.
        ImportError, OSError, MemoryError: a library is absent, or the machine prevents the test.
    """
    expected = recorded()["vectors"].get(spec.encoder)
    if expected is None:
        return None
    libraries = (*family_of(spec).LIBRARIES, "torch")
    network = f"a small network of the family of {spec.name}"
    try:
        difference = float(np.abs(tiny_vectors(spec, device) - np.asarray(expected)).max())
    except Exception as error:
        if _is_the_machines(error) or (device != "cpu" and isinstance(error, RuntimeError)):
            raise
        return _fault(f"{network} fails on {device} ({_first_line(error)})", *libraries)
    bound = MAX_DIFFERENCE[device.partition(":")[0]]
    if difference <= bound:
        return None
    return _fault(f"{network} is off by {difference:.1e} on {device}, by more than {bound:.0e}", *libraries)


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
        scale = _STREAM_SCALE if any(part in name for part in _STREAM) else 1.0
        uniform = (_words(name, math.prod(shape)) >> np.uint64(11)).astype(np.float64) / 2.0**53 - 0.5
        drawn[name] = (scale * (uniform * math.sqrt(12.0) * std + mean)).astype(np.float32).reshape(shape)
    return drawn


def tiny_pixels() -> npt.NDArray[np.uint8]:
    """Two images for the tiny networks, squares of random colours: uint8 [2, 224, 224, 3]."""
    colours = (_words("pixels", 2 * 16 * 16 * 3) >> np.uint64(56)).astype(np.uint8).reshape(2, 16, 16, 3)
    return colours.repeat(14, axis=1).repeat(14, axis=2)


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
    # Without the build, as in 2.11.0+cu130, which no registry knows.
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in libraries}
    versions = ", ".join(f"{name} {version}" for name, version in installed.items())
    if "Pillow" in installed:
        versions += f", libjpeg-turbo {features.version('libjpeg_turbo') or 'not used'}"
    unproven = [name for name, version in installed.items() if not _is_proven(name, version)]
    if unproven:
        ranges = [f"'{name}>={PROVEN[name][0]},<={PROVEN[name][1]}'" for name in unproven]
        # torchvision is built for one torch.
        remedy = " ".join(["pip install", *ranges, *(["torchvision"] if "torch" in unproven else [])])
    else:
        # The version is right, so the build is another than the published one.
        pins = " ".join(f"'{name}=={version}'" for name, version in installed.items())
        remedy = f"pip install --force-reinstall --no-deps {pins}"
    return Fault(f"The self-test failed: {what}. Installed: {versions}.", remedy)


def _is_the_machines(error: Exception) -> bool:
    """Whether an error tells of the machine, or of a package that is not installed, and not of a library."""
    if isinstance(error, ImageError):
        return error.reason in (Reason.MISSING, Reason.UNREADABLE, Reason.EMPTY)
    if isinstance(error, ModuleNotFoundError):
        return importlib.util.find_spec((error.name or "").partition(".")[0] or __name__) is None
    if isinstance(error, OSError):
        return error.errno is not None  # Pillow raises its own without a number
    return isinstance(error, MemoryError) or (
        isinstance(error, EmbeddingsError) and not isinstance(error, WeightsError)
    )


def _is_proven(name: str, version: str) -> bool:
    oldest, found, newest = (
        tuple(map(int, re.findall(r"\d+", text)[:3])) for text in (PROVEN[name][0], version, PROVEN[name][1])
    )
    return oldest <= found <= newest


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]
