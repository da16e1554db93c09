"""What a weights root holds, model by model, and what is wrong with it. No torch, no network."""

from dataclasses import dataclass
from pathlib import Path

from embeddings_assets.catalog import MODELS, ModelSpec
from embeddings_assets.encoders.weights.find import find_checkpoint, find_weights, random_source
from embeddings_assets.encoders.weights.lock import LOCK_NAME, FetchedEntry, RandomEntry, read_lock
from embeddings_assets.errors import WeightsError


@dataclass(frozen=True)
class WeightsRow:
    """One model in a weights root.

    `state`: "ready" (a file), "random" (asked for by the lock), "missing", or "invalid" (see `problem`).
    `path`, `size` (bytes) and `sha256` are None where there is no readable checkpoint.
    """

    model: str
    state: str
    path: Path | None
    size: int | None
    sha256: str | None
    trained: bool | None
    licence: str
    problem: str | None = None


def list_weights(root: Path) -> list[WeightsRow]:
    """One row per model of the catalog, in its order. Reads every checkpoint once, to hash it."""
    return [_row(root, spec) for spec in MODELS]


def verify_weights(root: Path) -> list[str]:
    """What is wrong with the files and the lock of a root, one text per problem; empty if nothing is.

    A model without weights is no problem, unless the lock records a file for it.
    """
    try:
        entries = read_lock(root)
    except WeightsError as error:
        return [str(error)]
    problems = []
    for row in list_weights(root):
        entry = entries.get(row.model)
        recorded = entry.file if isinstance(entry, FetchedEntry) else None
        if row.problem is not None:
            problems.append(row.problem)
        elif recorded is not None and (row.path is None or row.path.name != recorded):
            problems.append(
                f"{root / row.model / recorded}: recorded in {LOCK_NAME}, but the model uses "
                f'{row.path or "no file"}.\n  To mend: embeddings-assets weights fetch "{row.model}"'
            )
    return problems


def _row(root: Path, spec: ModelSpec) -> WeightsRow:
    try:
        checkpoint = find_checkpoint(spec, root / spec.name)
        entry = read_lock(root).get(spec.name)
        if checkpoint is not None:
            source = find_weights(spec.name, checkpoint)
        elif isinstance(entry, RandomEntry):
            source = random_source(spec.name, entry.seed)
        else:
            return WeightsRow(spec.name, "missing", None, None, None, None, spec.licence)
    except WeightsError as error:
        return WeightsRow(spec.name, "invalid", None, None, None, None, spec.licence, str(error))
    size = source.path.stat().st_size if source.path else None
    state = "ready" if source.kind == "file" else "random"
    return WeightsRow(spec.name, state, source.path, size, source.sha256, source.trained, spec.licence)
