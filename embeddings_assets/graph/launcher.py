"""The run launcher of `dagster.yaml`: Dagster's own, and a look whether a run's process still lives.

Without it a run that was under way when the machine, `dagster dev`, the code server or `make demo` died would
count as running for ever, and hold the GPU. For runs on the daemon's own machine; of others nothing is said.
"""

import os
import re
import time
from pathlib import Path

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus

# Of a run that was launched, and of one that is executed in the process that asked for it, as the demo's are.
_STARTED = re.compile(r"(?:Started process for run|Executing steps in process) \(pid: (\d+)\)")
_LOCAL_HOSTS = ("localhost", "127.0.0.1")


class WatchedRunLauncher(dg.DefaultRunLauncher):
    """Launches runs as processes of the code server, and tells when one has gone."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """`FAILED` if the process that the run's log names has ended, or the machine started anew since."""
        if not _is_local(run):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        events = self._instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        for event in reversed(events):
            if found := _STARTED.search(event.user_message or event.message):
                if event.timestamp < _booted() or not _lives(int(found.group(1))):
                    return CheckRunHealthResult(WorkerStatus.FAILED, "The process of the run has ended.")
                break
        return CheckRunHealthResult(WorkerStatus.RUNNING)


def _is_local(run: dg.DagsterRun) -> bool:
    origin = run.remote_job_origin
    host = getattr(origin.repository_origin.code_location_origin, "host", None) if origin else None
    return host is None or host in _LOCAL_HOSTS


def _booted() -> float:
    """When this machine was started, in seconds since the epoch; 0 where that cannot be known."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return 0.0 if clock is None else time.time() - time.clock_gettime(clock)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    status = Path(f"/proc/{pid}/stat")
    # A process that has ended and that nobody has asked about yet.
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")
