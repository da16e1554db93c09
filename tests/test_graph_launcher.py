"""The launcher of dagster.yaml: a run whose process has gone fails, and frees the GPU."""

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster import RunRecord
from dagster._daemon.monitoring.run_monitoring import monitor_started_run

from embeddings_assets.graph import launcher

LOG = logging.getLogger(__name__)
UNUSED: Any = None  # the workspace, which only a run that is resumed needs


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """One with the settings of `make dev`."""
    shutil.copy(Path(__file__).parent.parent / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        yield instance


IN_PROCESS = """
import sys, time
from pathlib import Path
import dagster as dg

@dg.op
def work():
    Path(sys.argv[2]).touch()
    time.sleep(600)

@dg.job(executor_def=dg.in_process_executor)
def demo():
    work()

with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    demo.execute_in_process(instance=instance)
"""


def started(instance: dg.DagsterInstance, pid: int) -> RunRecord:
    """The record of a run that this process is said to make."""
    run = instance.create_run_for_job(dg.GraphDefinition("work").to_job())
    instance.report_engine_event(f"Started process for run (pid: {pid}).", run)
    instance.handle_run_event(run.run_id, _started_event(), update_timestamp=None)
    record = instance.get_run_record_by_id(run.run_id)
    assert record is not None
    return record


def _started_event() -> dg.DagsterEvent:
    return dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, "work")


def status_after_a_look(instance: dg.DagsterInstance, record: RunRecord) -> str:
    monitor_started_run(instance, UNUSED, record, LOG)
    run = instance.get_run_by_id(record.dagster_run.run_id)
    assert run is not None
    return run.status.value


def test_a_run_lives_as_long_as_its_process(instance: dg.DagsterInstance) -> None:
    assert isinstance(instance.run_launcher, launcher.WatchedRunLauncher)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        record = started(instance, process.pid)
        assert status_after_a_look(instance, record) == "STARTED"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert status_after_a_look(instance, record) == "FAILURE", "it has ended, and nobody has asked yet"
    assert status_after_a_look(instance, started(instance, process.pid)) == "FAILURE"


def test_a_run_in_the_process_of_a_killed_demo_ends_too(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    command = [sys.executable, "-c", IN_PROCESS, instance.root_directory, str(begun)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as demo:
        try:
            deadline = time.monotonic() + 120
            while not begun.exists():
                assert demo.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            (record,) = instance.get_run_records()
            assert status_after_a_look(instance, record) == "STARTED"
        finally:
            demo.kill()
    assert status_after_a_look(instance, record) == "FAILURE"


def test_no_process_outlives_its_machine(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may have its number after a restart."""
    record = started(instance, os.getpid())
    assert status_after_a_look(instance, record) == "STARTED"
    monkeypatch.setattr(launcher, "_booted", lambda: float("inf"))
    assert status_after_a_look(instance, record) == "FAILURE"
