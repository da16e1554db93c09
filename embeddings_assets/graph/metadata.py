"""What a materialization tells about itself: numbers that plot, the ledger, a picture."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from embeddings_assets.graph.tables import embedding_table, ledger_counts, manifest_table

if TYPE_CHECKING:
    from embeddings_assets.datasets.processed import PrepareReport
    from embeddings_assets.extraction.report import SplitReport
    from embeddings_assets.quality.maps import VectorMap

Metadata = dict[str, Any]

_TRAINED = {True: "yes", False: "no: random weights", None: "unknown: not a known published digest"}


def manifest_metadata(report: "PrepareReport", manifest: Path, raw_folder: Path) -> Metadata:
    """Metadata of one prepared split.

    Args:
        manifest: the manifest file; raw_folder: where its images were found.
    """
    return {
        "status": "written" if report.changed else "unchanged",
        "dagster/partition_row_count": report.rows,
        "rows": report.rows,
        "classes": report.classes,
        **_ledger_metadata(report.ledger),
        "listed": report.listed,
        "official": "none published for this split" if report.official is None else report.official,
        "fingerprint": report.fingerprint,
        "seconds": round(report.seconds, 4),
        "path": dg.MetadataValue.path(str(manifest.resolve())),
        "raw_folder": dg.MetadataValue.path(str(raw_folder.resolve())),
        "dagster/column_schema": manifest_table(),
    }


def embedding_metadata(report: "SplitReport", folder: Path, picture: "VectorMap") -> Metadata:
    """Metadata of one embedded split. Speeds and shares are left out where nothing was computed."""
    footer = report.footer
    metadata: Metadata = {
        "status": report.status,
        "map": _picture(picture),
        "dagster/partition_row_count": report.rows,
        "rows": report.rows,
        "bytes": report.bytes,
        "raw_bytes": report.raw_bytes,
        "size_vs_raw": round(report.bytes / report.raw_bytes, 4),
        **_ledger_metadata(report.ledger),
        "computed": report.computed,
        "reused": report.reused,
        "resumed": report.resumed,
        "seconds": round(report.seconds, 4),
    }
    if report.status == "computed":
        metadata |= {
            "images_per_second": round(report.images_per_second, 4),
            **{f"{stage}_share": round(share, 4) for stage, share in report.stage_shares.items()},
            "device": report.device or "none: every vector was at hand",
            "batch_size": report.batch_size,
            "workers": report.workers,
        }
    if report.changed_fields:
        metadata["changed_fields"] = dg.MetadataValue.json(list(report.changed_fields))
    return metadata | {
        "width": report.width,
        "precision": footer["precision"],
        "weights": footer["weights_origin"],
        "weights_sha256": footer["weights_sha256"],
        "weights_trained": _TRAINED[footer["trained"]],
        "recipe_fingerprint": footer["recipe_fingerprint"],
        "manifest_fingerprint": footer["manifest_fingerprint"],
        "sha256": report.sha256,
        "path": dg.MetadataValue.path(str(folder.resolve())),
        "dagster/column_schema": embedding_table(report.width),
    }


def _ledger_metadata(ledger: Mapping[str, int]) -> Metadata:
    counts: Metadata = {"ledger": sum(ledger.values())}
    if ledger:
        counts["ledger_by_reason"] = ledger_counts(ledger)
    return counts


def _picture(picture: "VectorMap") -> dg.MarkdownMetadataValue:
    data = base64.b64encode(picture.png).decode()
    caption = (
        f"{picture.points:,} vectors of {picture.classes} classes on their first two principal axes, "
        f"which hold {picture.explained:.0%} of the variance; one colour per class."
    )
    return dg.MetadataValue.md(f"![{caption}](data:image/png;base64,{data})\n\n{caption}")
