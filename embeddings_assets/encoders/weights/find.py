"""Which weights a model would use: found on disk and identified by sha256, without loading them.

Which files in `<root>/<model>/` are a checkpoint is stated by the model's family (`CHECKPOINT`, family.py).
A root's `weights.lock` may ask for random weights by name instead (lock.py). This module opens no network
connection and imports no torch.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from embeddings_assets.catalog import ModelSpec, get_model
from embeddings_assets.encoders.family import family_of
from embeddings_assets.encoders.weights.lock import LOCK_NAME, FetchedEntry, RandomEntry, read_lock
from embeddings_assets.errors import WeightsError
from embeddings_assets.settings import RANDOM_WEIGHTS

RANDOM_VERSION = 1  # raise with every change of the values random_weights.py gives

_HASH_CHUNK = 4 << 20
_hashes: dict[tuple[str, int, int, int], str] = {}


@dataclass(frozen=True)
class WeightsSource:
    """One model's weights, identified.

    Attributes:
        model: catalog name.
        kind: "file", or "random" for seeded untrained weights.
        path: the checkpoint file; None for random weights.
        sha256: of the checkpoint file; for random weights, of a declaration of model, seed and version.
        trained: True where the digest is a published one (catalog, or recorded by `weights fetch`), False for
            random weights, None for a local file of unknown digest.
        origin: what a footer says of it; never an absolute path.
        revision: the hub commit, where one was recorded.
        seed: of random weights.
    """

    model: str
    kind: Literal["file", "random"]
    path: Path | None
    sha256: str
    trained: bool | None
    origin: str
    revision: str | None = None
    seed: int = 0

    @property
    def folder(self) -> Path | None:
        return None if self.path is None else self.path.parent


def random_source(model: str, seed: int = 0) -> WeightsSource:
    """Seeded untrained weights of this model, for demonstrations and tests."""
    declared = f"embeddings_assets random weights: version {RANDOM_VERSION}, model {model}, seed {seed}"
    return WeightsSource(
        model=get_model(model).name,
        kind="random",
        path=None,
        sha256=hashlib.sha256(declared.encode()).hexdigest(),
        trained=False,
        origin=f"{RANDOM_WEIGHTS} seed {seed}",
        seed=seed,
    )


def find_weights(model: str, weights: str | Path) -> WeightsSource:
    """The weights of `model` that `weights` names, with their sha256.

    Args:
        weights: the word "random"; a weights root; the model's own folder; or its checkpoint file. In a
            root, real files in `<root>/<model>/` win over a lock entry that asks for random weights.

    Raises:
        UnknownNameError: no such model.
        WeightsError: nothing there, several candidates, an incomplete folder, or a sha256 other than the
            one `weights.lock` records.
    """
    source = look_for_weights(model, weights)
    if source is None:
        raise nothing_found(get_model(model), Path(weights))
    return source


def look_for_weights(model: str, weights: str | Path) -> WeightsSource | None:
    """As `find_weights`, but None where nothing is there."""
    spec = get_model(model)
    if str(weights) == RANDOM_WEIGHTS:
        return random_source(spec.name)
    place = Path(weights)
    if place.is_file():
        return _identify(spec, _checked_file(spec, place))
    checkpoint = find_checkpoint(spec, place / spec.name) or find_checkpoint(spec, place)
    if checkpoint is not None:
        return _identify(spec, checkpoint)
    entry = read_lock(place).get(spec.name)
    if isinstance(entry, RandomEntry):
        return random_source(spec.name, entry.seed)
    return None


def stated_weights(model: str, weights: str | Path) -> str:
    """Which weights of `model` those are, as far as that is known before any is read or fetched.

    Random ones by their digest; published ones by that of the catalog, or by name where it knows none, so
    that what is fetched when it is first needed does not look like other weights; what was fetched from an
    address that the catalog no longer names by the digest in `weights.lock`. A file that was placed by hand
    counts as the published one: only reading it would tell.
    """
    spec = get_model(model)
    if str(weights) == RANDOM_WEIGHTS:
        return random_source(spec.name).sha256
    place = Path(weights)
    published = spec.sha256 or f"{spec.checkpoint}@{spec.revision}"
    try:
        entry = read_lock(place).get(spec.name)
        checkpoint = find_checkpoint(spec, place / spec.name) or find_checkpoint(spec, place)
    except (WeightsError, OSError):
        return published  # what is wrong is said where the weights are needed
    if checkpoint is None and isinstance(entry, RandomEntry):
        return random_source(spec.name, entry.seed).sha256
    if isinstance(entry, FetchedEntry) and entry.source not in (spec.url, f"hub:{spec.hub_repo}"):
        return entry.sha256
    return published


def nothing_found(spec: ModelSpec, place: Path, cause: str | None = None) -> WeightsError:
    """The error for a model without weights, naming what was looked for, where, and the three ways out."""
    where = f"{place / spec.name}, or {place} itself" if place.is_dir() else f"{place} (no such folder)"
    return WeightsError(
        f"{spec.name}: no weights. Looked for {accepted_files(spec)} in {where}; "
        f"no {LOCK_NAME} there asks for random weights." + (f" {cause}" if cause else ""),
        remedy=f'embeddings-assets weights fetch "{spec.name}", or --weights DIR where they lie, '
        f"or --weights {RANDOM_WEIGHTS} for untrained ones (tests only)",
    )


def find_checkpoint(spec: ModelSpec, folder: Path) -> Path | None:
    """The checkpoint file in a model's own folder, or None.

    Raises:
        WeightsError: several candidates and none has the catalog's name, or an incomplete folder.
    """
    files = family_of(spec).CHECKPOINT
    if files.any_name:
        found = sorted(folder.glob(f"*{_suffix(spec)}"))
        if len(found) > 1 and folder / spec.filename not in found:
            raise WeightsError(
                f"{folder}: {len(found)} checkpoints ({', '.join(path.name for path in found)}); "
                f"expected one, or one named {spec.filename}.",
                remedy=f"name the file itself: --weights {found[0]}",
            )
        return folder / spec.filename if folder / spec.filename in found else next(iter(found), None)
    found = [folder / name for name in files.names(spec) if (folder / name).is_file()]
    return _checked_file(spec, found[0]) if found else None


def _suffix(spec: ModelSpec) -> str:
    return Path(spec.filename).suffix


def accepted_files(spec: ModelSpec) -> str:
    """The files that would be a model's checkpoint, in words."""
    files = family_of(spec).CHECKPOINT
    if files.any_name:
        return f"one {_suffix(spec)} file"
    names = ((name, files.companions.get(name)) for name in files.names(spec))
    return " or ".join(name if beside is None else f"{beside} + {name}" for name, beside in names)


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal; remembered for as long as the file stays the same."""
    status = path.stat()
    identity = (str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)
    if identity not in _hashes:
        running = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK):
                running.update(chunk)
        _hashes[identity] = running.hexdigest()
    return _hashes[identity]


def _checked_file(spec: ModelSpec, path: Path) -> Path:
    files = family_of(spec).CHECKPOINT
    companion = files.companions.get(path.name)
    if companion is not None and not (path.parent / companion).is_file():
        raise WeightsError(
            f"{path.parent}: {path.name} is there, but {companion} is not.",
            remedy=f"copy {companion} beside it; or delete it, then: "
            f'embeddings-assets weights fetch "{spec.name}"',
        )
    suffixes = {Path(name).suffix for name in files.names(spec)}
    if path.suffix not in suffixes:
        raise WeightsError(f"{path}: not a checkpoint of {spec.name}; expected {accepted_files(spec)}.")
    return path


def _identify(spec: ModelSpec, path: Path) -> WeightsSource:
    try:
        found = file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{path}: the checkpoint cannot be read ({error.strerror}).") from error
    entry = read_lock(path.parent.parent).get(spec.name) if path.parent.name == spec.name else None
    recorded = entry if isinstance(entry, FetchedEntry) and entry.file == path.name else None
    if recorded is not None and recorded.sha256 != found:
        raise WeightsError(
            f"{path}: has sha256 {found}, but {LOCK_NAME} records {recorded.sha256}. "
            "The file was changed or damaged since it was fetched.",
            remedy=f'delete the file, then: embeddings-assets weights fetch "{spec.name}"; '
            f"or delete its entry in {LOCK_NAME} to use the file as it is",
        )
    return WeightsSource(
        model=spec.name,
        kind="file",
        path=path,
        sha256=found,
        trained=True if recorded is not None or found == spec.sha256 else None,
        origin=path.name,
        revision=recorded.revision if recorded else None,
    )
