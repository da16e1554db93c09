"""A real `dagster dev` over two small raw datasets, and headless Chromium to drive it."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from graph_support import CUB, PROCESSED, Graph, store_unit_vectors

from embeddings_assets.catalog import SPLITS
from embeddings_assets.datasets.synthetic.writer import write_synthetic
from embeddings_assets.graph.build import build_definitions
from embeddings_assets.settings import Settings

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

REPOSITORY = Path(__file__).resolve().parent.parent
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
DOGS = "Stanford Dogs"
STARTED_WITHIN, DONE_WITHIN = 120, 400  # seconds; it takes about 15 and 60 on two idle cores
PAGE_WITHIN = 60_000  # milliseconds

_BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
_RUNS = """{ runsOrError(limit: 100) { ... on Runs { results {
    runId status parentRunId tags { key value } eventConnection(limit: 1000) { events {
    ... on MessageEvent { message } } } } } } }"""


@dataclass(frozen=True)
class Run:
    """A run as the web server tells of it."""

    run_id: str
    status: str
    partition: str
    messages: Sequence[str]
    parent: str | None


@dataclass(frozen=True)
class Web:
    """The running server."""

    url: str
    home: Path
    settings: Settings

    def ask(self, query: str, **variables: object) -> Any:
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]

    def backfill(
        self,
        assets: Sequence[dg.AssetKey],
        partitions: Sequence[str],
        config: Mapping[str, Any] | None = None,
    ) -> str:
        """Start a backfill; its id."""
        params: dict[str, Any] = {
            "assetSelection": [{"path": list(key.path)} for key in assets],
            "partitionNames": list(partitions),
        }
        if config:
            params["runConfigData"] = config
        return str(self.ask(_BACKFILL, params=params)["launchPartitionBackfill"]["backfillId"])

    def backfill_status(self, backfill: str) -> str:
        query = (
            "query($id: String!) { partitionBackfillOrError(backfillId: $id) "
            "{ ... on PartitionBackfill { status } } }"
        )
        return str(self.ask(query, id=backfill)["partitionBackfillOrError"]["status"])

    def runs(self) -> list[Run]:
        """The latest first."""
        return [
            Run(
                run["runId"],
                run["status"],
                next((tag["value"] for tag in run["tags"] if tag["key"] == "dagster/partition"), ""),
                [event["message"] for event in run["eventConnection"]["events"] if "message" in event],
                run["parentRunId"],
            )
            for run in self.ask(_RUNS)["runsOrError"]["results"]
        ]

    def run_of(self, partition: str) -> Run | None:
        """The latest run of a partition."""
        return next((run for run in self.runs() if run.partition == partition), None)


def wait(until: Callable[[], bool], seconds: float = DONE_WITHIN) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.fixture(scope="session")
def web(prepared_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """`dagster dev` over one prepared dataset and one that is raw.

    Dagster knows of no embeddings yet. Two splits of CUB stand, as after a run of the command line; the third
    must be computed.
    """
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    root = tmp_path_factory.mktemp("web")
    shutil.copytree(prepared_root, root / "data")
    write_synthetic(root / "data" / "raw", DOGS, classes=8, train_per_class=12, test_per_class=3)
    (root / "home").mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", root / "home")
    settings = Settings(data_root=root / "data", weights="random")
    with dg.DagsterInstance.from_config(str(root / "home")) as instance:
        instance.event_log_storage.set_concurrency_slots("gpu", 1)
        graph = Graph(settings, build_definitions(settings), instance)
        for split in SPLITS:
            assert graph.run(PROCESSED, partition=f"{CUB}|{split}").success
    for split in ("train", "validation"):
        store_unit_vectors(settings, "CLIP", split)
    port = free_port()
    web = Web(f"http://127.0.0.1:{port}", root / "home", settings)
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(web.home),
        "EMBEDDINGS_DATA": str(settings.data_root),
        "EMBEDDINGS_WEIGHTS": "random",
        "EMBEDDINGS_DEVICE": "cpu",
    }
    dagster = str(Path(sys.executable).with_name("dagster"))
    command = [dagster, "dev", "--host", "127.0.0.1", "--port", str(port), "--workspace", "workspace.yaml"]
    with (root / "log").open("w") as log:
        # A session of its own: at the end every process that it started is stopped with it.
        server = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + STARTED_WITHIN
            while not is_up(web.url):
                assert server.poll() is None, (root / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, (root / "log").read_text()[-3000:]
                time.sleep(0.5)
            yield web
        finally:
            stop(server)


@pytest.fixture
def page(web: Web) -> Iterator["sync_api.Page"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1400, "height": 1000})
        opened.set_default_timeout(PAGE_WITHIN)
        sync_api.expect.set_options(timeout=PAGE_WITHIN)
        yield opened
        browser.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def stop(server: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(server.pid, number)
            server.wait(patience)
