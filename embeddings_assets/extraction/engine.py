"""The engine: manifest and encoder in, one committed split out.

It knows neither which dataset nor which model it runs. Work is cut into shards by row number alone; a
shard is staged when its last image is done, and the split becomes visible in one rename when all are.
"""

import contextlib
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embeddings_assets.errors import BadImagesError, SplitBusyError
from embeddings_assets.extraction.commit import assemble_shards, changed_fields, commit_vectors, split_footer
from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.extraction.devices import fill_on_devices
from embeddings_assets.extraction.filling import StageClock
from embeddings_assets.extraction.job import Job
from embeddings_assets.extraction.memory import peak_bytes, reset_peak
from embeddings_assets.extraction.planning import ShardPlan
from embeddings_assets.extraction.report import ExtractionOptions, Progress, SplitReport
from embeddings_assets.extraction.source import EncoderSource
from embeddings_assets.extraction.standing import has_same_boxes, is_current, recovered, standing_footer
from embeddings_assets.io.files import disk_errors
from embeddings_assets.store.manifest import BOXES_FINGERPRINT, Manifest
from embeddings_assets.store.reading import load_ledger, read_split_footer, split_bytes, split_sha256
from embeddings_assets.store.schema import BOUNDING_BOX
from embeddings_assets.store.staging import REPLACED, locked_staging, swap_into_place
from embeddings_assets.workers.process import default_workers

log = logging.getLogger(__name__)

BeforeCommit = Callable[[Path, int], None]
"""Called with the folder of a finished split that is not visible yet, and the rows that were embedded."""

_MOST_WORKERS = 16
# Of a footer, what alone is no reason to compute again: the versions of libraries, and what the manifest's
# fingerprint holds already.
_NOT_DECISIVE = ("libraries", BOXES_FINGERPRINT)


@disk_errors()
def extract_split(
    manifest: Manifest,
    source: EncoderSource,
    *,
    target: Path,
    staging_root: Path,
    options: ExtractionOptions | None = None,
    progress: Progress | None = None,
    decoders: Decoders | None = None,
    before_commit: BeforeCommit | None = None,
) -> SplitReport:
    """Embed every image of a manifest into `target`, resuming and reusing what it can.

    A run that goes on from what another has staged ends with the bytes of one that was never disturbed. So
    does one that embeds what could not be read before. A vector that is reused after the manifest has changed
    keeps the last bits of the batch it was embedded in; by the size of batches these differ by up to 1e-6.

    The split is that of `manifest`, even if another takes its place during the run; a later run then embeds
    what differs. (Of several devices, one that opens the manifest only after that raises StoreError.)

    Args:
        source: asked for its device and weights only when at least one image must be embedded.
        target: the split's folder; replaced in one rename, or left as it is on any error.
        staging_root: `.staging`, on the same file system as `target`.
        decoders: decoding processes to use, which stay; by default some are started if needed, and ended.
        before_commit: called with the folder of the finished split before it becomes visible, and with how
            many of its rows were embedded by this run or by the one it goes on from, if any were. What it
            raises prevents the commit; what is staged stays.

    Raises:
        StoreError: the split that stands was made with another recipe and `options.replace` is off, or
            the folders cannot be used.
        BadImagesError: more images are unusable than the policy allows.
        SplitBusyError: another process is writing the same split.
        EmbeddingsError: the machine fails (a disk, a device, memory); what is staged stays for the next run.
    """
    started = time.perf_counter()
    options = options or ExtractionOptions()
    footer = split_footer(manifest, source.footer())
    decisive = {name: value for name, value in footer.items() if name not in _NOT_DECISIVE}
    standing = standing_footer(target, replace=options.replace)
    staging = _staging_folder(staging_root, target)
    if standing and is_current(target, standing, decisive) and not recovered(target, manifest):
        _remove_leftovers(staging, staging_root, target)
        _check_policy(load_ledger(target), manifest.rows, options, target)
        return _report(manifest, target, standing, "unchanged", seconds=time.perf_counter() - started)

    clock = StageClock()
    reset_peak()
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked_staging(staging, staging_root, target))
        decoders = decoders or stack.enter_context(Decoders())
        # Again: taking the lock may have brought back a split that a crash had set aside.
        standing = standing_footer(target, replace=options.replace)
        changed = changed_fields(standing, footer, target, replace=options.replace)
        made_by = [footer["recipe_fingerprint"], footer["libraries"]]
        shards = ShardPlan.create(staging, manifest, made_by, options.shard_rows)
        _empty(staging, keep=shards.folder)  # shards of another recipe, manifest or size, and assemblies
        shards.folder.mkdir(exist_ok=True)
        # Under a box for each image, the digest of a file does not tell which part of it was embedded.
        boxed = manifest.crop == BOUNDING_BOX
        can_reuse = bool(standing) and not changed
        if standing and can_reuse and boxed:
            can_reuse = has_same_boxes(target, standing, manifest)
        job = Job(
            manifest=manifest,
            shards=shards,
            width=int(footer["width"]),
            reuse_from=target if can_reuse else None,
            same_images=boxed,
            usable_again=recovered(target, manifest) if can_reuse else frozenset(),
            batch_size=options.batch_size,
            workers=options.workers or default_workers(_MOST_WORKERS),
        )
        most_bad = 0 if options.strict else int(options.max_bad_share * manifest.rows)
        tell = progress or (lambda done, total: None)
        if len(options.devices) > 1:
            filled = fill_on_devices(job, source, options.devices, most_bad, clock, tell)
        else:
            filled = job.filler(source, decoders, most_bad, clock, tell).fill()
        while_filling = peak_bytes()
        with clock.stage("write"):
            assembled = assemble_shards(manifest, shards, footer, staging)
        embedded = filled.computed + filled.resumed
        if before_commit is not None and embedded:
            with clock.stage("compare"):
                before_commit(assembled, embedded)
        with clock.stage("write"):
            swap_into_place(assembled, target, staging)
            _empty(staging)
        filled = replace(filled, peak_bytes=filled.peak_bytes + peak_bytes() - while_filling)
    if manifest.is_superseded:
        log.warning("%s: was written anew during this run; run again for what differs", manifest.path)
    seconds = time.perf_counter() - started
    return _report(
        manifest,
        target,
        read_split_footer(target) or footer,
        "computed",
        changed_fields=tuple(changed),
        seconds=seconds,
        stage_seconds=clock.seconds_of(seconds),
        **asdict(filled),
    )


