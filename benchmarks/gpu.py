"""Everything that a first quarter of an hour with a GPU should answer, in one command of at most 8 minutes.

    python benchmarks/gpu.py --images PHOTOGRAPHS [--kit KIT] [--json gpu.json]
    python benchmarks/gpu.py --device cpu --tiny     # a dry run of every step, with networks of one layer

What to bring to the machine, 60 MB at most, beside this repository (nothing is downloaded there):

- PHOTOGRAPHS: a folder with 100 to 250 JPEG files; they are repeated under new ids. Without it, drawn ones.
- KIT: the parity kit: make_weights.py, checkpoints.json, images/, and reference/ without *.pixels.npy. It has
  the published code's vectors for seeded full-size weights. Without it, only our own CPU is compared with.
- Wheels, where the machine has no open_clip (CLIP is left out without it):

      pip download --no-deps -d wheels open_clip_torch==3.3.0 ftfy wcwidth regex timm
      pip install --no-index --no-deps --target site wheels/*.whl; export PYTHONPATH=site:.

  Needed there: torch, torchvision, transformers, Pillow, pyarrow, pandas, numpy, scipy, safetensors; Dagster,
  typer and rich are not. sentence-transformers and simplejpeg are measured where they are installed.

Steps, the most important first, and the minutes expected on one data-centre GPU with 16 cores:

    parity      1.5   exact against the published vectors and the CPU; fast against exact; the self-test
    throughput  2.5   bare forward by batch size, decoding, end to end with stage shares and peak memory
    rivals      1.5   the serial loop, transformers' processor, a DataLoader, sentence-transformers
    memory      0.5   a batch that is too large; another process that holds the memory
    resume      0.5   kill -9 and resume, two runs, nothing changed, one per cent changed
    variants    1.0   torch.compile, CUDA graphs, channels-last, float16, JPEG decoding on the GPU
    start       0.5   from the start of a process to the first batch

Each step is a process of its own with the time that is left as its limit. The JSON file is written after each
step, by model where one is cut off: an interruption loses one step at most. What cannot be had on a machine
says why under `reason`; what failed says how under `error`, and the command then exits with 1.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = ("parity", "throughput", "rivals", "memory", "resume", "variants", "start")
LEAST_SECONDS = 5.0  # with less left, no step is begun


def main() -> int:
    options = arguments()
    if options.step:
        from gpu_steps import run_step

        run_step(options)
        return 0
    deadline = time.monotonic() + 60 * options.minutes
    steps: dict[str, Any] = {}
    found = {"device": options.device, "tiny": options.tiny, "steps": steps}
    with tempfile.TemporaryDirectory() as folder:
        found["machine"] = machine_in_a_process()
        print(json.dumps(found["machine"]), flush=True)
        if options.device.startswith("cuda") and not found["machine"]["hardware"]["gpus"]:
            print("torch sees no CUDA device here; the dry run is --device cpu --tiny", file=sys.stderr)
            return 1
        for name in options.steps:
            steps[name] = run_in_a_process(name, Path(folder), deadline)
            options.json.write_text(json.dumps(found, indent=1))
            print(f"{name}: {json.dumps(steps[name])}", flush=True)
    return 1 if '"error": ' in json.dumps(steps) else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder with JPEG files, searched in depth")
    parser.add_argument("--kit", type=Path, help="folder of the parity kit")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="networks of one layer, few images: a dry run")
    parser.add_argument("--models", nargs="+", default=["CLIP", "DINOv2", "Franca", "SigLIPv2"])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--step", help=argparse.SUPPRESS)  # in a process of its own: which, and where
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kill-at", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def machine_in_a_process() -> dict[str, Any]:
    """Hardware and versions, without CUDA's memory being taken in this process."""
    command = [sys.executable, str(Path(__file__).with_name("machine.py"))]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def run_in_a_process(name: str, folder: Path, deadline: float) -> dict[str, Any]:
    """What a step found until it ended, failed, or ran out of time."""
    limit = deadline - time.monotonic()
    if limit < LEAST_SECONDS:
        return {"reason": "no time was left"}
    work = folder / name
    work.mkdir()
    started = time.monotonic()
    command = [sys.executable, __file__, *sys.argv[1:], "--step", name, "--work", str(work)]
    process = subprocess.Popen(command, start_new_session=True)
    error = None
    try:
        code = process.wait(limit)
        if code != 0:
            error = f"the step's process ended with {code}"
    except subprocess.TimeoutExpired:
        error = f"stopped after {limit:.0f} seconds"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    result = work / "result.json"
    found: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
    return {"seconds": round(time.monotonic() - started, 1), **found, **({"error": error} if error else {})}


if __name__ == "__main__":
    sys.exit(main())
