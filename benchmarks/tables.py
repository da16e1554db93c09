"""The results of `engine.py` as tables: speed, what it costs, and what people run otherwise.

Used by `engine.py`, and by itself on a file that it has written:

    python benchmarks/tables.py bench.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STAGES = ("load", "decode", "forward", "write", "compare", "other")


def show(results: Sequence[dict[str, Any]]) -> None:
    """Everything that `engine.py` has measured; medians over the rounds."""
    _show_speed(results)
    _show_costs(results)
    _show_rivals(results)


def _show_speed(results: Sequence[dict[str, Any]]) -> None:
    heads = ["bare/s", "decode/s", "ours/s", "of-bare", "of-lower", "no-load"]
    heads += ["rival/s", "ours/rival", "no-load"]
    rows = []
    for found in results:
        medians = found["medians"]
        cells = [
            f"{medians['bare']:.2f}",
            f"{found['decode_ceiling']:.0f}",
            f"{medians['images_per_second']:.2f}",
            f"{medians['share']:.1%}",
            f"{medians['share_of_ceiling']:.1%}",
            f"{medians['share_without_load']:.1%}",
            f"{medians['fastest_rival']:.2f}",
            f"{medians['against_fastest']:.2f}",
            f"{medians['against_fastest_without_load']:.2f}",
        ]
        rows.append((_name(found), cells))
    _print("Speed, images per second", heads, rows)
    print(
        "  bare: the forward pass alone; decode: the decoding alone; of-lower: ours of the lower of both;\n"
        "  no-load: without loading weights and the sample of `fast`; rival: the fastest, in float32"
    )


def _show_costs(results: Sequence[dict[str, Any]]) -> None:
    heads = [*STAGES, "size/raw", "host-GB", "GPU-GB", "same", "1%", "resume", "again"]
    rows = []
    for found in results:
        run, resume = found["rounds"][0]["end_to_end"], found["resume"]
        cells = [f"{found['medians']['stage_shares'].get(stage, 0.0):.1%}" for stage in STAGES]
        cells += [f"{run['size_vs_raw']:.2f}", f"{run['peak_gb']:.2f}", f"{run['peak_device_gb']:.2f}"]
        cells += [f"{found['unchanged']['share']:.2%}", f"{found['one_percent']['share']:.2%}"]
        cells += (
            [f"{resume['share']:.1%}", f"{resume['computed_again']}/{resume['shard_rows']}"]
            if resume
            else ["", ""]
        )
        rows.append((_name(found), cells))
    _print("Where the time goes, size, memory, and runs on what stands", heads, rows)
    print(
        "  same, 1%, resume: share of a full run's time where nothing changed, a hundredth of the images\n"
        "  did, or a run was cut off half way; again: images computed twice then, and those of a shard;\n"
        "  host, GPU: peak of memory in the first round"
    )


def _show_rivals(results: Sequence[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for found in results for name in found["medians"]["rivals"]))
    heads = ["ours", *names]
    rows = []
    for found in results:
        rivals = found["medians"]["rivals"]
        cells = [f"{rivals[name]:.2f}" if name in rivals else "" for name in names]
        rows.append((_name(found), [f"{found['medians']['images_per_second']:.2f}", *cells]))
    counts = ", ".join(sorted({str(found["rival_images"]) for found in results}))
    loaders = ", ".join(sorted({str(found["loader_processes"]) for found in results}))
    _print(f"Beside it, images per second: {counts} images, DataLoaders of {loaders} processes", heads, rows)


def _name(found: dict[str, Any]) -> str:
    return f"{found['model']} {found['precision']}"


def _print(title: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> None:
    columns = [[head, *(cells[at] for _, cells in rows)] for at, head in enumerate(heads)]
    widths = [max(map(len, column)) for column in columns]
    label = max(len(name) for name, _ in rows)
    print(f"\n{title}")
    for name, cells in [("", heads), *rows]:
        line = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        print(f"  {name.ljust(label)}  {line}".rstrip())


if __name__ == "__main__":
    show(json.loads(Path(sys.argv[1]).read_text())["results"])
