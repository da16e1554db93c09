"""What a materialization tells about itself: numbers that plot, the ledger, a picture."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from embeddings_assets.graph.tables import embedding_table, ledger_counts, manifest_table

if TYPE_CHECKING:
    from embeddings_assets.datasets.report import PrepareReport
    from embeddings_assets.extraction.report import SplitReport
    from embeddings_assets.quality.duplicates import DuplicateGroup
    from embeddings_assets.quality.maps import VectorMap
    from embeddings_assets.quality.pictures import Picture
    from embeddings_assets.store.manifest import Manifest

Metadata = dict[str, Any]

LOOKS = ("map", "nearest_neighbours", "mean_pairwise_cosine")
_FIDELITY = ("fidelity_min_cosine", "fidelity_mean_cosine", "fidelity_rows")

_TRAINED = {True: "yes", False: "no: random weights", None: "unknown: not a known published digest"}


def manifest_metadata(
    report: "PrepareReport", manifest: "Manifest", raw_folder: Path, duplicates: "Sequence[DuplicateGroup]"
) -> Metadata:
    """Metadata of one prepared split.

    Args:
        raw_folder: where its images were found.
        duplicates: groups of identical images in the dataset.
    """
    from embeddings_assets.quality.pictures import class_histogram, contact_sheet

    mine = [group for group in duplicates if any(member.split == report.split for member in group.members)]
    hold_out = manifest.footer["options"].get("hold_out")
    return {
        "status": "written" if report.changed else "unchanged",
        "images_per_class": _picture(class_histogram(manifest)),
        "contact_sheet": _picture(contact_sheet(manifest)),
        "dagster/partition_row_count": report.rows,
        "rows": report.rows,
        "classes": report.classes,
        **_ledger_metadata(report.ledger),
        "listed": report.listed,
        "official": "none published for this split" if report.official is None else report.official,
        "duplicates_within_split": sum(not group.across_splits for group in mine),
        "duplicates_across_splits": sum(group.across_splits for group in mine),
        "crop": manifest.crop,
        "hold_out": "none: validation is published" if hold_out is None else dg.MetadataValue.json(hold_out),
        "files_read": report.read,
        "fingerprint": report.fingerprint,
        "seconds": round(report.seconds, 4),
        "path": dg.MetadataValue.path(str(manifest.path.resolve())),
        "raw_folder": dg.MetadataValue.path(str(raw_folder.resolve())),
        "dagster/column_schema": manifest_table(),
    }


def embedding_metadata(report: "SplitReport", folder: Path, looks: Metadata) -> Metadata:
    """Metadata of one embedded split. Speeds and shares are left out where nothing was computed.

    Args:
        looks: what `looks_of` gave for these vectors.
    """
    footer = report.footer
    metadata: Metadata = {
        "status": report.status,
        **looks,
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
            "bottleneck": report.bottleneck,
            "peak_memory_mb": round(report.peak_bytes / 1e6),
            "peak_device_memory_mb": round(report.peak_device_bytes / 1e6),
        }
    if report.fidelity:
        metadata |= {
            "fidelity_min_cosine": round(report.fidelity.minimum, 6),
            "fidelity_mean_cosine": round(report.fidelity.mean, 6),
            "fidelity_rows": report.fidelity.sample,
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


def looks_of(folder: Path, manifest: "Manifest", earlier: Mapping[str, Any]) -> Metadata:
    """What the vectors of a split look like: a map, a sheet of nearest neighbours, their mean cosine.

    Where they are those of an earlier materialization, how near they were to `exact` is taken from it too.

    Args:
        earlier: metadata of an earlier materialization of the same vectors, whose pictures are taken; or
            nothing, and they are drawn.
    """
    from embeddings_assets.quality.maps import draw_map, sample_rows
    from embeddings_assets.quality.neighbours import mean_pairwise_cosine, neighbour_sheet

    if all(name in earlier for name in LOOKS):
        return {name: earlier[name] for name in (*LOOKS, *_FIDELITY) if name in earlier}
    vectors, labels = sample_rows(folder)
    return {
        "map": _map_of(draw_map(vectors, labels)),
        "nearest_neighbours": _picture(neighbour_sheet(folder, manifest)),
        "mean_pairwise_cosine": round(mean_pairwise_cosine(vectors), 6),
    }


def _ledger_metadata(ledger: Mapping[str, int]) -> Metadata:
    counts: Metadata = {"ledger": sum(ledger.values())}
    if ledger:
        counts["ledger_by_reason"] = ledger_counts(ledger)
    return counts


def _map_of(picture: "VectorMap") -> dg.MarkdownMetadataValue:
    caption = (
        f"{picture.points:,} vectors of {picture.classes} classes on their first two principal axes, "
        f"which hold {picture.explained:.0%} of the variance; one colour per class."
    )
    return _inline(picture.png, caption)


def _picture(picture: "Picture") -> dg.MarkdownMetadataValue:
    return _inline(picture.png, picture.caption)


def _inline(png: bytes, caption: str) -> dg.MarkdownMetadataValue:
    data = base64.b64encode(png).decode()
    return dg.MetadataValue.md(f"![{caption}](data:image/png;base64,{data})\n\n{caption}")
