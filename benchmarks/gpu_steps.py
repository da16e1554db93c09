"""The steps of `gpu.py`, each run in a process of its own; nothing here is run by itself."""

import argparse
import contextlib
import functools
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Bench, pixels_of
from ceilings import decode_rate, forward_rate, queued_rate
from images import DATASET, SPLIT, build_tree, drawn, jpeg_files

from embeddings_assets.catalog import MODELS, ModelSpec, get_model
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.encoders import self_test
from embeddings_assets.encoders.encoder import Encoder, ieee_float32
from embeddings_assets.encoders.family import family_of
from embeddings_assets.encoders.plan import EncoderPlan, plan_encoder
from embeddings_assets.encoders.self_test import recorded, tiny_vectors
from embeddings_assets.encoders.weights.random_weights import random_parameters
from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.extraction.report import ExtractionOptions
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.reading import load_matrix, split_sha256
from embeddings_assets.workers.process import default_workers

Result = dict[str, Any]
BOUNDS = (2e-6, 1e-5, 1e-4, 1e-3)
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


def run_step(options: argparse.Namespace) -> None:
    """One step, or what a step runs in a process of its own."""
    if options.step in STEPS:
        threading.Thread(target=end_with_parent, daemon=True).start()
    if options.tiny:
        shrink_networks()
    # What is measured here may show that the bound for GPUs is wrong: it must not prevent that.
    self_test.MAX_DIFFERENCE["cuda"] = math.inf
    context = Context(options)
    if context.on_gpu:
        torch.cuda.set_device(context.device)
    {**STEPS, **PARTS}[options.step](context)


def end_with_parent() -> None:
    """End this process and those it has started when the one that started it is gone."""
    os.read(0, 1)  # not sys.stdin, whose lock a forked process would wait for
    os.killpg(0, signal.SIGKILL)


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


def throughput(context: Context) -> None:
    paths = context.tree("throughput", context.count)
    found = {"JPEG decoders": attempt(partial(decoders_alone, context))}
    for_each_model(
        context,
        lambda model: {
            precision: attempt(partial(throughput_of, context, paths, model, precision))
            for precision in ("exact", "fast")
        },
        found,
    )


def throughput_of(context: Context, paths: DataPaths, model: str, precision: str) -> Result:
    if precision == "fast":
        context.skip_in_dry_run(model)
    bench = Bench(model, precision, "random", paths, context.device)
    with contextlib.closing(bench.holder), Decoders() as decoders:
        sizes = context.batch_sizes if precision == "fast" else context.batch_sizes[::2]
        bare = {size: attempt(partial(bare_rate, context, bench, size)) for size in sizes}
        decoded = decode_rate(
            decoders, bench.holder.to_pixels(), bench.tasks, bench.batch_size, 2 * context.seconds
        )
        bench.forget()
        ours = bench.run(decoders)
    fastest = max(found.get("images_per_second", 0.0) for found in bare.values())
    rate = ours["images_per_second_without_load"]
    return {
        "bare": bare,
        "decode_images_per_second": decoded,
        "end_to_end": ours,
        "share_of_ceiling": rate / min(decoded, fastest) if fastest else None,
        "load_seconds": bench.load_seconds,
    }