def _remove_leftovers(staging: Path, staging_root: Path, target: Path) -> None:
    """Delete what a run has left that was killed just after its last rename."""
    if staging.exists():
        with contextlib.suppress(SplitBusyError), locked_staging(staging, staging_root, target):
            _empty(staging)
        return
    for folder in staging.parents:
        if not folder.is_relative_to(staging_root):
            break
        with contextlib.suppress(OSError):  # not there, or not empty
            folder.rmdir()


def _empty(staging: Path, keep: Path | None = None) -> None:
    """Delete what is staged, but for one folder."""
    for entry in staging.iterdir():
        if entry == keep:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@disk_errors()
def store_vectors(
    manifest: Manifest,
    source: EncoderSource,
    vectors: np.ndarray,
    *,
    target: Path,
    staging_root: Path,
    replace: bool = False,
) -> SplitReport:
    """Commit vectors computed elsewhere, float32 [rows, width], one per manifest row in its order.

    Raises:
        StoreError: they break the contract, or a split of another recipe stands and `replace` is off.
        SplitBusyError: another process is writing the same split.
    """
    started = time.perf_counter()
    footer = split_footer(manifest, source.footer())
    staging = _staging_folder(staging_root, target)
    with locked_staging(staging, staging_root, target):
        try:
            standing = standing_footer(target, replace=replace)
            changed = changed_fields(standing, footer, target, replace=replace)
            _empty(staging)
            commit_vectors(manifest, vectors, footer, staging, target)
        finally:
            _empty(staging, keep=staging / REPLACED)
    return _report(
        manifest,
        target,
        read_split_footer(target) or footer,
        "computed",
        changed_fields=tuple(changed),
        seconds=time.perf_counter() - started,
    )


def _staging_folder(staging_root: Path, target: Path) -> Path:
    """`.staging/<model>/<dataset>/<split>`."""
    return staging_root.joinpath(*target.parts[-3:])


def _check_policy(ledger: pa.Table, rows: int, options: ExtractionOptions, target: Path) -> None:
    most = 0 if options.strict else int(options.max_bad_share * rows)
    if ledger.num_rows > most:
        raise BadImagesError(
            f"{target}: {ledger.num_rows} of {rows} images could not be used; {most} are allowed.",
            remedy="replace the files its _ledger.parquet names and run `prepare`, or raise --max-bad-share",
        )


def _report(
    manifest: Manifest, target: Path, footer: dict[str, Any], status: str, **values: Any
) -> SplitReport:
    return SplitReport(
        model=str(footer["model"]),
        dataset=manifest.dataset,
        split=manifest.split,
        status=status,
        rows=int(footer["rows"]),
        width=int(footer["width"]),
        bytes=split_bytes(target),
        sha256=split_sha256(target),
        footer=footer,
        ledger=dict(Counter(load_ledger(target).column("reason").to_pylist())),
        **values,
    )
