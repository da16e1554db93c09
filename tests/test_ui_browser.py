"""A person in the web UI: a real `dagster dev`, driven by headless Chromium, from no embeddings to three."""

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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from graph_support import CLIP, CUB, PROCESSED, Graph, store_unit_vectors

from embeddings_assets.catalog import DATASETS, MODELS, SPLITS
from embeddings_assets.graph.build import build_definitions
from embeddings_assets.settings import DataPaths, Settings
from embeddings_assets.store.reading import load_table

pytest_plugins = ("graph_fixtures",)
pytestmark = pytest.mark.browser

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
STARTED_WITHIN, DONE_WITHIN = 90, 300  # seconds; it takes about 15 and 60 on two idle cores


@dataclass(frozen=True)
class Web:
    url: str
    home: Path
    data: Path

    def ask(self, query: str) -> Any:
        request = urllib.request.Request(
            f"{self.url}/graphql",
            json.dumps({"query": query}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/server_info", timeout=2):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


@pytest.fixture(scope="module")
def web(prepared_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """`dagster dev` over one prepared dataset.

    Dagster knows of no embeddings yet. Two splits stand, as after a run of the command line; the third must
    be computed.
    """
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no {CHROMIUM}: apt-get install chromium")
    root = tmp_path_factory.mktemp("web")
    shutil.copytree(prepared_root, root / "data")
    (root / "home").mkdir()
    shutil.copy(REPOSITORY / "dagster.yaml", root / "home")
    settings = Settings(data_root=root / "data", weights="random")
    with dg.DagsterInstance.from_config(str(root / "home")) as instance:
        graph = Graph(settings, build_definitions(settings), instance)
        for split in SPLITS:
            assert graph.run(PROCESSED, partition=f"{CUB}|{split}").success
    for split in ("train", "validation"):
        store_unit_vectors(settings, "CLIP", split)
    port = free_port()
    web = Web(f"http://127.0.0.1:{port}", root / "home", root / "data")
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(web.home),
        "EMBEDDINGS_DATA": str(web.data),
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


def stop(server: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(server.pid, number)
            server.wait(patience)


@pytest.fixture
def page(web: Web) -> Iterator["sync_api.Page"]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1400, "height": 1000})
        opened.set_default_timeout(30_000)
        yield opened
        browser.close()


def wait_for_backfill(web: Web) -> None:
    query = "{ partitionBackfillsOrError { ... on PartitionBackfills { results { status numPartitions } } } }"
    deadline = time.monotonic() + DONE_WITHIN
    found: list[Any] = []
    while time.monotonic() < deadline:
        found = web.ask(query)["partitionBackfillsOrError"]["results"]
        if found and found[0]["status"] != "REQUESTED":
            break
        time.sleep(1)
    assert found == [{"status": "COMPLETED_SUCCESS", "numPartitions": 3}]


def test_from_the_graph_to_three_checked_partitions(web: Web, page: "sync_api.Page", tmp_path: Path) -> None:
    expect = sync_api.expect

    page.goto(f"{web.url}/asset-groups")
    expect(page.get_by_text("datasets").first).to_be_visible()
    page.keyboard.press("Alt+e")
    for name in ("processed_images", *(model.name for model in MODELS)):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    page.screenshot(path=tmp_path / "1_graph.png")

    page.goto(f"{web.url}/assets/embeddings/CLIP?view=partitions")
    expect(page.get_by_text("Missing (18)")).to_be_visible()
    for name in (*(dataset.name for dataset in DATASETS), *SPLITS):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    page.screenshot(path=tmp_path / "2_matrix_empty.png")

    page.get_by_role("button", name="Materialize…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Select a partition or create one").first.click()
    page.get_by_role("menuitem", name=CUB).click()
    page.keyboard.press("Escape")
    dialog.get_by_role("button", name="All").nth(1).click()
    expect(dialog.get_by_text("3 partitions")).to_be_visible()
    page.screenshot(path=tmp_path / "3_dialog.png")
    dialog.get_by_role("button", name="Launch backfill").click()
    wait_for_backfill(web)

    page.goto(f"{web.url}/assets/embeddings/CLIP?view=partitions&partition={CUB}%7Ctest")
    expect(page.get_by_text("Materialized (3)")).to_be_visible()
    expect(page.get_by_text("images_per_second")).to_be_visible()
    page.screenshot(path=tmp_path / "4_matrix_filled.png")
    page.get_by_text("[Show Markdown]").click()
    expect(page.get_by_role("dialog").locator("img[src^='data:image/png']")).to_be_visible()
    page.screenshot(path=tmp_path / "5_map.png")

    page.goto(f"{web.url}/assets/embeddings/CLIP?view=checks")
    expect(page.get_by_text("Every vector is 512 wide.")).to_be_visible()
    page.screenshot(path=tmp_path / "6_checks.png")

    paths = DataPaths.from_root(web.data)
    assert [load_table(paths.embeddings_split("CLIP", CUB, split)).num_rows for split in SPLITS] == [
        25,
        5,
        10,
    ]
    assert_checked_per_partition(web)


def assert_checked_per_partition(web: Web) -> None:
    names = (
        '{ assetNodeOrError(assetKey: {path: ["embeddings", "CLIP"]}) { ... on AssetNode { '
        "assetChecksOrError { ... on AssetChecks { checks { name canExecuteIndividually } } } } } }"
    )
    checks = web.ask(names)["assetNodeOrError"]["assetChecksOrError"]["checks"]
    assert {check["canExecuteIndividually"] for check in checks} == {"CAN_EXECUTE"}
    keys = [dg.AssetCheckKey(CLIP, check["name"]) for check in checks]
    assert len(keys) == 10
    with dg.DagsterInstance.from_config(str(web.home)) as instance:
        records = instance.event_log_storage.get_asset_check_partition_info(keys)
    statuses = {
        (record.check_key.name, record.partition_key): record.latest_execution_status.value
        for record in records
    }
    assert statuses == {
        (key.name, f"{CUB}|{split}"): "FAILED" if key.name == "weights_trained" else "SUCCEEDED"
        for key in keys
        for split in SPLITS
    }
