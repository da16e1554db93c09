"""Features that Dagster 1.13 calls a preview or beta and that are used on purpose."""

import contextlib
import warnings
from collections.abc import Iterator

import dagster as dg


@contextlib.contextmanager
def chosen_previews() -> Iterator[None]:
    """Define something that uses them; otherwise every process would warn of each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield
