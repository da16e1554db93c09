"""Settings in, definitions out: the one place where the graph is put together."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from embeddings_assets.catalog import MODELS
from embeddings_assets.graph.assets import embeddings_asset, processed_images
from embeddings_assets.graph.automation import nightly_backfill_condition, nightly_backfill_sensor
from embeddings_assets.graph.checks import embeddings_checks
from embeddings_assets.graph.keys import PROCESSED, embeddings_key
from embeddings_assets.graph.manifest_checks import processed_images_checks
from embeddings_assets.graph.overdue import left_failed_sensor
from embeddings_assets.graph.previews import chosen_previews
from embeddings_assets.graph.raw import raw_images, watch_raw_data
from embeddings_assets.graph.recheck import recheck_job
from embeddings_assets.graph.resources import DataResource, GpuResource
from embeddings_assets.settings import Settings

EVERYTHING = "all_embeddings"


def build_definitions(
    settings: Settings, *, resource_overrides: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """The graph of these settings.

    Args:
        resource_overrides: resources that replace `data` or `gpu`.

    Raises:
        SettingsError: a device that Dagster runs cannot use.
    """
    condition = nightly_backfill_condition()
    keys = [embeddings_key(model) for model in MODELS]
    assets = [
        raw_images,
        processed_images,
        *(embeddings_asset(model, settings, condition) for model in MODELS),
    ]
    with chosen_previews():
        assets = [*dg.with_source_code_references(assets)]
    return dg.Definitions(
        assets=assets,
        asset_checks=[
            processed_images_checks,
            *(embeddings_checks(model, settings.width) for model in MODELS),
        ],
        jobs=[
            dg.define_asset_job(
                EVERYTHING,
                selection=dg.AssetSelection.all(),
                description="Prepare one dataset and split, embed it with every model, and check it all.",
            ),
            recheck_job(settings.width),
        ],
        sensors=[
            watch_raw_data,
            nightly_backfill_sensor(dg.AssetSelection.assets(PROCESSED, *keys)),
            left_failed_sensor([PROCESSED, *keys]),
        ],
        resources={
            "data": DataResource.bound_to(settings),
            "gpu": GpuResource.bound_to(settings),
            **(resource_overrides or {}),
        },
        # One process per run: torch is imported once, and the encoders live as long as the run.
        executor=dg.in_process_executor,
    )
