"""Vision Transformer image embeddings as checked parquet, from Dagster, a command line or Python.

The names below are loaded on first use: importing the package loads neither torch nor Dagster.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embeddings_assets.api import (
        extract_embeddings_batch,
        load_embedding_matrix,
        load_embeddings,
        process_model,
        save_embeddings,
    )

__all__ = [
    "extract_embeddings_batch",
    "load_embedding_matrix",
    "load_embeddings",
    "process_model",
    "save_embeddings",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from embeddings_assets import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
