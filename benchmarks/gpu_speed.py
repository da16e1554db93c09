"""The steps of `gpu.py` that measure rates: throughput, rivals, variants, start."""

import contextlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import Bench, pixels_of
from ceilings import decode_rate, forward_rate, queued_rate
from gpu_context import Context, Result, UnavailableError, attempt, for_each_model
from images import DATASET, SPLIT, jpeg_files

from embeddings_assets.encoders.encoder import Encoder, ieee_float32
from embeddings_assets.encoders.plan import EncoderPlan
from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.settings import DataPaths
from embeddings_assets.workers.process import default_workers


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
from gpu_context import shrink_networks
shrink_networks()
{FIRST_BATCH}"""
