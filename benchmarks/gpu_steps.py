"""Runs one step of `gpu.py` in this process; nothing here is run by itself."""

import argparse
import math
import os
import signal
import threading
from collections.abc import Callable

import torch
from gpu_context import Context, shrink_networks
from gpu_exact import hold, killed, memory, parity, resume
from gpu_speed import rivals, start, throughput, variants

from embeddings_assets.encoders import self_test

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
