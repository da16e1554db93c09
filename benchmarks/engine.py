"""How fast the engine embeds, against the ceilings of the machine and against what people use otherwise.

    python benchmarks/engine.py [--images FOLDER] [--count 2000] [--models CLIP ...] [--precisions exact fast]
                                [--weights DIR] [--rounds 3] [--rival-count 256] [--skip-resume]
                                [--json FILE]

Where the package is not installed, put PYTHONPATH=. before it. Needs neither dagster nor typer nor rich.

Repeats the JPEG files below FOLDER (drawn ones by default) under new ids in a class tree of `--count` images.
Each model and profile is measured in a process of its own. Each round measures in turn, on one set of
weights: the bare forward pass, the engine end to end, the bare forward pass again, and each rival (in
float32, in both profiles). Then, once: a re-run with nothing changed, one with a hundredth of the images
changed, and one that goes on from a run that was cut off half way. Before all that, how long a large split
takes to load. Prints tables; `--json` keeps everything, with the hardware and the versions.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench import COMPARED, Bench
from ceilings import decode_rate, forward_rate
from images import DATASET, SPLIT, build_tree, drawn
from loading import ROWS, measure_loading, show_loading
from machine import machine
from rivals import LOADER_PROCESSES, Rivals
from tables import show

from embeddings_assets.catalog import MODELS
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.settings import DataPaths

DECODED = 1000  # images of the decode ceiling, which are decoded again and again
RIVAL_COUNT = 256


def measure(options: argparse.Namespace, model: str, precision: str, paths: DataPaths) -> dict[str, Any]:
    """Everything about one model and profile; meant for a process of its own."""
    bench = Bench(model, precision, options.weights, paths, options.device)
    seconds = options.ceiling_seconds
    files = bench.files[: options.rival_count or (bench.manifest.rows if bench.on_gpu else RIVAL_COUNT)]
    rounds: list[dict[str, Any]] = []
    rivals: Rivals | None = None
    cosines: dict[str, float] = {}
    with Decoders() as decoders:
        decode = decode_rate(
            decoders, bench.holder.to_pixels(), bench.tasks[:DECODED], bench.batch_size, seconds
        )
        for _ in range(options.rounds):
            before = forward_rate(bench.holder.load(), bench.pixels, seconds)
            ours = bench.end_to_end()
            bare = (before + forward_rate(bench.holder.load(), bench.pixels, seconds)) / 2
            if rivals is None:  # only now, so that the first round's peak of memory is the engine's own
                rivals, reference = bench.rivals_and_reference()
                for name in rivals.names:  # which makes them warm, too
                    vectors = rivals.vectors(name, bench.files[:COMPARED])
                    cosines[name] = float((vectors * reference).sum(axis=1).min())
            found = one_round(bare, decode, ours, {name: rivals.rate(name, files) for name in rivals.names})
            rounds.append(found)
            print(f"  {model} {precision}: {json.dumps(found)}", flush=True)
        if rivals is not None:
            rivals.close()
        full = statistics.median(found["end_to_end"]["seconds"] for found in rounds)
        unchanged = bench.run(decoders)
        bench.change_a_hundredth()
        changed = bench.run(decoders)
        resumed = None if options.skip_resume else bench.resume(decoders)
    bench.holder.close()
    for found in (unchanged, changed, resumed):
        if found is not None:
            found["share"] = found["seconds"] / full
    return {
        "model": model,
        "precision": precision,
        "compute_dtype": bench.holder.plan.compute_dtype,
        "load_seconds": bench.load_seconds,
        "batch_size": bench.batch_size,
        "decode_ceiling": decode,
        "rival_images": len(files),
        "rival_cosines": cosines,
        "loader_processes": LOADER_PROCESSES,
        "rounds": rounds,
        "medians": medians(rounds),
        "unchanged": unchanged,
        "one_percent": changed,
        "resume": resumed,
    }


def one_round(bare: float, decode: float, ours: dict[str, Any], rivals: dict[str, float]) -> dict[str, Any]:
    """What was measured in a round, and ours against each of it."""
    with_load, without = ours["images_per_second"], ours["images_per_second_without_load"]
    fastest = max(rivals.values())
    return {
        "bare": bare,
        "end_to_end": ours,
        "share": with_load / bare,
        "share_without_load": without / bare,
        "share_of_ceiling": with_load / min(bare, decode),
        "rivals": rivals,
        "fastest_rival": fastest,
        "against_fastest": with_load / fastest,
        "against_fastest_without_load": without / fastest,
    }


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number of a round that the tables show."""
    numbers = [name for name, value in rounds[0].items() if isinstance(value, float)]
    found: dict[str, Any] = {name: statistics.median(one[name] for one in rounds) for name in numbers}
    ends = [one["end_to_end"] for one in rounds]
    for name in ("images_per_second", "images_per_second_without_load", "seconds"):
        found[name] = statistics.median(end[name] for end in ends)
    shares = ends[0]["stage_shares"]
    found["stage_shares"] = {
        stage: statistics.median(end["stage_shares"][stage] for end in ends) for stage in shares
    }
    found["rivals"] = {
        name: statistics.median(one["rivals"][name] for one in rounds) for name in rounds[0]["rivals"]
    }
    return found


def in_a_process(options: argparse.Namespace, model: str, precision: str) -> dict[str, Any]:
    """`measure` where nothing is loaded yet, so that no other model's memory is counted."""
    with tempfile.TemporaryDirectory() as folder:
        images = options.images or drawn(Path(folder) / "drawn")
        paths = build_tree(Path(folder) / "data", images, options.count, SPLIT)
        prepare_dataset(DATASET, paths)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(measure, options, model, precision, paths).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder with JPEG files, searched in depth")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--models", nargs="+", default=[model.name for model in MODELS])
    parser.add_argument("--precisions", nargs="+", default=["exact", "fast"])
    parser.add_argument("--weights", default="random")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--rival-count", type=int, help=f"images that each rival embeds: {RIVAL_COUNT}, or all on a GPU"
    )
    parser.add_argument("--skip-resume", action="store_true", help="spares half the time of a full run")
    parser.add_argument("--ceiling-seconds", type=float, default=8.0, help="spent on each ceiling")
    parser.add_argument("--load-rows", type=int, default=ROWS, help="rows of the split that is loaded")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ran_on = machine()
    print(json.dumps(ran_on))
    loading = measure_loading(options.load_rows)
    results: list[dict[str, Any]] = []
    found = {"machine": ran_on, "count": options.count, "loading": loading, "results": results}
    for model in options.models:
        for precision in options.precisions:
            results.append(in_a_process(options, model, precision))
            if options.json:  # each time: the whole may take hours
                options.json.write_text(json.dumps(found, indent=1))
    show(results)
    print()
    show_loading(loading)


if __name__ == "__main__":
    main()
