"""One model and profile on one prepared split: the runs that are measured, and what they are compared with.

Used by `engine.py`; nothing here is run by itself.
"""

import contextlib
import os
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import DATASET, SPLIT
from rivals import Rivals

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.encoders.encoder import Encoder
from embeddings_assets.extraction.batching import choose_batch_size
from embeddings_assets.extraction.decoding import Decoders, ImageTask
from embeddings_assets.extraction.report import ExtractionOptions, Progress
from embeddings_assets.io.images import decode_image
from embeddings_assets.pipeline import EncoderChoice, EncoderHolder, process_split
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest

COMPARED = 8  # images whose vectors rivals are to agree on
LEAST_SHARD = 8  # images


class _CutOffError(Exception):
    pass


class Bench:
    """One model and profile on one prepared split."""

    def __init__(self, model: str, precision: str, weights: str, paths: DataPaths, device: str) -> None:
        self.paths = paths
        self.holder = EncoderHolder(
            EncoderChoice(weights=weights, precision=precision, device=device).plan(model)
        )
        started = time.perf_counter()
        encoder = self.holder.load()
        self.load_seconds = time.perf_counter() - started
        self.on_gpu = encoder.device.startswith("cuda")
        self.batch_size = choose_batch_size(self.holder)
        self.manifest = open_manifest(paths, DATASET, SPLIT)
        rows = self.manifest.slice(0, self.manifest.rows, ["image_path", "sha256"]).to_pylist()
        self.tasks = [
            ImageTask(n, self.manifest.resolve(row["image_path"]), row["sha256"])
            for n, row in enumerate(rows)
        ]
        self.files = [task.path for task in self.tasks]
        self.pixels = pixels_of(encoder, self.files[: self.batch_size])

    def rivals_and_reference(self) -> tuple[Rivals, np.ndarray]:
        """What people run otherwise, and vectors of the first few images for them to agree with."""
        plan = self.holder.plan
        exact = replace(plan.exact(), width=plan.spec.native_width).load()
        reference = exact.encode(pixels_of(exact, self.files[:COMPARED]))
        exact.close()
        return Rivals(exact.plan, exact.device), reference

    def end_to_end(self) -> dict[str, Any]:
        """A first run; the start of its decoding processes counts."""
        self.forget()
        with Decoders() as decoders:
            return self.run(decoders)

    def forget(self) -> None:
        shutil.rmtree(self.paths.embeddings, ignore_errors=True)

    def run(
        self, decoders: Decoders, options: ExtractionOptions | None = None, progress: Progress | None = None
    ) -> dict[str, Any]:
        """One call of the engine, on what stands; it loads the weights itself if it needs them."""
        self.holder.close()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.holder.device())
        started = time.perf_counter()
        report = process_split(
            self.holder, DATASET, SPLIT, self.paths, options=options, decoders=decoders, progress=progress
        )
        seconds = time.perf_counter() - started
        return {
            "images_per_second": report.rows / seconds,
            "images_per_second_without_load": report.images_per_second,
            "seconds": seconds,
            "status": report.status,
            "computed": report.computed,
            "reused": report.reused,
            "resumed": report.resumed,
            "stage_shares": report.stage_shares,
            "bottleneck": report.bottleneck,
            "device": report.device,
            "workers": report.workers,
            "batch_size": report.batch_size,
            "size_vs_raw": report.bytes / report.raw_bytes,
            "peak_gb": report.peak_bytes / 1e9,
            "peak_device_gb": report.peak_device_bytes / 1e9,
            "fidelity": report.fidelity and asdict(report.fidelity),
        }

    def resume(self, decoders: Decoders) -> dict[str, Any]:
        """A run that goes on from one that was cut off half way, at the last image of a shard.

        Shards have their usual size, or a tenth of the images where that is less.
        """
        rows = self.manifest.rows
        shard_rows = max(LEAST_SHARD, min(ExtractionOptions().shard_rows, rows // 10))
        shard_rows -= shard_rows % self.batch_size if shard_rows > self.batch_size else 0
        half = shard_rows * max(1, rows // shard_rows // 2)
        reached = 0

        def cut_off(done: int, total: int) -> None:
            nonlocal reached
            reached = done
            if done >= half:
                raise _CutOffError

        self.forget()
        options = ExtractionOptions(shard_rows=shard_rows)
        with contextlib.suppress(_CutOffError):
            self.run(decoders, options, cut_off)
        found = self.run(decoders, options)
        again = reached - found["resumed"]
        return {**found, "cut_off_at": reached, "shard_rows": shard_rows, "computed_again": again}

    def change_a_hundredth(self) -> None:
        """New content for a hundredth of the files, as a new download would bring."""
        for path in self.files[::100]:
            data = path.read_bytes()
            path.write_bytes(data[:2] + b"\xff\xfe\x00\x08" + os.urandom(6).hex().encode()[:6] + data[2:])
        prepare_dataset(DATASET, self.paths)


def pixels_of(encoder: Encoder, files: list[Path]) -> np.ndarray:
    return np.stack([encoder.pixels(decode_image(path)) for path in files])
