"""What an asset does inside a run: the rooms' work, reported in the run's log.

Imported by the resources when a run needs it, because the rooms behind it are slow to import.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import dagster as dg

from embeddings_assets.datasets.options import chosen_options
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.report import PrepareReport
from embeddings_assets.extraction.report import SplitReport
from embeddings_assets.pipeline import EncoderCache, SplitRequest
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
    dataset: str,
    split: str,
    paths: DataPaths,
    log: dg.DagsterLogManager,
    *,
    crop: str | None,
    hold_out_share: float | None,
    hold_out_seed: int | None,
    **options: Any,
) -> PrepareReport:
    """Write the manifest of one split; `options` are further ones of `prepare_dataset`.

    A crop or hold-out that is None is the one that the dataset's manifests record: a run of one partition
    must fit the other two.
    """
    what = f"{dataset}/{split}"
    rule = None
    if hold_out_share is not None or hold_out_seed is not None:
        rule, _ = chosen_options(paths, dataset, share=hold_out_share, seed=hold_out_seed)
    with package_log(log):
        report = prepare_dataset(
            dataset,
            paths,
            splits=[split],
            progress=ProgressLog(log, what),
            hold_out=rule,
            on_unused_hold_out=log.warning,
            crop=crop,
            **options,
        )[0]
    log.info(
        f"{what}: {report.rows:,} images in {report.classes} classes, {_ledger(report.ledger)}; "
        f"{'written' if report.changed else 'unchanged'}, {report.read:,} files read, "
        f"{_duration(report.seconds)}"
    )
    return report


def embed_split(request: SplitRequest, encoders: EncoderCache, log: dg.DagsterLogManager) -> SplitReport:
    """Embed one split whose manifest stands.

    Raises:
        StoreError: there is no manifest; in a graph it is another asset's work to make it.
        EmbeddingsError: as `process_split`.
    """
    open_manifest(request.paths, request.dataset, request.split)
    what = f"{request.model} {request.dataset}/{request.split}"
    with package_log(log):
        report = encoders.embed(request, ProgressLog(log, what))
    log.info(f"{what}: {_outcome(report)}")
    return report


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
    limit = "nothing to embed"
    if report.computed:
        limit = (
            f"limited by {report.bottleneck}, in batches of {report.batch_size} "
            f"with {report.workers} decoding processes"
        )
    origins = f"{report.computed:,} computed, {report.reused:,} reused, {report.resumed:,} resumed"
    fidelity = ""
    if report.fidelity:
        fidelity = (
            f"; cosine to exact {report.fidelity.minimum:.5f} at least, of {report.fidelity.sample} rows"
        )
    return (
        f"{report.rows:,} rows in {_duration(report.seconds)} ({report.images_per_second:.1f} images/s, "
        f"{limit}: {stages}); {origins}; {_ledger(report.ledger)}{fidelity}"
    )


def _ledger(ledger: Mapping[str, int]) -> str:
    if not ledger:
        return "no image refused"
    return "refused " + ", ".join(f"{count:,} {reason}" for reason, count in sorted(ledger.items()))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
