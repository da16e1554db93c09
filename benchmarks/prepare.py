"""How fast `prepare` looks at images, against the ceiling of the machine.

    python benchmarks/prepare.py --images FOLDER [--count 20000] [--rounds 3] [--cold]

Repeats the JPEG files below FOLDER under new names in a class tree of `--count` images in a temporary folder.
Each round measures, one after the other: the ceiling (read, sha256 and open of every file, in one process per
core, nothing else), a first `prepare` of the tree and a second one with nothing changed, both in this
process, and the same two by the command `embeddings-assets prepare`, start of Python included. The files are
in the page cache in all of them; with --cold (Linux, root) the cache is dropped before the ceiling and before
each first run, as for files that were not read lately. Prints the medians and a JSON line.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.settings import DataPaths

DATASET = "CUB-200-2011"
CLASSES = 200
LONG_AGO = 1_600_000_000


def build(root: Path, images: Path, count: int) -> list[str]:
    """A class tree of `count` files, nine tenths of them train; returns their paths."""
    sources = sorted(path for path in images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    files = []
    for number in range(count):
        split = {8: "validation", 9: "test"}.get(number % 10, "train")
        target = root / "processed" / DATASET / split / f"class-{number % CLASSES:03d}" / f"{number:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sources[number % len(sources)], target)
        files.append(str(target))
    for path in (root / "processed").rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return files


def hash_and_open(file: str) -> int:
    with open(file, "rb", buffering=0) as stream:
        data = stream.read()
    hashlib.sha256(data).hexdigest()
    with Image.open(io.BytesIO(data)) as image:
        return image.width


def ceiling(files: list[str], cores: int) -> float:
    """Images per second; the start of the processes is not counted."""
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(hash_and_open, files[:cores], chunksize=1)
        started = time.perf_counter()
        for _ in pool.imap(hash_and_open, files, chunksize=64):
            pass
        return len(files) / (time.perf_counter() - started)


def seconds_to_prepare(paths: DataPaths) -> float:
    started = time.perf_counter()
    prepare_dataset(DATASET, paths)
    return time.perf_counter() - started


def seconds_of_command(root: Path) -> float:
    command = [sys.executable, "-m", "embeddings_assets.cli.main", "prepare", "--dataset", DATASET]
    started = time.perf_counter()
    subprocess.run(
        command, env={**os.environ, "EMBEDDINGS_DATA": str(root)}, stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - started


def drop_page_cache() -> None:
    """See Documentation/admin-guide/sysctl/vm.rst of Linux."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def forget(paths: DataPaths) -> None:
    for path in (paths.processed / DATASET).rglob("*.parquet"):
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--images", type=Path, required=True, help="folder with JPEG files, searched in depth"
    )
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="drop the page cache before what reads files")
    options = parser.parse_args()
    begin = drop_page_cache if options.cold else lambda: None
    cores = len(os.sched_getaffinity(0))
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        paths = DataPaths.from_root(Path(folder))
        files = build(Path(folder), options.images, options.count)
        size = sum(os.path.getsize(file) for file in files)
        for _ in range(options.rounds):
            forget(paths)
            begin()
            best = ceiling(files, cores)
            begin()
            first, second = seconds_to_prepare(paths), seconds_to_prepare(paths)
            forget(paths)
            begin()
            command, again = seconds_of_command(Path(folder)), seconds_of_command(Path(folder))
            rate = options.count / first
            rounds.append(
                {
                    "ceiling": best,
                    "prepare": rate,
                    "share": rate / best,
                    "second_share": second / first,
                    "command": command,
                    "second_command": again,
                    "second_command_share": again / command,
                }
            )
    medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    print(f"{options.count:,} JPEG files, {size / options.count / 1000:.0f} kB each, {cores} cores")
    print(f"ceiling (read, hash, open)   {medians['ceiling']:>10,.0f} images/s")
    print(
        f"first prepare                {medians['prepare']:>10,.0f} images/s = {medians['share']:.0%} of it"
    )
    print(f"second prepare, no change    {medians['second_share']:>10.1%} of the first one's time")
    print(f"first run of the command     {medians['command']:>10.1f} s")
    print(
        f"second run, no change        {medians['second_command']:>10.2f} s = "
        f"{medians['second_command_share']:.1%} of it"
    )
    print(
        json.dumps({"machine": platform.processor() or platform.machine(), "cores": cores, "rounds": rounds})
    )


if __name__ == "__main__":
    main()
