"""The demonstration: six small drawn datasets, untrained weights, every partition of the graph.

It runs the same job as the web UI, in one process, so that each encoder is loaded once for all partitions;
the runs, materializations and checks are those of the instance, and the UI shows them afterwards.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import dagster as dg

from embeddings_assets.catalog import MODELS, SPLITS
from embeddings_assets.errors import EmbeddingsError, SettingsError, SplitBusyError
from embeddings_assets.graph.build import EVERYTHING, build_definitions
from embeddings_assets.graph.checks import WEIGHTS_TRAINED
from embeddings_assets.graph.demo_data import (
    DEMO_DATASETS,
    refuse_real_data,
    remove_demo_data,
    write_demo_data,
)
from embeddings_assets.graph.interrupts import interruptible
from embeddings_assets.graph.keys import PROCESSED, embeddings_key
from embeddings_assets.graph.partitions import partition_of
from embeddings_assets.graph.resources import GpuResource
from embeddings_assets.pipeline import EncoderCache
from embeddings_assets.settings import Settings

DEMO_TAG = {"embeddings_assets/demo": "true"}

# The terminal shows the demo's own lines; the run's log in the UI has everything.
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_NAMED_IN_ERRORS = 5


@dataclass(frozen=True)
class DemoRow:
    """What became of one asset in one partition.

    Attributes:
        asset: `processed_images` or `embeddings/<model>`.
        status: that of the materialization (`written`, `computed`, `unchanged`), or `failed`.
        passed, warned, failed: checks by outcome.
        error: why it was not materialized, or the checks that did not pass and should have; empty otherwise.
    """

    asset: str
    dataset: str
    split: str
    rows: int
    status: str
    passed: int
    warned: int
    failed: int
    error: str = ""


def run_demo(settings: Settings, *, progress: Callable[[str], None] | None = None) -> list[DemoRow]:
    """Write the demo's data below `settings.data_root` and materialize all partitions in `DAGSTER_HOME`.

    Done a second time, it finds every file as it should be and takes a second per partition.

    Args:
        progress: told what has been done, one line at a time.

    Raises:
        SettingsError: no lasting Dagster instance.
        RawDataError: a folder of real data stands where the demo would write.
        SplitBusyError: another demo is running.
        EmbeddingsError: a partition failed, or a check other than `weights_trained` did not pass.
    """
    tell = progress or (lambda line: None)
    refuse_real_data(settings)
    with _instance() as instance, alone(instance):
        _bury_dead_runs(instance)
        for line in write_demo_data(settings):
            tell(line)
        rows: list[DemoRow] = []
        encoders = EncoderCache()
        gpu = GpuResource.bound_to(settings, kept=encoders)
        job = build_definitions(settings, resource_overrides={"gpu": gpu}).resolve_job_def(EVERYTHING)
        try:
            for dataset in DEMO_DATASETS:
                for split in SPLITS:
                    with interruptible():
                        made = materialize_partition(job, instance, dataset.name, split)
                    rows += made
                    done = ", ".join(f"{row.asset.removeprefix('embeddings/')} {row.status}" for row in made)
                    tell(f"{len(rows)} of {_expected()}: {dataset.name} / {split}: {done}")
        finally:
            encoders.close()
    _raise_what_failed(rows)
    return rows


def remove_demo(settings: Settings) -> None:
    """Delete what the demo made: its data, its random-weights entries, and its runs in `DAGSTER_HOME`.

    Real datasets, weights and embeddings, and everybody else's runs, are left alone.
    """
    with _instance() as instance, alone(instance):
        remove_demo_data(settings)
        for run in instance.get_runs(dg.RunsFilter(tags=DEMO_TAG)):
            instance.delete_run(run.run_id)
        keys = [PROCESSED, *(embeddings_key(model) for model in MODELS)]
        # What is left of an asset without a single materialization: its check results and cached counts.
        instance.wipe_assets([key for key in keys if not instance.get_materialized_partitions(key)])


def _expected() -> int:
    return len(DEMO_DATASETS) * len(SPLITS) * (1 + len(MODELS))


def materialize_partition(
    job: dg.JobDefinition, instance: dg.DagsterInstance, dataset: str, split: str
) -> list[DemoRow]:
    """Run the job over one dataset and split in this process; one row per asset."""
    result = job.execute_in_process(
        partition_key=partition_of(dataset, split),
        instance=instance,
        run_config=_QUIET,
        tags=DEMO_TAG,
        raise_on_error=False,
    )
    return [
        _row(result, key, job.asset_layer.asset_graph.get_check_keys_for_assets({key}), dataset, split)
        for key in (PROCESSED, *(embeddings_key(model) for model in MODELS))
    ]


def _row(
    result: dg.ExecuteInProcessResult,
    key: dg.AssetKey,
    expected: AbstractSet[dg.AssetCheckKey],
    dataset: str,
    split: str,
) -> DemoRow:
    events = result.get_asset_materialization_events()
    made = next((event.materialization for event in events if event.asset_key == key), None)
    checks = [check for check in result.get_asset_check_evaluations() if check.asset_key == key]
    passed = {check.check_name for check in checks if check.passed}
    warned = {
        check.check_name
        for check in checks
        if not check.passed and check.severity == dg.AssetCheckSeverity.WARN
    }
    # A check without a result has not passed.
    failed = {check.name for check in expected} - passed - warned
    intended = {WEIGHTS_TRAINED}
    wrong = sorted((failed | warned) - intended)
    return DemoRow(
        asset=key.to_user_string(),
        dataset=dataset,
        split=split,
        rows=0 if made is None else int(str(made.metadata["rows"].value)),
        status="failed" if made is None else str(made.metadata["status"].value),
        passed=len(passed),
        warned=len(warned),
        failed=len(failed),
        error=_why_not(result, key) if made is None else ", ".join(wrong),
    )


def _why_not(result: dg.ExecuteInProcessResult, key: dg.AssetKey) -> str:
    """The first line of the error that kept an asset from being materialized."""
    for event in result.all_events:
        if event.is_step_failure and event.step_key == key.to_python_identifier():
            return event.step_failure_data.error_display_string.strip().splitlines()[0]
    return "not materialized"


def _raise_what_failed(rows: list[DemoRow]) -> None:
    wrong = [f"{row.asset} {row.dataset}/{row.split}: {row.error}" for row in rows if row.error]
    if wrong:
        raise EmbeddingsError(
            f"{len(wrong)} of {len(rows)} materializations are not in order: "
            f"{'; '.join(wrong[:_NAMED_IN_ERRORS])}",
            remedy="look at the failed runs in the web UI: make dev",
        )


@contextlib.contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    try:
        instance = dg.DagsterInstance.get()
    except dg.DagsterError as error:
        raise SettingsError(
            f"No Dagster instance to keep the runs in: {str(error).strip().splitlines()[0]}",
            remedy="make demo, or: export DAGSTER_HOME=$PWD/.dagster (an existing folder)",
        ) from error
    with instance:
        yield instance


@contextlib.contextmanager
def alone(instance: dg.DagsterInstance) -> Iterator[None]:
    """One demo at a time per instance; the system lets go when the process ends, however it ends."""
    handle = os.open(instance.root_directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise SplitBusyError(f"Another demo is running in {instance.root_directory}.") from error
    try:
        yield
    finally:
        os.close(handle)


def _bury_dead_runs(instance: dg.DagsterInstance) -> None:
    """End the runs of a demo that was killed, and free what they hold; without it the GPU pool stays full."""
    for run in instance.get_runs(dg.RunsFilter(tags=DEMO_TAG, statuses=_UNFINISHED)):
        instance.report_run_failed(run, "The demo that started this run has ended.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
