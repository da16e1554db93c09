"""What an asset does inside a run: the rooms' work, reported in the run's log.

Imported by the resources when a run needs it, because the rooms behind it are slow to import.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from embeddings_assets.datasets.processed import PrepareReport, prepare_dataset
from embeddings_assets.encoders.encoder import Encoder
from embeddings_assets.extraction.report import ExtractionOptions, SplitReport
from embeddings_assets.pipeline import EncoderHolder, process_split
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest

_SECONDS_BETWEEN_LINES = 15.0
_LEAST_SECONDS_BETWEEN_LINES = 2.0  # keeps small splits to a line or two
_PACKAGE = "embeddings_assets"


class ProgressLog:
    """A progress callback that writes to the run's log at every tenth, or after 15 seconds."""

    def __init__(self, log: dg.DagsterLogManager, what: str) -> None:
        self._log = log
        self._what = what
        self._last = time.monotonic()
        self._tenth = 0
        self._first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done == 0 or done == total:
            return
        if self._first is None:
            # The speed is counted from here: until the first images are done, weights are loaded.
            self._first = now, done
            self._last = now
            return
        tenth = 10 * done // total
        quiet = now - self._last
        if quiet < _SECONDS_BETWEEN_LINES and (tenth == self._tenth or quiet < _LEAST_SECONDS_BETWEEN_LINES):
            return
        began, images = self._first
        rate = (done - images) / (now - began)
        left = f", about {_duration((total - done) / rate)} left" if rate else ""
        self._log.info(
            f"{self._what}: {done:,} of {total:,} images ({done / total:.0%}), {rate:.1f} images/s{left}"
        )
        self._last, self._tenth = now, tenth


def prepare_split(
    dataset: str, split: str, paths: DataPaths, log: dg.DagsterLogManager, **options: Any
) -> PrepareReport:
    """Write the manifest of one split; `options` are those of `prepare_dataset`."""
    what = f"{dataset}/{split}"
    with package_log(log):
        progress = ProgressLog(log, what)
        report = prepare_dataset(dataset, paths, splits=[split], progress=progress, **options)[0]
    log.info(
        f"{what}: {report.rows:,} images in {report.classes} classes, {_ledger(report.ledger)}; "
        f"{'written' if report.changed else 'unchanged'}, {_duration(report.seconds)}"
    )
    return report


def embed_split(
    holder: EncoderHolder,
    dataset: str,
    split: str,
    paths: DataPaths,
    options: ExtractionOptions,
    log: dg.DagsterLogManager,
) -> SplitReport:
    """Embed one split whose manifest stands.

    Raises:
        StoreError: there is no manifest; in a graph it is another asset's work to make it.
        EmbeddingsError: as `extract_split`.
    """
    open_manifest(paths, dataset, split)
    what = f"{holder.plan.spec.name} {dataset}/{split}"
    with package_log(log):
        report = process_split(
            _Announced(holder, log), dataset, split, paths, options=options, progress=ProgressLog(log, what)
        )
    log.info(f"{what}: {_outcome(report)}")
    return report


class _Announced(EncoderHolder):
    """A holder that says in the log what is loaded, and where it will run."""

    def __init__(self, held: EncoderHolder, log: dg.DagsterLogManager) -> None:
        super().__init__(held.plan)
        self._held = held
        self._log = log

    def device(self) -> str:
        device = self._held.device()
        if device == "cpu" and self.plan.device == "auto":
            self._log.info(f"{self.plan.spec.name} runs on the CPU: no GPU is visible to torch")
        else:
            self._log.info(f"{self.plan.spec.name} runs on {device}")
        return device

    def load(self) -> Encoder:
        return self._held.load()


@contextlib.contextmanager
def package_log(log: dg.DagsterLogManager) -> Iterator[None]:
    """Everything the package logs meanwhile goes to the run's log as well."""
    package = logging.getLogger(_PACKAGE)
    handler = _ToRunLog(log)
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.setLevel(level)
        package.removeHandler(handler)


class _ToRunLog(logging.Handler):
    def __init__(self, log: dg.DagsterLogManager) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.log(record.levelno, record.getMessage())


def _outcome(report: SplitReport) -> str:
    if report.status == "unchanged":
        return f"unchanged, {report.rows:,} rows; nothing was decoded or loaded"
    shares = sorted(report.stage_shares.items(), key=lambda item: -item[1])
    stages = ", ".join(f"{stage} {share:.0%}" for stage, share in shares)
    origins = f"{report.computed:,} computed, {report.reused:,} reused, {report.resumed:,} resumed"
    return (
        f"{report.rows:,} rows in {_duration(report.seconds)} ({report.images_per_second:.1f} images/s; "
        f"{stages}); {origins}; {_ledger(report.ledger)}"
    )


def _ledger(ledger: Mapping[str, int]) -> str:
    if not ledger:
        return "no image refused"
    return "refused " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(ledger.items()))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
