"""The JSON under the `embeddings_assets` key of every parquet footer, and the hashes made of it.

A footer holds only what decides values: no time, no host. Equal inputs give equal bytes.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from embeddings_assets.errors import StoreError
from embeddings_assets.store.schema import FOOTER_KEY, SCHEMA_VERSION

# What changes values. Everything else of a footer describes; batch size, workers and devices are
# mechanics and appear in no footer at all.
RECIPE_FIELDS = (
    "model",
    "weights_sha256",
    "recipe",
    "projection_sha256",
    "width",
    "normalised",
    "precision",
    "compute_dtype",
    "schema_version",
)
# The same, in the footers that have it: how products in less than float32 are computed.
OPTIONAL_RECIPE_FIELDS = ("fast_arithmetic",)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> str:
    return _ENCODER.encode(value)


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of `value`, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def recipe_fingerprint(footer: Mapping[str, Any]) -> str:
    """Hash of the fields that change values (DESIGN section 3), in hexadecimal."""
    identity = {"schema_version": SCHEMA_VERSION, **footer}
    optional = [name for name in OPTIONAL_RECIPE_FIELDS if name in identity]
    return digest({name: identity[name] for name in (*RECIPE_FIELDS, *optional)})


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Names of the recipe fields in which two footers differ; those inside `recipe` as `recipe.<field>`."""
    # Where the dtype differs, how one of them is computed with says nothing more.
    optional = OPTIONAL_RECIPE_FIELDS if old.get("compute_dtype") == new.get("compute_dtype") else ()
    compared = [name for name in (*RECIPE_FIELDS, *optional) if name != "schema_version"]
    differing = [name for name in compared if old.get(name) != new.get(name)]
    if "recipe" in differing:
        before, after = (footer.get("recipe") or {} for footer in (old, new))
        inside = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        at = differing.index("recipe")
        differing[at : at + 1] = [f"recipe.{key}" for key in inside]
    return differing + (["schema_version"] if old.get("schema_version") != SCHEMA_VERSION else [])


def field_of(footer: Mapping[str, Any], name: str) -> Any:
    """The value of a field as `differing_fields` names it; None where the footer has none."""
    value: Any = footer
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def rows_fingerprint(header: Mapping[str, Any], batches: Iterable[pa.RecordBatch]) -> str:
    """sha256 over a header and every value of every row, independent of how a file is laid out."""
    running = hashlib.sha256(canonical_json(header).encode())
    for batch in batches:
        columns = [batch.column(index).to_pylist() for index in range(batch.num_columns)]
        for row in zip(*columns, strict=True):
            running.update(canonical_json(row).encode())
            running.update(b"\n")
    return running.hexdigest()


def parse_footer(metadata: Mapping[bytes, bytes] | None, path: object) -> dict[str, Any]:
    """The footer in a file's key-value metadata.

    Raises:
        StoreError: the file carries no footer of ours, or one that is not a JSON object.
    """
    raw = (metadata or {}).get(FOOTER_KEY)
    if raw is None:
        raise StoreError(f"{path}: no {FOOTER_KEY.decode()!r} key in the parquet footer; not a file of ours.")
    try:
        footer = json.loads(raw)
    except ValueError as error:
        raise StoreError(f"{path}: the footer is not JSON ({error}).") from error
    if not isinstance(footer, dict):
        raise StoreError(f"{path}: the footer is a JSON {type(footer).__name__}, expected an object.")
    return footer
