"""Failures in the web UI: one in red, with its message, made green; a run that is killed in a backfill."""

import os
import re
import signal
from pathlib import Path

import dagster as dg
import pytest
from graph_support import CLIP, PROCESSED
from ui_server import DOGS, Run, Web, sync_api, wait

from embeddings_assets.store.reading import load_table

pytest_plugins = ("graph_fixtures", "ui_server")
pytestmark = pytest.mark.browser

_REEXECUTE = """mutation($id: String!) { launchRunReexecution(
    reexecutionParams: {parentRunId: $id, strategy: %s}) {
    ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""


def finished(web: Web, partition: str, *, after: str | None = None) -> Run:
    """The latest run of a partition when it has ended; another than `after`."""

    def done() -> bool:
        run = web.run_of(partition)
        return run is not None and run.run_id != after and run.status in ("SUCCESS", "FAILURE", "CANCELED")

    wait(done)
    run = web.run_of(partition)
    assert run is not None
    return run


def test_a_failed_partition_is_red_with_its_message_and_is_made_green(
    web: Web, page: "sync_api.Page", tmp_path: Path
) -> None:
    expect = sync_api.expect
    partition = f"{DOGS}|test"
    image = next((web.settings.paths.raw_folder(DOGS) / "Images").rglob("*.jpg"))
    aside = image.rename(tmp_path / image.name)
    web.backfill([PROCESSED], [partition])
    red = finished(web, partition)
    assert red.status == "FAILURE"

    page.goto(f"{web.url}/runs/{red.run_id}")
    expect(page.get_by_text("Failure", exact=True).first).to_be_visible()
    expect(page.get_by_text(re.compile("1 of 120 listed images are missing")).first).to_be_visible()
    expect(page.get_by_text("--allow-missing").first).to_be_visible()
    page.screenshot(path=tmp_path / "red.png")
    page.goto(f"{web.url}/assets/processed_images?view=partitions")
    expect(page.get_by_text("Failed (1)")).to_be_visible()
    page.screenshot(path=tmp_path / "red_matrix.png")

    aside.rename(image)
    page.goto(f"{web.url}/runs/{red.run_id}")
    page.get_by_role("button", name=re.compile("Re-execute")).first.click()
    page.wait_for_timeout(3000)
    confirm = page.get_by_role("button", name="Confirm")
    if confirm.is_visible():  # where the backfill that it belongs to has ended
        confirm.click()
    green = finished(web, partition, after=red.run_id)
    assert (green.status, green.parent) == ("SUCCESS", red.run_id)
    page.goto(f"{web.url}/assets/processed_images?view=partitions")
    expect(page.get_by_text("Failed (0)")).to_be_visible()


def origins_of(web: Web, key: dg.AssetKey, partition: str) -> dict[str, int]:
    """Rows of the latest materialization, in all and by origin."""
    with dg.DagsterInstance.from_config(str(web.home)) as instance:
        latest = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
        made = instance.fetch_materializations(latest, limit=1).records[0].asset_materialization
    assert made is not None
    return {name: int(str(made.metadata[name].value)) for name in ("rows", "resumed", "computed")}


def process_of(run: Run) -> int:
    found = [re.search(r"Started process for run \(pid: (\d+)\)", message) for message in run.messages]
    return next(int(match.group(1)) for match in found if match)


def test_a_killed_run_fails_alone_frees_the_gpu_and_goes_on_at_its_shard(web: Web) -> None:
    killed, other = f"{DOGS}|train", f"{DOGS}|validation"
    # Small shards, so that some are staged when it is killed.
    config = {"resources": {"gpu": {"config": {"shard_rows": 4, "batch_size": 4}}}}
    backfill = web.backfill([PROCESSED, CLIP], [killed, other], config)
    staging = web.settings.paths.staging / "CLIP" / DOGS / "train"
    wait(lambda: len(list(staging.rglob("shard-*"))) >= 3)
    run = web.run_of(killed)
    assert run is not None
    os.kill(process_of(run), signal.SIGKILL)

    assert finished(web, killed).status == "FAILURE"
    assert finished(web, other).status == "SUCCESS", "the pool is free, and the rest goes on"
    wait(lambda: web.backfill_status(backfill) not in ("REQUESTED", "FAILING"))
    assert web.backfill_status(backfill) in ("COMPLETED_FAILED", "FAILED")

    web.ask(_REEXECUTE % "FROM_FAILURE", id=run.run_id)
    again = finished(web, killed, after=run.run_id)
    assert again.status == "SUCCESS"
    counts = origins_of(web, CLIP, killed)
    assert counts["resumed"] >= 3 * 4 - 4
    assert counts["resumed"] + counts["computed"] == counts["rows"]
    assert load_table(web.settings.paths.embeddings_split("CLIP", DOGS, "train")).num_rows == counts["rows"]
    assert not list(staging.rglob("shard-*"))


def test_a_terminated_run_goes_on_where_it_stopped(web: Web, page: "sync_api.Page", tmp_path: Path) -> None:
    expect = sync_api.expect
    partition, siglip = f"{DOGS}|test", dg.AssetKey(["embeddings", "SigLIPv2"])
    page.goto(f"{web.url}/assets/processed_images?view=partitions")
    page.get_by_role("button", name="Materialize…").click()
    dialog = page.get_by_role("dialog")
    for name in (DOGS, "test"):
        dialog.get_by_text("Select a partition or create one").first.click()
        page.get_by_role("menuitem", name=name).first.click()
        page.keyboard.press("Escape")
    page.screenshot(path=tmp_path / "one_partition.png")
    latest = web.run_of(partition)
    dialog.get_by_role("button", name=re.compile("Launch")).last.click()
    made = finished(web, partition, after=latest.run_id if latest else None)
    assert made.status == "SUCCESS"

    config = {"resources": {"gpu": {"config": {"shard_rows": 4, "batch_size": 4}}}}
    web.backfill([siglip], [partition], config)
    staging = web.settings.paths.staging / "SigLIPv2" / DOGS / "test"
    wait(lambda: (run := web.run_of(partition)) is not None and run.status == "STARTED")
    running = web.run_of(partition)
    assert running is not None
    page.goto(f"{web.url}/runs/{running.run_id}")
    page.get_by_role("button", name="Terminate").first.click()
    wait(lambda: len(list(staging.rglob("shard-*"))) >= 2)
    page.screenshot(path=tmp_path / "terminate.png")
    page.get_by_role("dialog").get_by_role("button", name=re.compile("Terminate")).last.click()
    assert finished(web, partition, after=made.run_id).status == "CANCELED"
    expect(page.get_by_text("Canceled", exact=True).first).to_be_visible()
    assert not web.settings.paths.embeddings_split("SigLIPv2", DOGS, "test").exists()

    web.ask(_REEXECUTE % "ALL_STEPS", id=running.run_id)
    again = finished(web, partition, after=running.run_id)
    assert again.status == "SUCCESS"
    counts = origins_of(web, siglip, partition)
    assert counts["resumed"] >= 2 * 4
    assert counts["resumed"] + counts["computed"] == counts["rows"] == 24
