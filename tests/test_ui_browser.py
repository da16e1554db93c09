"""A person in the web UI: a real `dagster dev`, driven by headless Chromium, from no embeddings to three."""

from pathlib import Path

import dagster as dg
import pytest
from graph_support import CLIP, CUB, shown
from ui_server import Web, sync_api, wait

from embeddings_assets.catalog import DATASETS, MODELS, SPLITS
from embeddings_assets.store.reading import load_table

pytest_plugins = ("graph_fixtures", "ui_server")
pytestmark = pytest.mark.browser

RECHECKED = (
    f"ops: {{check: {{config: {{asset: embeddings/CLIP, check: unit_norm, partitions: ['{CUB}|train']}}}}}}"
)


def latest_backfill(web: Web) -> tuple[str, int]:
    query = "{ partitionBackfillsOrError { ... on PartitionBackfills { results { status numPartitions } } } }"
    found = web.ask(query)["partitionBackfillsOrError"]["results"]
    return (found[0]["status"], found[0]["numPartitions"]) if found else ("none", 0)


def test_from_the_graph_to_three_checked_partitions(web: Web, page: "sync_api.Page", tmp_path: Path) -> None:
    expect = sync_api.expect

    page.goto(f"{web.url}/asset-groups")
    expect(page.get_by_text("datasets").first).to_be_visible()
    page.keyboard.press("Alt+e")
    for name in ("raw_images", "processed_images", *(model.name for model in MODELS)):
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
    wait(lambda: latest_backfill(web)[0] not in ("none", "REQUESTED"))
    assert latest_backfill(web) == ("COMPLETED_SUCCESS", 3)

    page.goto(f"{web.url}/assets/embeddings/CLIP?view=partitions&partition={CUB}%7Ctest")
    expect(page.get_by_text("Materialized (3)")).to_be_visible()
    for name in ("images_per_second", "mean_pairwise_cosine", "peak_memory_mb", "bottleneck"):
        expect(page.get_by_text(name)).to_be_visible()
    page.screenshot(path=tmp_path / "4_matrix_filled.png")
    for number, picture in enumerate(("map", "nearest_neighbours")):
        page.get_by_text("[Show Markdown]").nth(number).click()
        expect(page.get_by_role("dialog").locator("img[src^='data:image/png']")).to_be_visible()
        page.screenshot(path=tmp_path / f"5_{picture}.png")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)

    page.goto(f"{web.url}/assets/embeddings/CLIP?view=checks")
    expect(page.get_by_text("Every vector is 512 wide.")).to_be_visible()
    page.screenshot(path=tmp_path / "6_checks.png")

    folders = [web.settings.paths.embeddings_split("CLIP", CUB, split) for split in SPLITS]
    assert [load_table(folder).num_rows for folder in folders] == [25, 5, 10]
    assert_checked_per_partition(web)


def assert_checked_per_partition(web: Web) -> None:
    with dg.DagsterInstance.from_config(str(web.home)) as instance:
        names = (
            '{ assetNodeOrError(assetKey: {path: ["embeddings", "CLIP"]}) { ... on AssetNode { '
            "assetChecksOrError { ... on AssetChecks { checks { name } } } } } }"
        )
        checks = web.ask(names)["assetNodeOrError"]["assetChecksOrError"]["checks"]
        keys = [dg.AssetCheckKey(CLIP, check["name"]) for check in checks]
        assert len(keys) == 11
        statuses = shown(instance, keys)
    assert statuses == {
        (key.name, f"{CUB}|{split}"): "FAILED" if key.name == "weights_trained" else "SUCCEEDED"
        for key in keys
        for split in SPLITS
    }


