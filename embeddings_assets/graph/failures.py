"""Errors of the package as failures that Dagster shows: the problem, and the remedy beside it."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from embeddings_assets.errors import EmbeddingsError


@contextlib.contextmanager
def shown_as_failures() -> Iterator[None]:
    """An `EmbeddingsError` inside becomes a `dagster.Failure`; a retry would only meet it again.

    Anything else passes through and keeps its traceback.
    """
    try:
        yield
    except EmbeddingsError as error:
        remedy = {"remedy": dg.MetadataValue.text(error.remedy)} if error.remedy else {}
        raise dg.Failure(error.problem, metadata=remedy, allow_retries=False) from error
