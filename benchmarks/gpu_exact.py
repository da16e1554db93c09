"""The steps of `gpu.py` that hold vectors against each other: parity, memory, kill and resume."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Bench, pixels_of
from gpu_context import (
    Context,
    Result,
    UnavailableError,
    again,
    attempt,
    difference,
    for_each_model,
)
from images import DATASET, SPLIT

from embeddings_assets.catalog import ModelSpec, get_model
from embeddings_assets.encoders import self_test
from embeddings_assets.encoders.encoder import Encoder
from embeddings_assets.encoders.self_test import recorded, tiny_vectors
from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.extraction.report import ExtractionOptions
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.reading import load_matrix, split_sha256

SHIPPED_BOUNDS = dict(self_test.MAX_DIFFERENCE)
KIT_WEIGHTS = {
    "CLIP": ("clip_openai", "clip_vitb32"),
    "DINOv2": ("dinov2_hf", "dinov2_vitb14"),
    "Franca": ("franca/franca_vitb14_In21K.pth", "franca_vitb14"),
    "SigLIPv2": ("siglip2_hf", "siglip2_b16_224"),
}
_CORE = ("china", "flower", "rocket", "hubble", "retina", "astronaut", "cat", "coffee")
KIT_IMAGES = {
    "core": [f"{name}.jpg" for name in _CORE],
    "edge": [
        *(f"{name}.jpg" for name in ("gray", "cmyk", "exif6")),
        *("rgba.png", "palette.png", "tiny.jpg", "wide.jpg", "tall.jpg", "square224.png"),
    ],
}


def parity(context: Context) -> None:
    for_each_model(context, partial(parity_of, context))


@functools.cache
def kit_weights(kit: Path, folder: Path) -> Path:
    """The kit's seeded full-size checkpoints, made on the spot."""
    subprocess.run([sys.executable, str(kit / "make_weights.py"), str(folder)], check=True)
    return folder


def parity_of(context: Context, model: str) -> Result:
    spec = get_model(model)
    found: Result = {"self_test": attempt(partial(self_test_of, context, spec))}
    kit = context.options.kit
    options: Result = {}
    files = context.photographs(4 if context.tiny else 32)
    with_kit = kit is not None and not context.tiny
    checkpoint, tag = KIT_WEIGHTS[model]
    if with_kit:
        options = {"weights": kit_weights(kit, context.work / "kit") / checkpoint}
        files = [kit / "images" / name for names in KIT_IMAGES.values() for name in names]

    def vectors(precision: str = "exact", **more: Any) -> np.ndarray:
        encoder = context.plan(model, precision, **{**options, **more}).load()
        given = encoder.encode(pixels_of(encoder, files))
        if not np.array_equal(given, encoder.encode(pixels_of(encoder, files))):
            found["error"] = f"{precision} gives other bytes the second time"
        encoder.close()
        return given

    def published() -> Result:
        if not with_kit:
            raise UnavailableError("no --kit" if kit is None else "the kit's networks are of full size")
        parts = [np.load(kit / "reference" / f"{tag}.{part}.npy") for part in KIT_IMAGES]
        return difference(here, np.concatenate(parts))

    here = vectors()
    found["published"] = attempt(published)
    found["own_on_cpu"] = attempt(lambda: difference(here, vectors(device="cpu")))
    found["fast_against_exact"] = attempt(lambda: difference(vectors("fast"), here, same=False))
    return found


def self_test_of(context: Context, spec: ModelSpec) -> Result:
    """How far the tiny network is off on this device, against the bound that the package ships."""
    largest = float(
        np.abs(tiny_vectors(spec, context.device) - np.asarray(recorded()["vectors"][spec.encoder])).max()
    )
    bound = SHIPPED_BOUNDS[context.device.partition(":")[0]]
    return {
        "max_abs": largest,
        **({"error": f"exact would be refused: beyond {bound}"} if largest > bound else {}),
    }


def memory(context: Context) -> None:
    paths = context.tree("memory", max(context.batch_sizes) * 2)
    found: Result = {"too_large": attempt(partial(too_large, context, paths))}
    context.keep(found)
    found["held_by_another"] = attempt(partial(held_by_another, context, paths))
    context.keep(found)


def too_large(context: Context, paths: DataPaths) -> Result:
    """A batch far beyond what may be allocated is halved until it fits; the vectors are the same."""
    model = context.first_model()
    bench = Bench(model, "exact", "random", paths, context.device)
    target = paths.embeddings_split(model, DATASET, SPLIT)
    size = max(context.batch_sizes)
    with Decoders() as decoders:
        bench.forget()
        bench.run(decoders)
        undisturbed = load_matrix(target)
        bench.forget()
        with little_memory(context, bench):
            report = bench.run(decoders, ExtractionOptions(batch_size=size))
        vectors = load_matrix(target)
    bench.holder.close()
    if report["batch_size"] >= size:
        raise RuntimeError(f"batches of {size} were not cut")
    found = {"model": model, "asked": size, "used": report["batch_size"]}
    return {**found, **difference(vectors, undisturbed)}


