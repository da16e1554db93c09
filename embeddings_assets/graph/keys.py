"""The keys of the assets, which their conditions and checks need as well."""

import dagster as dg

from embeddings_assets.catalog import ModelSpec

RAW = dg.AssetKey("raw_images")
PROCESSED = dg.AssetKey("processed_images")


def embeddings_key(model: ModelSpec) -> dg.AssetKey:
    return dg.AssetKey(["embeddings", model.name])
