"""Column schemas as Dagster shows them, built from the schemas of the store."""

from collections.abc import Mapping

import dagster as dg
import pyarrow as pa

from embeddings_assets.store.schema import MANIFEST_SCHEMA, embedding_schema

_DESCRIPTIONS = {
    "image_id": "The dataset's own stable id of the image.",
    "image_path": "Path of the image from the data root, with forward slashes.",
    "label": "Class, counted from 0 in the dataset's official order.",
    "class_name": "Class name as the dataset publishes it.",
    "class_id": "Class id as the dataset publishes it.",
    "official_split": "Split in the dataset's own lists; differs where validation is held out.",
    "dataset": "Dataset, as in the catalog.",
    "split": "train, validation or test.",
    "model": "Encoder, as in the catalog.",
    "sha256": "Digest of the image file.",
    "bytes": "Size of the image file.",
    "width": "Width of the image in pixels, as stored in the file.",
    "height": "Height of the image in pixels, as stored in the file.",
    "format": "Image format, found from the content.",
    "mode": "Pillow's mode of the image, such as RGB, L or P.",
    "embedding": "The vector: finite, of L2 norm 1.",
    "reason": "Why the image could not be used.",
    "detail": "What the reader found.",
}


def manifest_table() -> dg.TableSchema:
    """Columns of a manifest."""
    return _table(MANIFEST_SCHEMA)


def embedding_table(width: int) -> dg.TableSchema:
    """Columns of an embedding file whose vectors are `width` wide."""
    return _table(embedding_schema(width))


def ledger_counts(reasons: Mapping[str, int]) -> dg.TableMetadataValue:
    """Images that could not be used, by reason, as a table."""
    schema = dg.TableSchema(
        [
            dg.TableColumn("reason", "string", _DESCRIPTIONS["reason"]),
            dg.TableColumn("images", "int", "Images refused for this reason."),
        ]
    )
    records = [dg.TableRecord({"reason": reason, "images": reasons[reason]}) for reason in sorted(reasons)]
    return dg.MetadataValue.table(records, schema)


def _table(schema: pa.Schema) -> dg.TableSchema:
    return dg.TableSchema(
        [
            dg.TableColumn(
                field.name,
                _type(field.type),
                _DESCRIPTIONS[field.name],
                constraints=dg.TableColumnConstraints(
                    nullable=field.nullable, unique=field.name == "image_id"
                ),
            )
            for field in schema
        ]
    )


def _type(arrow: pa.DataType) -> str:
    if pa.types.is_fixed_size_list(arrow):
        return f"{arrow.value_type}[{arrow.list_size}]".replace("float[", "float32[")
    return str(arrow)
