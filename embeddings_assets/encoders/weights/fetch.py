"""Download of checkpoints into a weights root: from the Hugging Face hub, or from a published URL.

A file takes its final name only when its content is a checkpoint and its digest is the published one (where
one is known). What came is recorded in `weights.lock`, so that later damage is seen. The hub's address can be
set by HF_ENDPOINT, which its own library reads.
"""

import contextlib
import logging
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from embeddings_assets.catalog import ModelSpec, get_model
from embeddings_assets.encoders.family import family_of
from embeddings_assets.encoders.weights.find import (
    WeightsSource,
    accepted_files,
    file_sha256,
    find_checkpoint,
    find_weights,
    look_for_weights,
    nothing_found,
)
from embeddings_assets.encoders.weights.lock import FetchedEntry, record_fetched
from embeddings_assets.errors import WeightsError
from embeddings_assets.io.locks import exclusive

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_SAFETENSORS_HEADER = 100_000_000  # the format's own limit
_TIMEOUT = 30  # seconds without a byte
_CHUNK = 1 << 20


def fetch_weights(model: str, root: Path, *, progress: bool) -> WeightsSource:
    """Download the published checkpoint of a model into `<root>/<model>/`, unless it is already there.

    Args:
        progress: show the libraries' own progress bars.

    Raises:
        UnknownNameError: no such model.
        WeightsError: no network, a broken download, content that is no checkpoint, another digest than the
            published one, or a file of unknown origin already in the place. Nothing is left half-written.
    """
    return fetch_checkpoint(get_model(model), root, progress=progress)


def find_or_fetch(model: str, root: str | Path, *, progress: bool = False) -> WeightsSource:
    """The weights in a root; downloaded into it only where nothing is there.

    Raises:
        WeightsError: as `find_weights`; or nothing is there and the download failed, naming both.
    """
    found = look_for_weights(model, root)
    if found is not None:
        return found
    try:
        return fetch_weights(model, Path(root), progress=progress)
    except WeightsError as error:
        cause = f"They could not be fetched either: {error.problem}"
        raise nothing_found(get_model(model), Path(root), cause) from error


def fetch_checkpoint(spec: ModelSpec, root: Path, *, progress: bool) -> WeightsSource:
    """As `fetch_weights`, for any `ModelSpec` with a `hub_repo` or a `url`."""
    folder, staging = root / spec.name, root / f".fetch-{spec.name}"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        with exclusive(staging):
            existing = find_checkpoint(spec, folder)
            if existing is None:
                entry = _download(spec, staging, progress)
                record_fetched(root, spec.name, entry)
                _move(staging, folder, [*family_of(spec).CHECKPOINT.hub_companions(spec), entry.file])
        shutil.rmtree(staging, ignore_errors=True)
    except WeightsError:
        with contextlib.suppress(OSError):
            staging.rmdir()  # unless it holds a part that the hub's library can resume
        raise
    except OSError as error:
        raise WeightsError(f"{folder}: the checkpoint cannot be stored ({error}).") from error
    source = find_weights(spec.name, folder)
    if not source.trained:
        raise WeightsError(
            f"{source.path}: a file of unknown origin is already there; it is not overwritten.",
            remedy="use it as it is, or move it away and fetch again",
        )
    return source


def _download(spec: ModelSpec, staging: Path, progress: bool) -> FetchedEntry:
    if spec.hub_repo:
        return _from_hub(spec, staging, progress)
    if spec.url:
        return _from_url(spec, staging, progress)
    raise WeightsError(
        f"{spec.name}: the catalog names no address that publishes its weights.",
        remedy=f"place {accepted_files(spec)} in the folder {spec.name} of the weights folder by hand",
    )


def _from_hub(spec: ModelSpec, staging: Path, progress: bool) -> FetchedEntry:
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url

    repository = str(spec.hub_repo)
    # errors.HTTPError: the transport library's base class, which has changed between hub releases.
    failures = (OSError, ValueError, RuntimeError, errors.EntryNotFoundError, errors.HTTPError)
    try:
        with _hub_progress(progress):
            url = hf_hub_url(repository, spec.filename, revision=spec.revision)
            published = get_hf_file_metadata(url)
            for name in (*family_of(spec).CHECKPOINT.hub_companions(spec), spec.filename):
                hf_hub_download(repository, name, revision=published.commit_hash, local_dir=staging)
    except failures as error:
        raise _download_failed(spec, f"{repository} on the Hugging Face hub", error) from error
    checkpoint = staging / spec.filename
    # The ETag of a large file on the hub is its sha256.
    expected = published.etag if published.etag and _SHA256.fullmatch(published.etag) else None
    _check_content(checkpoint, url, expected)
    return FetchedEntry(f"hub:{repository}", published.commit_hash, spec.filename, file_sha256(checkpoint))


def _from_url(spec: ModelSpec, staging: Path, progress: bool) -> FetchedEntry:
    import pooch

    url = str(spec.url)
    checkpoint = staging / spec.filename
    checkpoint.unlink(missing_ok=True)
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel(logging.WARNING)
    downloader = pooch.HTTPDownloader(progressbar=progress, chunk_size=_CHUNK, timeout=_TIMEOUT)
    try:
        # The digest is compared below, where an HTML page can be told from a damaged file.
        pooch.retrieve(url, known_hash=None, fname=spec.filename, path=staging, downloader=downloader)
    except (OSError, ValueError) as error:
        raise _download_failed(spec, url, error) from error
    finally:
        logger.setLevel(level)
    _check_content(checkpoint, url, spec.sha256)
    return FetchedEntry(url, None, spec.filename, file_sha256(checkpoint))


def _check_content(path: Path, url: str, expected_sha256: str | None) -> None:
    """Refuse, and delete, what is no whole checkpoint or has another digest."""
    problem = _not_a_checkpoint(path)
    if problem is None and expected_sha256 is not None and file_sha256(path) != expected_sha256:
        problem = f"a file with sha256 {file_sha256(path)}, expected {expected_sha256}"
    if problem is not None:
        path.unlink()
        raise WeightsError(
            f"{url} gave {problem}. Nothing was kept.",
            remedy="try again; if it stays so, download it in a browser and place it in the weights folder",
        )


def _not_a_checkpoint(path: Path) -> str | None:
    """What a file is that is neither a whole zip archive nor safetensors; None if it is one of them."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(512)
    if head.startswith(b"PK"):
        return None if zipfile.is_zipfile(path) else f"a torch archive that ends too early ({size} bytes)"
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= _LONGEST_SAFETENSORS_HEADER:
        return None if 8 + header <= size else f"a safetensors file that ends too early ({size} bytes)"
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "an HTML page, not a checkpoint"
    if text.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer, not the checkpoint itself"
    return f"no checkpoint ({size} bytes, starting with {head[:8]!r})"


def _move(staging: Path, folder: Path, names: Sequence[str]) -> None:
    """Give downloaded files their final names, in this order: the checkpoint after its companions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (staging / name).is_file():
            (staging / name).replace(folder / name)


def _download_failed(spec: ModelSpec, origin: str, error: Exception) -> WeightsError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return WeightsError(
        f"{spec.name}: the download from {origin} failed ({reason}).",
        remedy=f"check the network, then: embeddings-assets weights fetch {spec.name}; without one, place "
        "the file in the weights folder by hand (embeddings-assets doctor says where)",
    )


@contextlib.contextmanager
def _hub_progress(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
