"""What Dagster costs: a backfill through the daemon, its time and where that went.

    python benchmarks/backfill.py [--data DIR --dataset NAME ...] [--weights DIR] [--json FILE]

Starts `dagster dev` with a history of its own, asks it for every partition of the datasets named (manifests
and all four models) as the button *Materialize* does, and waits. By default the demo's six drawn datasets in
a temporary folder with untrained weights: 90 materializations. `--data` takes a data root with raw datasets,
which may be partial; what stands there already is not made again, so give one without embeddings.

Prints seconds and shares of the time from the request to the backfill's end: decode, forward, write and load
as the engine measured them, the rest of the engine and the making of manifests, and what is left, which is
Dagster's: the daemon's ticks, the start of each run's process, checks, pictures, events.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from machine import machine

from embeddings_assets.catalog import MODELS, SPLITS
from embeddings_assets.graph.demo_data import DEMO_DATASETS, write_demo_data
from embeddings_assets.settings import Settings

REPOSITORY = Path(__file__).resolve().parent.parent
STAGES = ("decode", "forward", "write", "load", "compare", "other")
USEFUL = ("decode", "forward", "write")
ASSETS = [dg.AssetKey("processed_images"), *(dg.AssetKey(["embeddings", model.name]) for model in MODELS)]
LAUNCH = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
STATUS = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status } } }"""


@contextlib.contextmanager
def served(home: Path, data: Path, weights: str) -> Iterator[str]:
    """The address of a `dagster dev` of this repository's definitions; it ends with the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    dagster = str(Path(sys.executable).with_name("dagster"))
    command = [dagster, "dev", "--host", "127.0.0.1", "--port", str(port), "--workspace", "workspace.yaml"]
    variables = {"DAGSTER_HOME": str(home), "EMBEDDINGS_DATA": str(data), "EMBEDDINGS_WEIGHTS": weights}
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env={**os.environ, **variables},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            while True:
                if server.poll() is not None:
                    raise SystemExit((home / "log").read_text())
                with contextlib.suppress(urllib.error.URLError, TimeoutError, ConnectionError):
                    urllib.request.urlopen(f"{address}/server_info", timeout=5).close()
                    break
                time.sleep(0.5)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def ask(address: str, query: str, **variables: object) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{address}/graphql",
        json.dumps({"query": query, "variables": variables}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)["data"]
    return answer


def backfill(address: str, partitions: list[str]) -> str:
    """Ask for all assets of the partitions, and wait for the end; returns the backfill's last status."""
    params = {
        "assetSelection": [{"path": list(key.path)} for key in ASSETS],
        "partitionNames": partitions,
        "runConfigData": {"resources": {"data": {"config": {"allow_missing": True}}}},
    }
    launched = ask(address, LAUNCH, params=params)["launchPartitionBackfill"]
    if "backfillId" not in launched:
        raise SystemExit(json.dumps(launched))
    while True:
        status = ask(address, STATUS, id=launched["backfillId"])["partitionBackfillOrError"]["status"]
        if status not in ("REQUESTED", "CANCELING", "FAILING"):
            return str(status)
        time.sleep(1)


def account(instance: dg.DagsterInstance, seconds: float, status: str) -> dict[str, Any]:
    """Where the time went, by what the materializations tell."""
    spent: Counter[str] = Counter()
    images = materializations = 0
    for key in ASSETS:
        records = instance.fetch_materializations(key, limit=10_000).records
        materializations += len(records)
        for record in records:
            made = record.asset_materialization
            numbers = {name: value.value for name, value in made.metadata.items()} if made else {}
            if key == ASSETS[0]:
                spent["prepare"] += numbers["seconds"]
                continue
            images += numbers["computed"]
            for stage in STAGES:
                spent[stage] += numbers["seconds"] * numbers.get(f"{stage}_share", 0.0)
    runs = instance.get_run_records(limit=10_000)
    in_runs = sum((run.end_time or 0) - (run.start_time or 0) for run in runs if run.start_time)
    spent["Dagster, in runs"] = in_runs - sum(spent.values())
    spent["Dagster, between runs"] = seconds - sum(spent.values())
    useful = sum(spent[stage] for stage in USEFUL)
    return {
        "status": status,
        "materializations": materializations,
        "runs": len(runs),
        "runs_failed": sum(run.dagster_run.is_failure for run in runs),
        "images_embedded": images,
        "seconds": seconds,
        "seconds_of": dict(spent),
        "share_outside": 1 - useful / seconds,
        "share_outside_in_runs": 1 - useful / in_runs,
        "seconds_outside_per_run": (in_runs - useful) / len(runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a data root with raw datasets; by default the demo's")
    parser.add_argument("--dataset", nargs="+", default=[dataset.name for dataset in DEMO_DATASETS])
    parser.add_argument("--weights", default="random")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    partitions = [f"{dataset}|{split}" for dataset in options.dataset for split in SPLITS]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        shutil.copy(REPOSITORY / "dagster.yaml", home)
        data = options.data
        if data is None:
            data = Path(folder) / "data"
            for line in write_demo_data(Settings(data_root=data, weights="random")):
                print(line, flush=True)
        with dg.DagsterInstance.from_config(str(home)) as instance:
            instance.event_log_storage.set_concurrency_slots("gpu", 1)
            with served(home, data.resolve(), options.weights) as address:
                started = time.perf_counter()
                status = backfill(address, partitions)
                seconds = time.perf_counter() - started
            found = account(instance, seconds, status)
    print(
        f"{status}, {seconds:.0f} s: {found['materializations']} materializations in {found['runs']} runs, "
        f"{found['runs_failed']} of them failed, {found['images_embedded']:,} images embedded"
    )
    for name, value in found["seconds_of"].items():
        print(f"  {name:<22} {value:>8.1f} s  {value / seconds:>6.1%}")
    print(
        f"outside decode, forward and write: {found['share_outside']:.1%} of all, "
        f"{found['share_outside_in_runs']:.1%} of the time in runs, "
        f"{found['seconds_outside_per_run']:.1f} s per run"
    )
    expected = len(partitions) * len(ASSETS)
    if status != "COMPLETED_SUCCESS" or found["materializations"] != expected:
        raise SystemExit(f"{status}: {expected} materializations were asked for")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), **found}, indent=1))


if __name__ == "__main__":
    main()
