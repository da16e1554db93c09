"""How long a split of the size of NABirds/test takes to load into one array.

    python benchmarks/loading.py [--rows 24633] [--rounds 5] [--json FILE]

Seeded unit vectors, 768 wide, are committed by the store as a split; then, in turn, `load_matrix` reads it
and `numpy.fromfile` reads the same numbers from a raw file. Both lie in the page cache. `engine.py` measures
this too.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from machine import machine

from embeddings_assets.catalog import get_dataset
from embeddings_assets.encoders.plan import plan_encoder
from embeddings_assets.pipeline import commit_vectors
from embeddings_assets.settings import RANDOM_WEIGHTS, DataPaths
from embeddings_assets.store.manifest import Manifest, write_manifest
from embeddings_assets.store.reading import load_matrix
from embeddings_assets.store.schema import LEDGER_SCHEMA, NO_CROP

DATASET, SPLIT, MODEL = "NABirds", "test", "DINOv2"
ROWS = 24_633
CLASSES = 555


def manifest_of(paths: DataPaths, rows: int) -> Manifest:
    """A manifest of images that are not there: committing vectors looks at none."""
    rng = np.random.default_rng(0)
    ids = [rng.bytes(16).hex() for _ in range(rows)]
    labels = np.sort(rng.integers(0, CLASSES, rows)).astype(np.int32)
    folder = get_dataset(DATASET).raw_folder
    pairs = list(zip(ids, labels, strict=True))
    table = pa.table(
        {
            "image_id": ids,
            "image_path": [f"raw/{folder}/images/{label:04d}/{image_id}.jpg" for image_id, label in pairs],
            "label": labels,
            "class_name": [f"Bird {label}" for label in labels],
            "class_id": [str(label) for label in labels],
            "official_split": [SPLIT] * rows,
            "sha256": [rng.bytes(32).hex() for _ in range(rows)],
            "bytes": np.full(rows, 100_000),
            "width": np.full(rows, 1024, np.int32),
            "height": np.full(rows, 768, np.int32),
            "format": ["JPEG"] * rows,
            "mode": ["RGB"] * rows,
        }
    )
    options = {"crop": NO_CROP}
    none = LEDGER_SCHEMA.empty_table()
    return write_manifest(paths, DATASET, SPLIT, table, none, options=options, raw_folder=None)


def measure_loading(rows: int = ROWS, rounds: int = 5) -> dict[str, Any]:
    """Seconds to commit and to load `rows` vectors, and their size on disk as a share of raw float32."""
    plan = plan_encoder(MODEL, weights=RANDOM_WEIGHTS, width="native", device="cpu")
    vectors = np.random.default_rng(1).standard_normal((rows, plan.width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as root:
        paths = DataPaths.from_root(Path(root))
        manifest = manifest_of(paths, rows)
        report, commit = _timed(lambda: commit_vectors(vectors, manifest, plan, paths))
        folder = paths.embeddings_split(MODEL, DATASET, SPLIT)
        raw = Path(root) / "vectors.raw"
        vectors.tofile(raw)
        loads, raws = [], []
        for _ in range(rounds):
            loaded, seconds = _timed(lambda: load_matrix(folder))
            loads.append(seconds)
            raws.append(_timed(lambda: np.fromfile(raw, np.float32))[1])
        if not np.array_equal(loaded, vectors):
            raise ValueError("what was loaded is not what was stored")
    return {
        "shape": list(loaded.shape),
        "commit_seconds": commit,
        "load_seconds": loads,
        "load_seconds_median": statistics.median(loads),
        "raw_seconds_median": statistics.median(raws),
        "size_vs_raw": report.bytes / report.raw_bytes,
    }


def show_loading(found: dict[str, Any]) -> None:
    rows, width = found["shape"]
    loads = found["load_seconds"]
    print(
        f"Loading {rows:,} x {width}: {found['load_seconds_median']:.2f} s into one array "
        f"(median of {len(loads)}; {min(loads):.2f} to {max(loads):.2f}), "
        f"a raw file {found['raw_seconds_median']:.2f} s; "
        f"{found['size_vs_raw']:.2f} of the raw size on disk, committed in {found['commit_seconds']:.1f} s"
    )


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure_loading(options.rows, options.rounds)
    show_loading(found)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "loading": found}, indent=1))


if __name__ == "__main__":
    main()