def bare_rate(context: Context, bench: Bench, size: int) -> Result:
    """The forward pass in batches of one size."""
    encoder = bench.holder.load()  # which resets the peak of memory
    pixels = np.concatenate([bench.pixels] * -(-size // len(bench.pixels)))[:size]
    try:
        rate = forward_rate(encoder, pixels, context.seconds)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UnavailableError(f"too little memory for {size} images ({error})") from error
    return {"images_per_second": rate, "peak_device_gb": encoder.peak_device_bytes() / 1e9}


def decoders_alone(context: Context) -> Result:
    """JPEG to RGB alone, without resizing, by all that is installed: images per second on all cores."""
    data = [path.read_bytes() for path in context.photographs(100)]
    found: Result = {}
    for name, decode in available_decoders().items():
        with ThreadPoolExecutor(default_workers(64)) as pool:
            list(pool.map(decode, data))
            done, started = 0, time.perf_counter()
            while time.perf_counter() - started < context.seconds:
                done += len(list(pool.map(decode, data)))
            found[name] = done / (time.perf_counter() - started)
    return found


def available_decoders() -> dict[str, Callable[[bytes], object]]:
    import io

    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg

    def pillow(data: bytes) -> object:
        return Image.open(io.BytesIO(data)).convert("RGB")

    def torchvision(data: bytes) -> object:
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)

    found: dict[str, Callable[[bytes], object]] = {"Pillow": pillow, "torchvision": torchvision}
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg"] = simplejpeg.decode_jpeg
    return found


def rivals(context: Context) -> None:
    """What people run otherwise, then ours on the same files. Starting processes counts, loading does not."""
    paths = context.tree("rivals", context.rival_count)
    for_each_model(context, partial(rivals_of, context, paths))


def rivals_of(context: Context, paths: DataPaths, model: str) -> Result:
    from rivals import RIVALS, rate, start_rivals

    files = jpeg_files(paths.processed_split(DATASET, SPLIT))
    few = files[:32]
    encoder = context.plan(model).load()
    reference = encoder.encode(pixels_of(encoder, few))
    encoder.close()
    start_rivals(context.plan(model), context.device)

    def measure(name: str) -> Result:
        vectors = RIVALS[name](few)  # which makes it warm
        own = files if "DataLoader" in name else files[:256]
        cosine = float((vectors * reference).sum(axis=1).min())
        return {"images_per_second": rate(name, own), "images": len(own), "min_cosine": cosine}

    found: Result = {"rivals": {name: attempt(partial(measure, name)) for name in RIVALS}}
    fastest = max(rival.get("images_per_second", 0.0) for rival in found["rivals"].values())
    for precision in ("exact",) if context.tiny else ("exact", "fast"):
        bench = Bench(model, precision, "random", paths, context.device)
        with contextlib.closing(bench.holder), Decoders() as decoders:
            bench.forget()
            ours = bench.run(decoders)
        found[precision] = {
            "images_per_second": ours["images_per_second_without_load"],
            "with_load": ours["images_per_second"],
            "against_fastest": ours["images_per_second_without_load"] / fastest if fastest else None,
        }
    return found


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


def variants(context: Context) -> None:
    found = {"JPEG decoding on the GPU": attempt(partial(decode_on_gpu, context))}
    for_each_model(context, partial(variants_of, context), found)


def variants_of(context: Context, model: str) -> Result:
    """Rates of the forward pass alone, and cosines to `exact`."""
    exact = context.plan(model).load()
    size = 4 if context.tiny else 256 if context.on_gpu else 8
    files = context.photographs(min(size, 32))
    few = pixels_of(exact, files)
    reference = exact.encode(few)
    exact.close()
    pixels = np.concatenate([few] * -(-size // len(few)))[:size]
    plan = replace(context.plan(model, "fast"), compute_dtype="bfloat16")
    backend = "eager" if context.tiny else "inductor"

    def compiled(module: torch.nn.Module, **options: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return torch.compile(module, backend=backend, **options)

    def graphs(module: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        if not context.on_gpu:
            raise UnavailableError("CUDA graphs need a GPU")
        return compiled(module, mode="reduce-overhead")

    measured = {
        "bfloat16": (plan, lambda module: module),
        "float16": (replace(plan, compute_dtype="float16"), lambda module: module),
        "channels-last": (plan, lambda module: module.to(memory_format=torch.channels_last)),
    }
    if model == context.first_model():  # half a minute each
        measured |= {"torch.compile": (plan, compiled), "CUDA graphs": (plan, graphs)}
    return {
        name: attempt(partial(variant, context, chosen, change, pixels, reference))
        for name, (chosen, change) in measured.items()
    }


def variant(
    context: Context,
    plan: EncoderPlan,
    change: Callable[[Any], Callable[[torch.Tensor], torch.Tensor]],
    pixels: np.ndarray,
    reference: np.ndarray,
) -> Result:
    encoder = plan.load()
    module: Any = change(encoder._model)
    synchronise = torch.cuda.synchronize if context.on_gpu else lambda: None
    started = time.perf_counter()
    with torch.inference_mode(), ieee_float32():
        layout = torch.channels_last if encoder_is_channels_last(encoder) else torch.contiguous_format
        batch = encoder.normalised_pixels(pixels).contiguous(memory_format=layout)
        native = module(batch).float().cpu().numpy()[: len(reference)]
        first = time.perf_counter() - started
        rate = queued_rate(module, batch, context.seconds, synchronise)
    encoder.close()
    del module
    torch._dynamo.reset()
    vectors = native / np.linalg.norm(native, axis=1, keepdims=True)
    cosine = float((vectors * reference).sum(axis=1).min())
    return {"images_per_second": rate, "min_cosine": cosine, "first_batch_seconds": first}


def encoder_is_channels_last(encoder: Encoder) -> bool:
    """Whether the patches are embedded in that layout."""
    assert encoder._model is not None
    weights = (values for values in encoder._model.parameters() if values.ndim == 4)
    return any(values.is_contiguous(memory_format=torch.channels_last) for values in weights)


def decode_on_gpu(context: Context) -> Result:
    """Images per second, and how many values differ from Pillow's and by how much."""
    if not context.on_gpu:
        raise UnavailableError("nvJPEG needs a GPU")
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_jpeg

    files = context.photographs(64)
    data = [torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in files]
    decode = partial(decode_jpeg, mode=ImageReadMode.RGB, device=context.device)
    try:
        decoded = decode(data)
    except RuntimeError as error:
        raise UnavailableError(f"this torchvision does not decode there ({error})") from error
    torch.cuda.synchronize()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < context.seconds:
        done += len(decode(data))
        torch.cuda.synchronize()
    rate = done / (time.perf_counter() - started)
    off = [
        np.abs(np.asarray(Image.open(path).convert("RGB")).astype(int) - image.permute(1, 2, 0).cpu().numpy())
        for path, image in zip(files, decoded, strict=True)
    ]
    values = np.concatenate([one.ravel() for one in off])
    return {
        "images_per_second": rate,
        "share_that_differs": float((values > 0).mean()),
        "most": int(values.max()),
    }


def start(context: Context) -> None:
    for_each_model(context, partial(start_of, context))


def start_of(context: Context, model: str) -> Result:
    """A process that imports what a run imports, loads one model, and embeds one batch."""
    context.skip_in_dry_run(model)
    started = time.time()
    code = FIRST_BATCH_OF_ONE_LAYER if context.tiny else FIRST_BATCH
    command = [sys.executable, "-c", code, model, context.device]
    shown = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: Result = json.loads(shown.stdout.splitlines()[-1])
    return {"until_first_batch": found.pop("at") - started, **found}


FIRST_BATCH = """
import json, sys, time
import numpy as np
from embeddings_assets.extraction.batching import choose_batch_size
from embeddings_assets.encoders import self_test
from embeddings_assets.pipeline import EncoderChoice, EncoderHolder

self_test.MAX_DIFFERENCE["cuda"] = float("inf")
holder = EncoderHolder(EncoderChoice(weights="random", device=sys.argv[2]).plan(sys.argv[1]))
began = time.perf_counter()
encoder = holder.load()
loaded = time.perf_counter()
size = choose_batch_size(holder)
encoder.encode(np.zeros((size, 224, 224, 3), dtype=np.uint8))
found = {"at": time.time(), "load": loaded - began, "first_batch": time.perf_counter() - loaded, "size": size}
print(json.dumps(found), flush=True)
"""
FIRST_BATCH_OF_ONE_LAYER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from gpu_steps import shrink_networks
shrink_networks()
{FIRST_BATCH}"""

STEPS: dict[str, Callable[[Context], None]] = {
    "parity": parity,
    "throughput": throughput,
    "rivals": rivals,
    "memory": memory,
    "resume": resume,
    "start": start,
    "variants": variants,
}
PARTS: dict[str, Callable[[Context], None]] = {"killed": killed, "hold": hold}
