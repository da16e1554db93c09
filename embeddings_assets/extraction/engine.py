"""The engine: manifest and encoder in, one committed split out.

It knows neither which dataset nor which model it runs. Work is cut into shards by row number alone; a
shard is staged when its last image is done, and the split becomes visible in one rename when all are.
"""

import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embeddings_assets.errors import BadImagesError
from embeddings_assets.extraction.commit import changed_fields, commit_shards, commit_vectors, split_footer
from embeddings_assets.extraction.filling import ShardFiller, StageClock
from embeddings_assets.extraction.planning import ShardPlan, StandingVectors
from embeddings_assets.extraction.report import ExtractionOptions, Progress, SplitReport
from embeddings_assets.extraction.source import EncoderSource
from embeddings_assets.extraction.standing import is_current, standing_footer
from embeddings_assets.store.files import disk_errors
from embeddings_assets.store.manifest import Manifest
from embeddings_assets.store.reading import load_ledger, read_split_footer, split_bytes, split_sha256
from embeddings_assets.store.staging import (
    locked_staging,
)

_MOST_WORKERS = 8


@disk_errors()
def extract_split(
    manifest: Manifest,
    source: EncoderSource,
    *,
    target: Path,
    staging_root: Path,
    options: ExtractionOptions | None = None,
    progress: Progress | None = None,
) -> SplitReport:
    """Embed every image of a manifest into `target`, resuming and reusing what it can.

    Args:
        source: asked for its device and weights only when at least one image must be embedded.
        target: the split's folder; replaced in one rename, or left as it is on any error.
        staging_root: `.staging`, on the same file system as `target`.

    Raises:
        StoreError: the split that stands was made with another recipe and `options.replace` is off, or
            the folders cannot be used.
        BadImagesError: more images are unusable than the policy allows.
        SplitBusyError: another process is writing the same split.
    """
    started = time.perf_counter()
    options = options or ExtractionOptions()
    footer = split_footer(manifest, source.footer())
    # Versions of libraries are recorded, but a new one alone is no reason to compute again.
    decisive = {name: value for name, value in footer.items() if name != "libraries"}
    standing = standing_footer(target, replace=options.replace)
    if standing is not None and is_current(target, standing, decisive):
        _check_policy(load_ledger(target), manifest.rows, options, target)
        return _report(manifest, target, standing, "unchanged", seconds=time.perf_counter() - started)

    clock = StageClock()
    staging = _staging_folder(staging_root, target)
    with locked_staging(staging, staging_root, target):
        # Again: taking the lock may have brought back a split that a crash had set aside.
        standing = standing_footer(target, replace=options.replace)
        changed = changed_fields(standing, footer, target, replace=options.replace)
        shards = ShardPlan.create(staging, manifest, footer["recipe_fingerprint"], options.shard_rows)
        _empty(staging, keep=shards.folder)
        shards.folder.mkdir(exist_ok=True)
        reusable = StandingVectors(target) if standing is not None and not changed else None
        filler = ShardFiller(
            manifest=manifest,
            shards=shards,
            width=int(footer["width"]),
            source=source,
            reusable=reusable,
            batch_size=options.batch_size,
            workers=options.workers or min(_MOST_WORKERS, os.cpu_count() or 1),
            most_bad=0 if options.strict else int(options.max_bad_share * manifest.rows),
            clock=clock,
            progress=progress or (lambda done, total: None),
        )
        filler.fill()
        with clock.stage("write"):
            commit_shards(manifest, shards, footer, staging, target)
            _empty(staging)
    seconds = time.perf_counter() - started
    return _report(
        manifest,
        target,
        read_split_footer(target) or footer,
        "computed",
        computed=filler.computed,
        reused=filler.reused,
        resumed=filler.resumed,
        changed_fields=tuple(changed),
        seconds=seconds,
        stage_seconds=clock.seconds_of(seconds),
        device=filler.device,
        batch_size=filler.batch_size or 0,
        workers=filler.workers,
    )


def _empty(staging: Path, keep: Path | None = None) -> None:
    """Delete what is staged, but for one plan: shards of another recipe, manifest or size, and assemblies."""
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
            _empty(staging)
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