@contextlib.contextmanager
def little_memory(context: Context, bench: Bench) -> Iterator[None]:
    """Let torch have what the weights take and a tenth of the largest batch; on a CPU, batches of one."""
    if not context.on_gpu:
        forward = Encoder._forward

        def limited(encoder: Encoder, pixels: np.ndarray) -> torch.Tensor:
            if len(pixels) > 1:
                raise MemoryError(f"{len(pixels)} images")
            return forward(encoder, pixels)

        Encoder._forward = limited
        try:
            yield
        finally:
            Encoder._forward = forward
        return
    encoder = bench.holder.load()
    weights = torch.cuda.memory_allocated(context.device)
    size = max(context.batch_sizes)
    encoder.encode(np.concatenate([bench.pixels] * -(-size // len(bench.pixels)))[:size])
    allowed = 1.5 * weights + (encoder.peak_device_bytes() - weights) / 10
    bench.holder.close()
    total = torch.cuda.get_device_properties(context.device).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed / total, context.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, context.device)


def held_by_another(context: Context, paths: DataPaths) -> Result:
    """Another process has all but 3 GB of the memory; the run goes on beside it, with the same vectors."""
    if not context.on_gpu:
        raise UnavailableError("needs the memory of a GPU")
    model = context.first_model()
    target = paths.embeddings_split(model, DATASET, SPLIT)
    before = load_matrix(target)
    bench = Bench(model, "exact", "random", paths, context.device)
    bench.forget()
    bench.holder.close()
    holder = subprocess.Popen(again("hold"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        free = float(holder.stdout.readline())
        with Decoders() as decoders:
            report = bench.run(decoders, ExtractionOptions(batch_size=max(context.batch_sizes)))
    finally:
        holder.kill()
        holder.wait()
    found = {"left_free_gb": free, "used": report["batch_size"], "computed": report["computed"]}
    return {**found, **difference(load_matrix(target), before)}


def hold(context: Context) -> None:
    """Take all but 3 GB of the device's memory, say how much is left, and keep it."""
    free, _ = torch.cuda.mem_get_info(context.device)
    held = torch.empty(max(0, free - 3 * 10**9), dtype=torch.uint8, device=context.device)
    print((torch.cuda.mem_get_info(context.device)[0]) / 1e9, flush=True)
    sys.stdin.read()
    del held


def resume(context: Context) -> None:
    context.keep(attempt(partial(resume_of, context, context.tree("resume", context.count))))


def resume_of(context: Context, paths: DataPaths) -> Result:
    model = context.first_model()
    bench = Bench(model, "exact", "random", paths, context.device)
    options = shards_of(context)
    target = paths.embeddings_split(model, DATASET, SPLIT)
    with Decoders() as decoders:
        bench.forget()
        first = bench.run(decoders, options)
        undisturbed = split_sha256(target)
        bench.forget()
        bench.run(decoders, options)
        second = split_sha256(target)
        bench.forget()
        bench.holder.close()
        command = again("killed", "--models", model, "--kill-at", str(context.count // 2))
        code = subprocess.run(command, check=False).returncode
        resumed = bench.run(decoders, options)
        after = split_sha256(target)
        unchanged = bench.run(decoders, options)
        bench.change_a_hundredth()
        changed = bench.run(decoders, options)
    bench.holder.close()
    if code != -signal.SIGKILL or not resumed["resumed"]:
        raise RuntimeError(
            f"the run to be killed ended with {code}; {resumed['resumed']} images were resumed"
        )
    found: Result = {} if after == second == undisturbed else {"error": "the same images give other bytes"}
    return {
        **found,
        "model": model,
        "same_bytes_after_kill": after == undisturbed,
        "same_bytes_twice": second == undisturbed,
        "resumed": resumed["resumed"],
        "computed": resumed["computed"],
        "unchanged": {"status": unchanged["status"], "share": unchanged["seconds"] / first["seconds"]},
        "one_per_cent": {
            "computed": changed["computed"],
            "reused": changed["reused"],
            "share": changed["seconds"] / first["seconds"],
        },
    }


def shards_of(context: Context) -> ExtractionOptions:
    return ExtractionOptions(shard_rows=max(2, context.count // 8), batch_size=2 if context.tiny else None)


def killed(context: Context) -> None:
    """Embed the tree of `resume` and die on the way."""
    paths = DataPaths.from_root(context.work / "resume")
    bench = Bench(context.models[0], "exact", "random", paths, context.device)

    def progress(done: int, total: int) -> None:
        if done >= context.options.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with Decoders() as decoders:
        bench.run(decoders, shards_of(context), progress)
