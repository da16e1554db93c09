"""From vectors to a committed split: footer, the decision to replace, assembly, the swap."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embeddings_assets.errors import BadImagesError, StoreError
from embeddings_assets.extraction.planning import ShardPlan
from embeddings_assets.store.footer import differing_fields, field_of, recipe_fingerprint
from embeddings_assets.store.manifest import BOXES_FINGERPRINT, Manifest
from embeddings_assets.store.schema import (
    BOUNDING_BOX,
    CARRIED_COLUMNS,
    LEDGER_SCHEMA,
    NO_CROP,
    ROWS_PER_GROUP,
    SCHEMA_VERSION,
)
from embeddings_assets.store.staging import swap_into_place
from embeddings_assets.store.writer import SplitWriter

log = logging.getLogger(__name__)


def split_footer(manifest: Manifest, encoder_footer: Mapping[str, Any]) -> dict[str, Any]:
    """The footer of the split that this manifest and this encoder make.

    A crop is a step of preprocessing, so it is part of the recipe.
    """
    cropped = {} if manifest.crop == NO_CROP else {"crop": manifest.crop}
    footer = {
        **encoder_footer,
        "dataset": manifest.dataset,
        "split": manifest.split,
        "schema_version": SCHEMA_VERSION,
        "manifest_fingerprint": manifest.fingerprint,
        "recipe": {**encoder_footer["recipe"], **cropped},
    }
    if manifest.crop == BOUNDING_BOX:
        footer[BOXES_FINGERPRINT] = manifest.boxes_fingerprint()
    footer["recipe_fingerprint"] = recipe_fingerprint(footer)
    return footer


def changed_fields(
    standing: dict[str, Any] | None, footer: dict[str, Any], target: Path, *, replace: bool
) -> list[str]:
    """Recipe fields in which the split that stands differs from the one to be made.

    Raises:
        StoreError: there are such fields, and `replace` is off.
    """
    if standing is None:
        return []
    changed = differing_fields(standing, footer)
    if changed and not replace:
        found = ", ".join(
            f"{name} is {_short(field_of(standing, name))}, asked for {_short(field_of(footer, name))}"
            for name in changed
        )
        raise StoreError(
            f"{target}: holds embeddings of another recipe: {found}.",
            remedy="add --replace to compute it again, or choose another --output-dir",
        )
    if changed:
        log.info("%s: made with another recipe (%s); computing it again", target, ", ".join(changed))
    return changed


def assemble_shards(manifest: Manifest, shards: ShardPlan, footer: Mapping[str, Any], staging: Path) -> Path:
    """The folder of a whole split, part files and ledger, made of the staged shards.

    Raises:
        BadImagesError: not one image could be used.
        StoreError: a shard was damaged since it was staged, or the files cannot be written.
    """
    ledgers: list[pa.Table] = []
    rows = 0
    for index in range(shards.count):
        shard = shards.require(index)
        ledgers.append(shard.ledger)
        rows += len(shard.positions)
    ledger = pa.concat_tables([LEDGER_SCHEMA.empty_table(), *ledgers])
    if rows + ledger.num_rows != manifest.rows:
        raise StoreError(
            f"{manifest.path}: {rows} vectors and {ledger.num_rows} ledger rows for {manifest.rows} images."
        )
    if rows == 0:
        raise BadImagesError(f"{manifest.path}: none of its {manifest.rows} images could be used.")
    assembled = _assembly_folder(staging)
    with SplitWriter(assembled, footer, rows) as writer:
        for index in range(shards.count):
            start, stop = shards.range(index)
            shard = shards.require(index)
            local = pa.array(shard.positions - start)
            # Of the slice nothing is kept: it holds a whole row group.
            writer.append(manifest.slice(start, stop, CARRIED_COLUMNS).take(local), shard.vectors)
        writer.finish(ledger)
    return assembled


def commit_vectors(
    manifest: Manifest, vectors: np.ndarray, footer: Mapping[str, Any], staging: Path, target: Path
) -> None:
    """Commit vectors held in memory, one per manifest row.

    Args:
        vectors: float32 [rows, width], rows of unit norm.

    Raises:
        StoreError: another number of rows or width, or vectors that break the contract.
    """
    if vectors.ndim != 2:
        raise StoreError(f"Vectors of shape {vectors.shape}; expected ({manifest.rows}, {footer['width']}).")
    if len(vectors) != manifest.rows:
        raise StoreError(
            f"{len(vectors)} vectors for {manifest.dataset}/{manifest.split}, whose manifest has "
            f"{manifest.rows} rows; every image needs its own.",
        )
    assembled = _assembly_folder(staging)
    with SplitWriter(assembled, footer, manifest.rows) as writer:
        for start in range(0, manifest.rows, ROWS_PER_GROUP):
            stop = min(start + ROWS_PER_GROUP, manifest.rows)
            writer.append(manifest.slice(start, stop, CARRIED_COLUMNS), vectors[start:stop])
        writer.finish(LEDGER_SCHEMA.empty_table())
    swap_into_place(assembled, target, staging)


def _assembly_folder(staging: Path) -> Path:
    folder = staging / "assembled"
    folder.mkdir()
    return folder


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"
