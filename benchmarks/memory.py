"""Peak memory of the engine by the number of images, with an encoder that costs nothing.

    python benchmarks/memory.py [--images FOLDER] [--counts 5000 50000] [--json FILE]

Everything else is real: JPEG files are decoded and resized as for CLIP, shards are staged, and a split is
committed. Each size runs in a process of its own; the decoding processes are counted too.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from images import DATASET, build_tree, drawn

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.encoders.families.clip import RECIPE
from embeddings_assets.encoders.plan import plan_encoder
from embeddings_assets.extraction.engine import extract_split
from embeddings_assets.extraction.worker import ToPixels
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest


class Stub:
    """Unit vectors out of a few pixels."""

    def footer(self) -> dict[str, Any]:
        return plan_encoder("CLIP", weights="random").footer()

    def to_pixels(self) -> ToPixels:
        return RECIPE.pixels

    def on(self, device: str) -> "Stub":
        return self

    def device(self) -> str:
        return "cpu"

    def device_memory(self) -> int:
        return 0

    def load(self) -> "Stub":
        return self

    def peak_device_bytes(self) -> int:
        return 0

    def submit(self, pixels: np.ndarray) -> Callable[[], np.ndarray]:
        few = pixels[:, ::14, ::14, :2].reshape(len(pixels), -1).astype(np.float32) + 1
        return lambda: few / np.linalg.norm(few, axis=1, keepdims=True)


def extract(root: Path) -> None:
    """In a process of its own: embed the prepared split and print what it took."""
    paths = DataPaths.from_root(root)
    report = extract_split(
        open_manifest(paths, DATASET, "train"),
        Stub(),
        target=paths.embeddings_split("CLIP", DATASET, "train"),
        staging_root=paths.staging,
    )
    print(json.dumps({"rows": report.rows, "peak_bytes": report.peak_bytes, "seconds": report.seconds}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder with JPEG files, searched in depth")
    parser.add_argument("--counts", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.root:
        extract(options.root)
        return
    found = []
    for count in options.counts:
        with tempfile.TemporaryDirectory() as folder:
            images = options.images or drawn(Path(folder) / "drawn")
            paths = build_tree(Path(folder) / "data", images, count, "train")
            prepare_dataset(DATASET, paths)
            command = [sys.executable, __file__, "--root", str(Path(folder) / "data")]
            shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found.append(json.loads(shown))
        rate = found[-1]["rows"] / found[-1]["seconds"]
        print(f"{count:>10,} images: {found[-1]['peak_bytes'] / 1e6:,.0f} MB at most, {rate:,.0f} images/s")
    print(
        f"{found[-1]['peak_bytes'] / found[0]['peak_bytes']:.3f} times as much for the last as for the first"
    )
    if options.json:
        from machine import machine  # loads torch, whose memory is none of what is measured

        options.json.write_text(json.dumps({"machine": machine(), "sizes": found}, indent=1))


if __name__ == "__main__":
    main()
