"""`weights.lock` in a weights root: which weights each model has, from where, and their sha256.

JSON: {"schema": 1, "models": {
"CLIP": {"source": "https://...", "revision": null, "file": "ViT-B-32.pt", "sha256": "..."},
"DINOv2": {"source": "hub:facebook/dinov2-base", ...}, "Franca": {"source": "random", "seed": 0}}}.
Entries with a file are written by `weights fetch`; the word `random` asks for seeded untrained weights.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from embeddings_assets.catalog import MODELS, get_model
from embeddings_assets.errors import UnknownNameError, WeightsError
from embeddings_assets.io.locks import exclusive
from embeddings_assets.settings import RANDOM_WEIGHTS

LOCK_NAME = "weights.lock"
LOCK_SCHEMA = 1


@dataclass(frozen=True)
class RandomEntry:
    """Seeded untrained weights stand in for this model."""

    seed: int = 0


@dataclass(frozen=True)
class FetchedEntry:
    """One fetched checkpoint: `source` is a URL or `hub:<repository>`, `file` its name in the folder."""

    source: str
    revision: str | None
    file: str
    sha256: str


Entry = RandomEntry | FetchedEntry


def read_lock(root: Path) -> dict[str, Entry]:
    """The entries of `<root>/weights.lock` by model name; empty if there is no such file.

    Raises:
        WeightsError: the file is not a lock of this schema.
    """
    path = root / LOCK_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        document = json.loads(text)
        if document["schema"] != LOCK_SCHEMA:
            raise ValueError(f"schema {document['schema']!r}, expected {LOCK_SCHEMA}")
        return {get_model(name).name: _parse(entry) for name, entry in document["models"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, UnknownNameError) as error:
        raise WeightsError(
            f"{path}: not a weights lock ({type(error).__name__}: {error}).",
            remedy=f'delete {LOCK_NAME}, then: embeddings-assets weights fetch "<model>"',
        ) from error


def record_fetched(root: Path, model: str, entry: FetchedEntry) -> None:
    """Add or replace one model's entry; the others stay."""
    _update(root, lambda entries: entries.__setitem__(model, entry))


def write_random_lock(root: Path) -> None:
    """Ask for random weights (seed 0) by name, for every model that has no entry yet."""

    def add(entries: dict[str, Entry]) -> None:
        for model in MODELS:
            entries.setdefault(model.name, RandomEntry())

    _update(root, add)


def remove_random_lock(root: Path) -> None:
    """Withdraw every entry that asks for random weights; an empty lock is deleted."""

    def withdraw(entries: dict[str, Entry]) -> None:
        for name in [name for name, entry in entries.items() if isinstance(entry, RandomEntry)]:
            del entries[name]

    if (root / LOCK_NAME).exists():
        _update(root, withdraw)


def _parse(entry: dict[str, object]) -> Entry:
    if entry["source"] == RANDOM_WEIGHTS:
        seed = entry.get("seed", 0)
        if not isinstance(seed, int):
            raise ValueError(f"seed {seed!r}")
        return RandomEntry(seed)
    source, revision, file, sha256 = (entry.get(key) for key in ("source", "revision", "file", "sha256"))
    if not (isinstance(source, str) and isinstance(file, str) and isinstance(sha256, str)):
        raise ValueError("an entry needs source, file and sha256")
    return FetchedEntry(source, None if revision is None else str(revision), file, sha256.lower())


def _as_json(entry: Entry) -> dict[str, object]:
    return {"source": RANDOM_WEIGHTS, **asdict(entry)} if isinstance(entry, RandomEntry) else asdict(entry)


def _update(root: Path, change: Callable[[dict[str, Entry]], None]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    path = root / LOCK_NAME
    with exclusive(root):
        entries = read_lock(root)
        change(entries)
        if not entries:
            path.unlink(missing_ok=True)
            return
        models = {name: _as_json(entry) for name, entry in sorted(entries.items())}
        temporary = root / f".{LOCK_NAME}.{os.getpid()}.tmp"
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump({"schema": LOCK_SCHEMA, "models": models}, stream, indent=2)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
