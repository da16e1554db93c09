"""What every step of `gpu.py` is given, and how its results are kept."""

import argparse
import importlib.util
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import DATASET, SPLIT, build_tree, drawn, jpeg_files

from embeddings_assets.catalog import MODELS
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.encoders.family import family_of
from embeddings_assets.encoders.plan import EncoderPlan, plan_encoder
from embeddings_assets.encoders.weights.random_weights import random_parameters
from embeddings_assets.settings import DataPaths

Result = dict[str, Any]
BOUNDS = (2e-6, 1e-5, 1e-4, 1e-3)


class UnavailableError(Exception):
    """What a step needs is not to be had on this machine."""


class Context:
    """What every step is given: the device, sizes for it, images, and where the result goes."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device: str = "cuda:0" if options.device == "cuda" else options.device
        self.on_gpu = self.device.startswith("cuda")
        self.tiny: bool = options.tiny
        self.work: Path = options.work
        self.models: list[str] = options.models
        self.seconds = 0.1 if self.tiny else 1.0  # of each rate
        self.count = 16 if self.tiny else 4000 if self.on_gpu else 64
        self.rival_count = 4 if self.tiny else 1000 if self.on_gpu else 16
        self.batch_sizes = (2, 4) if self.tiny else (64, 128, 256, 512, 1024) if self.on_gpu else (8, 32)

    def first_model(self) -> str:
        """The last model that can be had: DINOv2 and Franca are the slowest, CLIP needs a library."""
        for model in reversed(self.models):
            if has_library(model):
                return model
        raise UnavailableError("no model whose library is installed")

    def skip_in_dry_run(self, model: str) -> None:
        """Where one model exercises the code as well as four, a dry run saves the time."""
        if self.tiny and model != self.first_model():
            raise UnavailableError("a dry run does this with one model")

    def photographs(self, count: int) -> list[Path]:
        return jpeg_files(self._folder())[:count]

    def tree(self, name: str, count: int) -> DataPaths:
        """A prepared data root with so many images in one split."""
        paths = build_tree(self.work / name, self._folder(), count, SPLIT)
        prepare_dataset(DATASET, paths)
        return paths

    def plan(self, model: str, precision: str = "exact", **options: Any) -> EncoderPlan:
        chosen = {"weights": "random", "device": self.device, "width": "native", **options}
        return plan_encoder(model, precision=precision, **chosen)

    def keep(self, found: Result) -> None:
        part = self.work / "result.part"
        part.write_text(json.dumps(found))
        part.replace(self.work / "result.json")

    def _folder(self) -> Path:
        given: Path | None = self.options.images
        folder = given or self.work / "drawn"
        if given is None and not folder.exists():
            drawn(folder, 16 if self.tiny else 200)
        return folder


def shrink_networks() -> None:
    """Let every family build one layer in the place of twelve, with random parameters."""
    for spec in MODELS:
        family: Any = family_of(spec)
        size = replace(family.BASE, layers=1)

        def build(source: Any, family: Any = family, size: Any = size) -> torch.nn.Module:
            parameters = random_parameters(family.shapes(size), model=source.model, seed=source.seed)
            return family.assemble(parameters, size)

        family.build = build


def for_each_model(context: Context, measure: Callable[[str], Result], others: Result | None = None) -> None:
    """Keep what is found of each model, or why nothing is, beside what has been found already."""
    found: Result = dict(others or {})
    for model in context.models:
        started = time.perf_counter()
        found[model] = attempt(partial(measure, model)) if has_library(model) else no_library(model)
        found[model]["seconds"] = round(time.perf_counter() - started, 1)
        print(f"  {context.options.step} {model}: {json.dumps(found[model])}", flush=True)
        context.keep(found)


def attempt(measure: Callable[[], Result]) -> Result:
    """What was measured; what went wrong is a result, too, and the rest goes on."""
    try:
        return measure()
    except UnavailableError as error:
        return {"reason": str(error)}
    except Exception as error:  # noqa: BLE001 - written down, and the command fails in the end
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}


def has_library(model: str) -> bool:
    return model != "CLIP" or importlib.util.find_spec("open_clip") is not None


def no_library(model: str) -> Result:
    return {"reason": f"{model}: open_clip is not installed (see the head of gpu.py)"}


def difference(a: np.ndarray, b: np.ndarray, *, same: bool = True) -> Result:
    """How far apart two sets of unit vectors are, and the tightest bound that holds.

    Args:
        same: they are of one profile: an error where no bound holds.
    """
    largest = float(np.abs(a - b).max())
    bound = next((bound for bound in BOUNDS if largest <= bound), None)
    found: Result = {} if bound or not same else {"error": f"more than {BOUNDS[-1]} apart"}
    cosine = float((a.astype(np.float64) * b).sum(axis=1).min())
    return {**found, "max_abs": largest, "min_cosine": cosine, "bound": bound}


def again(step: str, *more: str) -> list[str]:
    """The command of this process with another step."""
    given = sys.argv[1:]
    at = given.index("--step")
    return [
        sys.executable,
        str(Path(__file__).with_name("gpu.py")),
        *given[:at],
        *given[at + 2 :],
        "--step",
        step,
        *more,
    ]
