"""Columns, types and constants of every parquet file of the project."""

import re

import pyarrow as pa

SCHEMA_VERSION = 1
# Goes up whenever the same raw folder would give other manifests: all of them become stale, and what earlier
# runs have kept is void. No part of a fingerprint: what comes out the same makes no embeddings stale.
MANIFEST_RULES = 2
FOOTER_KEY = b"embeddings_assets"

MANIFEST_NAME = "manifest.parquet"
LEDGER_NAME = "_ledger.parquet"
PART_PATTERN = "part-{:05d}.parquet"
PART_NAME = re.compile(r"part-\d{5,}\.parquet")

UNIT_NORM_TOLERANCE = 1e-5

# Fixed, so that bytes never depend on batch or shard size. 16,384 rows of 768 floats are 50 MB, the
# most that one row group costs a reader; sixteen of them make a part of at most 0.8 GB.
ROWS_PER_GROUP = 16_384
ROWS_PER_PART = 16 * ROWS_PER_GROUP

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_path", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("class_id", pa.string(), nullable=False),
        pa.field("official_split", pa.string(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("mode", pa.string(), nullable=False),
    ]
)

# The part of each image that is used, in pixels from its upper left corner; only in manifests with a crop.
CROP_COLUMNS = ("crop_left", "crop_top", "crop_right", "crop_bottom")
NO_CROP, BANNER, BOUNDING_BOX = "none", "banner", "bounding_box"

LEDGER_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_path", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)

# Columns of an embedding file that are copied from the manifest unchanged.
CARRIED_COLUMNS = ("image_id", "image_path", "label", "class_name", "sha256", "width", "height")


def manifest_schema(crop: str) -> pa.Schema:
    """Schema of a manifest under a crop option; without a crop it is MANIFEST_SCHEMA."""
    if crop == NO_CROP:
        return MANIFEST_SCHEMA
    edges = [pa.field(name, pa.int32(), nullable=False) for name in CROP_COLUMNS]
    return pa.schema([*MANIFEST_SCHEMA, *edges])


def embedding_schema(width: int) -> pa.Schema:
    """Schema of an embedding file whose vectors are `width` wide."""
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("image_path", pa.string(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            pa.field("class_name", pa.string(), nullable=False),
            pa.field("dataset", pa.string(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("sha256", pa.string(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field(
                "embedding",
                pa.list_(pa.field("element", pa.float32(), nullable=False), width),
                nullable=False,
            ),
        ]
    )
