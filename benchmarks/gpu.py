"""Everything that a first quarter of an hour with a GPU should answer, in one command of at most 8 minutes.

    python benchmarks/gpu.py --images PHOTOGRAPHS [--kit KIT] [--json gpu.json]
    python benchmarks/gpu.py --device cpu --tiny     # a dry run of every step, with networks of one layer

What to bring to the machine, 60 MB at most, beside this repository (nothing is downloaded there):

- PHOTOGRAPHS: a folder with 100 to 250 JPEG files; they are repeated under new ids. Without it, drawn ones.
- KIT: the parity kit: make_weights.py, checkpoints.json, images/, and reference/ without *.pixels.npy. It has
  the published code's vectors for seeded full-size weights. Without it, only our own CPU is compared with.
- Wheels for the machine's own Python, where it has no open_clip (CLIP is left out without it):

      pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 \
          -d wheels open_clip_torch==3.3.0 ftfy wcwidth regex
      pip install --no-index --no-deps --target site wheels/*.whl && export PYTHONPATH=site

  Needed: torch, torchvision, transformers, Pillow, pyarrow, pandas, numpy, scipy, safetensors. Not needed:
  Dagster, typer, rich. sentence-transformers and simplejpeg are measured where they are installed.

Steps, the most important first, and the minutes expected on one data-centre GPU with 16 cores:

    parity      1.0   exact against the published vectors and the CPU; fast against exact; the self-test
    throughput  2.0   bare forward by batch size, decoding, end to end with stage shares and peak memory
    rivals      1.5   the serial loop, transformers' processor, a DataLoader, sentence-transformers
    memory      0.5   a batch that is too large; another process that holds the memory
    resume      0.5   kill -9 and resume, two runs, nothing changed, one per cent changed
    start       0.5   from the start of a process to the first batch, as a Dagster run pays it
    variants    1.5   torch.compile, CUDA graphs, channels-last, float16, JPEG decoding on the GPU

Each step is a process of its own and ends at twice its minutes, or when the time is up. The JSON file is
written after each step, by model where one is cut off: an interruption loses one step at most. What cannot be
had on a machine says why under `reason`. What failed says how under `error`, and the command then exits with
1; so do vectors beyond all bounds and bytes that differ. In the dry run, torch.compile only traces.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
MINUTES = {
    "parity": 1.0,
    "throughput": 2.0,
    "rivals": 1.5,
    "memory": 0.5,
    "resume": 0.5,
    "start": 0.5,
    "variants": 1.5,
}
MODELS = ("CLIP", "DINOv2", "Franca", "SigLIPv2")
LEAST_SECONDS = 5.0  # with less left, no step is begun

# This checkout, also where another is installed, here and in every process that is started.
sys.path.insert(0, str(REPOSITORY))
os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])


def main() -> int:
    options = arguments()
    if options.step:
        from gpu_steps import run_step

        run_step(options)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step is ended with this process
    deadline = time.monotonic() + 60 * options.minutes
    steps: dict[str, Any] = {}
    found = {"device": options.device, "tiny": options.tiny, "machine": machine(), "steps": steps}
    print(json.dumps(found["machine"]), flush=True)
    if options.device.startswith("cuda") and not found["machine"]["hardware"]["gpus"]:
        print("torch sees no CUDA device here; the dry run is --device cpu --tiny", file=sys.stderr)
        return 1
    write(options.json, found)
    with tempfile.TemporaryDirectory() as folder:
        for name in options.steps:
            work = Path(folder) / name
            command = [sys.executable, __file__, *sys.argv[1:], "--step", name, "--work", str(work)]
            left = deadline - time.monotonic()
            capped = left if options.device == "cpu" else min(left, 2 * 60 * MINUTES[name])
            steps[name] = run_in_a_process(command, work, capped)
            write(options.json, found)
            print(f"{name}: {json.dumps(steps[name])}", flush=True)
    return 1 if '"error": ' in json.dumps(steps) else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder with JPEG files, searched in depth")
    parser.add_argument("--kit", type=Path, help="folder of the parity kit")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks of one layer, few images: a dry run")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--steps", nargs="+", choices=MINUTES, default=list(MINUTES))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--json", type=Path, default=Path("bench-gpu.json"))
    parser.add_argument("--step", help=argparse.SUPPRESS)  # in a process of its own: which, and where
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill-at", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.images is not None and not any(options.images.rglob("*.[jJ][pP]*[gG]")):
        parser.error(f"{options.images}: no JPEG files there")
    if options.kit is not None and not (options.kit / "make_weights.py").is_file():
        parser.error(f"{options.kit}: no parity kit there, which has a make_weights.py")
    return options


def machine() -> dict[str, Any]:
    """Hardware and versions, asked in a process of its own: this one takes no memory of the GPU."""
    command = [sys.executable, str(Path(__file__).with_name("machine.py"))]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def run_in_a_process(command: Sequence[str], work: Path, seconds: float) -> dict[str, Any]:
    """What a step has written to `work` by the time it ended, failed, or ran out of time."""
    if seconds < LEAST_SECONDS:
        return {"reason": "no time was left"}
    work.mkdir()
    started = time.monotonic()
    # The pipe closes when this process ends, however it ends; the step then ends as well.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    error = None
    try:
        code = process.wait(seconds)
        if code != 0:
            error = f"the step's process ended with {code}"
    except subprocess.TimeoutExpired:
        error = f"stopped after {seconds:.0f} seconds"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result = work / "result.json"
    found: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
    return {"seconds": round(time.monotonic() - started, 1), **found, **({"error": error} if error else {})}


def write(path: Path, found: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(found, indent=1))
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
