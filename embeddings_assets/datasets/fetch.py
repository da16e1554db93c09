"""A published dataset into `raw/`: its archives downloaded or taken from a folder, checked and unpacked.

All of it happens in `raw/.fetch-<official folder>`; the dataset appears in one rename when its lists have
been read. Its terms and what came are recorded in `raw/.fetched/<official folder>.json`.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from embeddings_assets.catalog import Archive, DatasetSpec, get_dataset
from embeddings_assets.datasets.layouts.parsing import listed
from embeddings_assets.datasets.sources import LAYOUTS
from embeddings_assets.datasets.status import raw_status
from embeddings_assets.datasets.synthetic.writer import is_synthetic
from embeddings_assets.errors import RawDataError, SplitBusyError
from embeddings_assets.io.download import Progress, bytes_so_far, download, file_digest, wrong_content
from embeddings_assets.io.files import disk_errors, sync_folder
from embeddings_assets.io.locks import exclusive
from embeddings_assets.io.unpack import unpack
from embeddings_assets.settings import DataPaths

# The sizes of unpacked datasets in the catalog are estimates.
_MARGIN = 3
# What file managers and git leave in an empty folder.
_JUNK = re.compile(r"\.DS_Store|\.gitkeep|\._.*", re.DOTALL)


@dataclass(frozen=True)
class FetchReport:
    """Where a dataset is now, and whether this call brought it there."""

    dataset: str
    folder: Path
    status: Literal["fetched", "already there"]


def fetch_dataset(
    dataset: str,
    paths: DataPaths,
    *,
    archives_dir: Path | None = None,
    on_terms: Callable[[DatasetSpec], None] | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> FetchReport:
    """Bring a dataset to `raw/<official folder>`, unless it is there.

    Args:
        archives_dir: a folder that holds its archives; nothing is downloaded then.
        on_terms: called once for a dataset in a data root, before anything is downloaded.
        progress: gives the callback of a file or a step.

    Raises:
        UnknownNameError: no such dataset.
        RawDataError: it has to be got by hand, something else stands in its place, the disk is too small, or
            what came is not the dataset. Nothing is left that looks finished.
        SplitBusyError: another process is fetching it.
    """
    return fetch_published(
        get_dataset(dataset), paths, archives_dir=archives_dir, on_terms=on_terms, progress=progress
    )


@disk_errors()
def fetch_published(
    spec: DatasetSpec,
    paths: DataPaths,
    *,
    archives_dir: Path | None = None,
    on_terms: Callable[[DatasetSpec], None] | None = None,
    progress: Callable[[str], Progress] | None = None,
) -> FetchReport:
    """As `fetch_dataset`, for any `DatasetSpec` with archives."""
    folder = paths.raw / spec.raw_folder
    staging = paths.raw / f".fetch-{spec.raw_folder}"
    record = paths.raw / ".fetched" / f"{spec.raw_folder}.json"
    if not staging.is_dir() and _stands(spec, paths, folder):
        return FetchReport(spec.name, folder, "already there")
    if not spec.archives:
        raise RawDataError(f"{spec.name} has no published archives.", remedy=f"place your copy at {folder}")
    if archives_dir is None and not spec.can_be_fetched:
        raise _by_hand(spec, folder)
    staging.mkdir(parents=True, exist_ok=True)
    with exclusive(staging, lambda: _busy(spec, staging)):
        if _stands(spec, paths, folder):
            shutil.rmtree(staging)
            return FetchReport(spec.name, folder, "already there")
        _make_way(spec, folder)
        if not record.is_file():
            if on_terms is not None:
                on_terms(spec)
            _write_record(record, _terms(spec))
        show = progress or (lambda name: lambda done, total: None)
        with _fresh(staging / "tree") as tree:  # first, so that what was left in it takes no room
            files = _files(spec, staging, archives_dir, folder, show)
            with _deleting_refused(files, staging):
                left = _MARGIN * spec.unpacked_bytes
                for archive, file in files:
                    left -= _place(archive, file, tree, left, show(f"unpack {archive.filename}"))
                _check_lists(spec, tree)
                _write_record(record, _terms(spec) | {"archives": [_came(*pair) for pair in files]})
                os.sync()  # one call for thousands of files, whose folder must not appear before them
                _make_way(spec, folder)
                tree.replace(folder)
        sync_folder(paths.raw)
        shutil.rmtree(staging)
    return FetchReport(spec.name, folder, "fetched")


@contextlib.contextmanager
def _fresh(tree: Path) -> Iterator[Path]:
    """An empty folder, without what a run that was killed left in it; gone at the end."""
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    try:
        yield tree
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _stands(spec: DatasetSpec, paths: DataPaths, folder: Path) -> bool:
    """Whether the dataset is in its place, whole.

    Raises:
        RawDataError: something else is there.
    """
    if not folder.is_dir() or not any(child.name[0] != "." for child in folder.iterdir()):
        return False
    status = raw_status(spec.name, paths, folder, official=spec.counts)
    if status.state == "present" and status.problem is None:
        return True
    remedy = "move it away and fetch again"
    if is_synthetic(folder):
        remedy = (
            "delete the demo's data and fetch again: embeddings-assets demo --remove (or make demo-clean)"
        )
    elif status.state != "wrong":
        missing = " --allow-missing" if status.state == "partial" else ""
        remedy += f', or take what is there: embeddings-assets prepare --dataset "{spec.name}"{missing}'
    raise RawDataError(
        f"{folder}: holds something that is not the whole of {spec.name} ({status.problem}); it is not "
        "overwritten.",
        remedy=remedy,
    )


def _make_way(spec: DatasetSpec, folder: Path) -> None:
    """Remove an empty folder, or one with nothing but what file managers leave behind.

    Raises:
        RawDataError: anything else stands there; nothing is deleted then.
    """
    try:
        children = list(folder.iterdir())
    except FileNotFoundError:
        children = []
    except NotADirectoryError:
        children = [folder]
    kept = [child.name for child in children if not _JUNK.fullmatch(child.name) or child.is_dir()]
    if kept or folder.is_symlink():
        raise RawDataError(
            f"{folder}: {spec.name} belongs there, and {listed(kept, 5) or 'a link'} stands there.",
            remedy="move it away and fetch again",
        )
    for child in children:
        child.unlink()
    if folder.is_dir():
        folder.rmdir()


@contextlib.contextmanager
def _deleting_refused(files: Sequence[tuple[Archive, Path]], staging: Path) -> Iterator[None]:
    """Delete what was downloaded if it is refused: the next run would take it for checked."""
    try:
        yield
    except RawDataError:
        for _, file in files:
            if file.parent == staging:
                file.unlink(missing_ok=True)
        raise


def _files(
    spec: DatasetSpec,
    staging: Path,
    archives_dir: Path | None,
    folder: Path,
    show: Callable[[str], Progress],
) -> list[tuple[Archive, Path]]:
    """Every archive with its file, whose content is checked."""
    if archives_dir is None:
        missing = [archive for archive in spec.archives if not (staging / archive.filename).is_file()]
        to_come = sum(max(0, spec.bytes_of(archive) - bytes_so_far(archive, staging)) for archive in missing)
        _need_room(spec, staging, to_come + spec.unpacked_bytes)
        most = _MARGIN * spec.unpacked_bytes
        return [
            (archive, download(archive, staging, most, show(archive.filename))) for archive in spec.archives
        ]
    found = [(archive, archives_dir / archive.filename) for archive in spec.archives]
    absent = [archive.filename for archive, file in found if not file.is_file()]
    if absent:
        raise RawDataError(
            f"{archives_dir}: {', '.join(absent)} of {spec.name} not there.",
            remedy=f"{spec.instructions or f'Get it from {spec.homepage}.'} {_unpacked_already(folder)}",
        )
    _need_room(spec, staging, spec.unpacked_bytes)
    for archive, file in found:
        problem = wrong_content(archive, file)
        if problem is not None:
            raise RawDataError(f"{file}: {problem}.", remedy="get the published file")
    return found


def _place(archive: Archive, file: Path, tree: Path, most_bytes: int, progress: Progress) -> int:
    """Unpack or copy one file of the dataset; how many bytes came out of it."""
    if not archive.unpack:
        shutil.copyfile(file, tree / archive.filename)
        return file.stat().st_size
    try:
        return unpack(
            file,
            tree,
            strip=archive.strip,
            most_bytes=most_bytes,
            progress=lambda done: progress(done, 0),
        )
    except RawDataError as error:
        raise RawDataError(error.problem, remedy="get the published file, then fetch again") from error


def _check_lists(spec: DatasetSpec, tree: Path) -> None:
    try:
        LAYOUTS[spec.layout].read(tree)
    except RawDataError as error:
        raise RawDataError(
            f"The archives of {spec.name} do not hold the dataset: {error.problem}",
            remedy="get the published archives, then fetch again",
        ) from error


def _need_room(spec: DatasetSpec, staging: Path, wanted: int) -> None:
    free = shutil.disk_usage(staging).free
    if wanted > free:
        raise RawDataError(
            f"{staging.parent}: {free / 1e9:.1f} GB are free; {spec.name} needs about {wanted / 1e9:.1f} GB.",
            remedy="make room, or set EMBEDDINGS_DATA to a larger disk",
        )


def _by_hand(spec: DatasetSpec, folder: Path) -> RawDataError:
    files = ", ".join(archive.filename for archive in spec.archives) or "its files"
    instructions = spec.instructions or f"Get {files} from {spec.homepage} into a folder of yours."
    return RawDataError(
        f"{spec.name} cannot be downloaded by a program. {instructions} {_unpacked_already(folder)}",
        remedy=f'embeddings-assets datasets fetch "{spec.name}" --archives FOLDER',
    )


def _unpacked_already(folder: Path) -> str:
    return f"A copy that is unpacked already may be placed at {folder} instead."


def _busy(spec: DatasetSpec, staging: Path) -> None:
    raise SplitBusyError(
        f"{staging}: another process is fetching {spec.name}.", remedy="wait until it has ended"
    )


def _terms(spec: DatasetSpec) -> dict[str, Any]:
    return {"dataset": spec.name, "licence": spec.licence, "homepage": spec.homepage}


def _came(archive: Archive, file: Path) -> dict[str, Any]:
    return {
        "filename": archive.filename,
        "url": archive.url,
        "bytes": file.stat().st_size,
        "sha256": file_digest(file, "sha256"),
    }


def _write_record(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # only the holder of the staging folder writes it
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