def test_what_was_observed_of_the_raw_data_is_shown(web: Web, page: "sync_api.Page", tmp_path: Path) -> None:
    expect = sync_api.expect
    page.goto(f"{web.url}/assets/raw_images?view=events")
    page.get_by_text("NABirds").first.click()
    expect(page.get_by_text('embeddings-assets datasets fetch "NABirds"').first).to_be_visible()
    page.screenshot(path=tmp_path / "raw_events.png")
    page.goto(f"{web.url}/assets/raw_images")
    page.get_by_role("button", name="Observe").first.click()
    expect(page.get_by_text("Launched run")).to_be_visible()
    wait(lambda: web.runs()[0].status == "SUCCESS")
    page.screenshot(path=tmp_path / "raw.png")


def test_checks_run_again_alone_on_the_files_of_every_partition(
    web: Web, page: "sync_api.Page", tmp_path: Path
) -> None:
    expect = sync_api.expect
    page.goto(f"{web.url}/assets/embeddings/CLIP?view=checks")
    page.get_by_text("Execute all").click()
    expect(page.get_by_text("Launched run")).to_be_visible()
    wait(lambda: any("check_CLIP" in message for message in web.runs()[0].messages))
    wait(lambda: web.runs()[0].status in ("SUCCESS", "FAILURE"))
    again = web.runs()[0]
    assert (again.status, again.partition) == ("SUCCESS", "")
    assert not any("Materialized" in message for message in again.messages)
    assert_checked_per_partition(web)
    page.goto(f"{web.url}/assets/embeddings/CLIP?view=checks&checkDetail=unit_norm")
    expect(page.get_by_text("Passed", exact=True).first).to_be_visible()
    page.screenshot(path=tmp_path / "all_checked.png")


def test_the_nightly_backfill_is_one_click(web: Web, page: "sync_api.Page", tmp_path: Path) -> None:
    expect = sync_api.expect
    query = (
        '{ sensorOrError(sensorSelector: {repositoryName: "__repository__", '
        'repositoryLocationName: "embeddings_assets", sensorName: "nightly_backfill"}) { ... on Sensor '
        "{ sensorState { status ticks(limit: 1) { status error { message } } } } } }"
    )

    def state() -> dict[str, object]:
        found: dict[str, object] = web.ask(query)["sensorOrError"]["sensorState"]
        return found

    assert state()["status"] == "STOPPED"
    page.goto(f"{web.url}/locations/embeddings_assets/sensors/nightly_backfill")
    expect(page.get_by_role("checkbox")).to_have_count(1)
    page.get_by_role("checkbox").dispatch_event("click")  # what is seen of it is drawn beside it
    wait(lambda: state()["status"] == "RUNNING")
    wait(lambda: bool(state()["ticks"]) and state()["ticks"][0]["status"] != "STARTED")  # type: ignore[index]
    assert state()["ticks"] == [{"status": "SKIPPED", "error": None}], "it is not 02:00"
    page.screenshot(path=tmp_path / "nightly.png")
    page.get_by_role("checkbox").dispatch_event("click")
    wait(lambda: state()["status"] == "STOPPED")


def test_one_check_of_one_partition_runs_again_from_the_launchpad(
    web: Web, page: "sync_api.Page", tmp_path: Path
) -> None:
    expect = sync_api.expect
    page.goto(f"{web.url}/locations/embeddings_assets/jobs/recheck/playground")
    page.locator(".CodeMirror").first.click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(RECHECKED)
    page.screenshot(path=tmp_path / "launchpad.png")
    page.get_by_role("button", name="Launch run").click()
    wait(lambda: any("partitions checked: 1" in line for line in web.runs()[0].messages))
    wait(lambda: web.runs()[0].status == "SUCCESS")
    with dg.DagsterInstance.from_config(str(web.home)) as instance:
        statuses = shown(instance, [dg.AssetCheckKey(CLIP, "unit_norm")])
    assert statuses["unit_norm", f"{CUB}|train"] == "SUCCEEDED"
    page.goto(f"{web.url}/runs/{web.runs()[0].run_id}")
    expect(page.get_by_text(f"{CUB}|train: unit_norm passed").first).to_be_visible()
    page.screenshot(path=tmp_path / "rechecked.png")
