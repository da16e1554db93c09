"""The assets: the manifests of the datasets, and one asset of embeddings per model of the catalog.

An asset turns its partition key into catalog names, calls a resource, and describes what came of it. The
work itself is done in the other rooms.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from embeddings_assets.catalog import ModelSpec
from embeddings_assets.encoders.dtypes import FAST_ARITHMETIC
from embeddings_assets.encoders.projection import PROJECTION_NAME, PROJECTION_SHA256
from embeddings_assets.encoders.weights.find import stated_weights
from embeddings_assets.errors import StoreError
from embeddings_assets.graph.automation import nightly_manifest_condition
from embeddings_assets.graph.failures import shown_as_failures
from embeddings_assets.graph.history import latest_materialization
from embeddings_assets.graph.keys import PROCESSED, RAW, embeddings_key
from embeddings_assets.graph.metadata import embedding_metadata, looks_of, manifest_metadata
from embeddings_assets.graph.partitions import dataset_and_split, dataset_splits
from embeddings_assets.graph.raw import OWNERS, observe_before_reading
from embeddings_assets.graph.resources import DataResource, GpuResource
from embeddings_assets.graph.tables import embedding_table, manifest_table
from embeddings_assets.settings import DataPaths, Settings
from embeddings_assets.store.footer import digest
from embeddings_assets.store.schema import MANIFEST_RULES, SCHEMA_VERSION

if TYPE_CHECKING:
    from embeddings_assets.store.manifest import Manifest

GPU_POOL = "gpu"


@dg.asset(
    key=PROCESSED,
    deps=[RAW],
    partitions_def=dataset_splits,
    group_name="datasets",
    kinds={"dataset", "parquet"},
    owners=OWNERS,
    description="One manifest per dataset and split: every usable image with its label, digest and size.",
    metadata={"dagster/column_schema": manifest_table()},
    code_version=f"manifest-schema{SCHEMA_VERSION}-rules{MANIFEST_RULES}",
    automation_condition=nightly_manifest_condition(),
)
def processed_images(context: dg.AssetExecutionContext, data: DataResource) -> dg.MaterializeResult:
    from embeddings_assets.quality.duplicates import find_duplicates
    from embeddings_assets.store.manifest import open_manifest

    with shown_as_failures():
        dataset, split = dataset_and_split(context.partition_key)
        made_of = observe_before_reading(context, data, dataset)
        report = data.prepare(dataset, split, context.log)
        manifest = open_manifest(data.paths, dataset, split)
        images = _image_folder(data.paths, manifest)
        unreadable: dict[Path, StoreError] = {}
        duplicates = find_duplicates(data.paths, [dataset], unreadable=unreadable)
        for error in unreadable.values():
            # Another split's, which its own run mends.
            context.log.warning(f"not compared for duplicates: {error.problem}")
        return dg.MaterializeResult(
            metadata=manifest_metadata(report, manifest, images, duplicates),
            data_version=dg.DataVersion(report.fingerprint),
            tags=made_of,
        )


def embeddings_asset(
    model: ModelSpec, settings: Settings, automation_condition: dg.AutomationCondition | None = None
) -> dg.AssetsDefinition:
    """The asset `embeddings/<model>`; its width is fixed when it is built, as its schema is."""
    width = settings.width
    stored = model.stored_width(width)

    @dg.asset(
        key=embeddings_key(model),
        deps=[PROCESSED],
        partitions_def=dataset_splits,
        group_name="embeddings",
        kinds={"pytorch", "parquet", *(["huggingface"] if model.hub_repo else [])},
        owners=OWNERS,
        tags={"encoder": model.encoder, "width": str(stored), "licence": _licence_tag(model)},
        description=_description(model, stored),
        metadata={
            "dagster/column_schema": embedding_table(stored),
            "architecture": model.architecture,
            "checkpoint": model.checkpoint,
            "licence": model.licence,
            "homepage": dg.MetadataValue.url(model.homepage),
            "paper": dg.MetadataValue.url(model.citation),
        },
        pool=GPU_POOL,
        code_version=code_version(model, settings),
        automation_condition=automation_condition,
    )
    def embeddings(
        context: dg.AssetExecutionContext, data: DataResource, gpu: GpuResource
    ) -> dg.MaterializeResult:
        from embeddings_assets.store.manifest import open_manifest

        with shown_as_failures():
            dataset, split = dataset_and_split(context.partition_key)
            report = gpu.embed(model.name, width, dataset, split, data.paths, context.log)
            folder = data.paths.embeddings_split(model.name, dataset, split)
            manifest = open_manifest(data.paths, dataset, split)
            looks = looks_of(folder, manifest, _metadata_of_the_same(context, report.sha256))
            return dg.MaterializeResult(
                metadata=embedding_metadata(report, folder, looks),
                data_version=dg.DataVersion(report.sha256),
            )

    return embeddings


def _metadata_of_the_same(context: dg.AssetExecutionContext, sha256: str) -> Mapping[str, dg.MetadataValue]:
    """Metadata of this partition's latest materialization if it was of the same files; otherwise none."""
    record = latest_materialization(context.instance, context.asset_key, context.partition_key)
    metadata = record.asset_materialization.metadata if record and record.asset_materialization else {}
    return metadata if "sha256" in metadata and metadata["sha256"].value == sha256 else {}


def code_version(model: ModelSpec, settings: Settings) -> str:
    """Names everything that decides a model's vectors, as it is configured; a run can be given others."""
    recipe = importlib.import_module(f"embeddings_assets.encoders.families.{model.encoder}").RECIPE
    stored = model.stored_width(settings.width)
    identity = {
        "checkpoint": model.checkpoint,
        "weights": stated_weights(model.name, settings.weights),
        "recipe": recipe.as_dict(),
        "precision": settings.precision,
        "width": stored,
        "projection": [PROJECTION_NAME, PROJECTION_SHA256] if stored != model.native_width else None,
        "schema_version": SCHEMA_VERSION,
        **({"fast_arithmetic": FAST_ARITHMETIC} if settings.precision == "fast" else {}),
    }
    return f"{model.encoder}-{stored}-schema{SCHEMA_VERSION}-{digest(identity)[:12]}"


def _description(model: ModelSpec, stored: int) -> str:
    projected = f", projected from {model.native_width}" if stored != model.native_width else ""
    facts = (
        f"{model.description}\n\nUnit vectors of width {stored}{projected}. Checkpoint "
        f"[{model.checkpoint}]({model.homepage}). Licence: {model.licence}."
    )
    if not model.research_only:
        return facts
    return f"{facts}\n\n**Research only: neither these weights nor their vectors may be used commercially.**"


def _licence_tag(model: ModelSpec) -> str:
    # Values of tags are short, and of few characters.
    return "research-only" if model.research_only else re.sub(r"[^A-Za-z0-9_.-]+", "-", model.licence)[:63]


def _image_folder(paths: DataPaths, manifest: "Manifest") -> Path:
    """Where the images of a manifest were found."""
    raw = paths.raw_folder(manifest.dataset)
    if manifest.raw_folder is not None:
        return manifest.raw_folder
    return raw if raw.is_dir() else paths.processed / manifest.dataset
