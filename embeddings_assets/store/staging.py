"""Staging folders, the lock of a split, and the one rename that makes a split visible.

The lock is `flock` on the staging folder itself: the kernel releases it when its holder dies, so no
dead process can hold it, and it leaves no file behind.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from embeddings_assets.errors import SplitBusyError, StoreError
from embeddings_assets.io.files import sync_folder
from embeddings_assets.store.parquet import read_footer
from embeddings_assets.store.schema import LEDGER_NAME, PART_NAME

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_RENAME_SWAP = 2  # macOS, sys/stdio.h
REPLACED = "replaced"
"""In a staging folder: the split that is about to be replaced, where two folders cannot be exchanged."""

_WRITABLE = "make the output folder writable, or choose another with --output-dir"
_ATTEMPTS = 20  # at a folder that other runs keep removing at their end


@contextlib.contextmanager
def locked_staging(staging: Path, root: Path, target: Path) -> Iterator[None]:
    """Hold the staging folder of one split. Also finishes a swap that a crash cut in two.

    What is in the folder at the end stays for the next run; a folder left empty goes.

    Args:
        staging: folder of this split below `root`, created if absent.
        root: `.staging`.
        target: the split's visible folder.

    Raises:
        SplitBusyError: another living process holds it.
        StoreError: the folder cannot be written.
    """
    with contextlib.ExitStack() as leaving:
        leaving.callback(os.close, _acquire(staging))
        leaving.callback(_remove_empty, staging, root)
        _require_place(staging, target)
        _recover(staging, target)
        yield


def _acquire(staging: Path) -> int:
    for _ in range(_ATTEMPTS):
        try:
            staging.mkdir(parents=True, exist_ok=True)
            handle = os.open(staging, os.O_RDONLY)
        except FileNotFoundError:
            continue  # another run has just removed the folder at its end
        except OSError as error:
            raise StoreError(f"{staging}: cannot be created ({error.strerror}).", remedy=_WRITABLE) from error
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SplitBusyError(
                    f"{staging}: another process is writing this split now.", remedy="wait for it to finish"
                ) from None
            with contextlib.suppress(FileNotFoundError):  # its former holder has removed it meanwhile
                if os.path.samestat(os.fstat(handle), staging.stat()):
                    otherwise.pop_all()
                    return handle
    raise StoreError(f"{staging}: cannot be created.", remedy=_WRITABLE)


def _remove_empty(folder: Path, root: Path) -> None:
    """Remove `folder` if nothing is left in it, then every empty parent up to and including `root`."""
    for child in folder.iterdir():
        with contextlib.suppress(OSError):  # a file, or a folder that still holds something
            child.rmdir()
    for path in [folder, *folder.parents]:
        if not path.is_relative_to(root):
            return
        try:
            path.rmdir()
        except OSError:  # not empty, gone already, or not ours to remove
            return


def swap_into_place(staged: Path, target: Path, staging: Path) -> None:
    """Make `staged` the content of `target` in one rename; what stood there is deleted afterwards.

    On file systems that cannot exchange two folders the old one is moved aside first; a crash between
    the two renames is undone by the next `locked_staging`.

    Raises:
        StoreError: `target` holds files that are not part of a split.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        staged.rename(target)
    else:
        refuse_foreign_files(target)
        if not _exchange(staged, target):
            aside = staging / REPLACED
            try:
                target.rename(aside)
                staged.rename(target)
            except BaseException:
                _recover(staging, target)
                raise
            staged = aside
        sync_folder(target.parent)
        shutil.rmtree(staged)
    sync_folder(target.parent)


def _require_place(staging: Path, target: Path) -> None:
    """Refuse before any work what the last rename could not do."""
    existing = next(folder for folder in target.absolute().parents if folder.exists())
    effective = os.access in os.supports_effective_ids
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=effective):
        raise StoreError(f"{existing}: cannot be written.", remedy=_WRITABLE)
    if existing.stat().st_dev != staging.stat().st_dev:
        raise StoreError(
            f"{existing} and {staging} lie on different disks; a split is moved between them in one rename.",
            remedy="choose an --output-dir whose folders all lie on one disk",
        )


def refuse_foreign_files(folder: Path) -> None:
    """Raise StoreError if replacing `folder` would delete what no run of ours has written."""
    if folder.is_symlink():
        raise StoreError(
            f"{folder}: is a link; a split is replaced by a rename, which would replace the link.",
            remedy="replace the link by the folder itself, or link the folder above it",
        )
    foreign = sorted(entry.name for entry in folder.iterdir() if not _is_ours(entry))
    if foreign:
        raise StoreError(
            f"{folder}: holds files that are not part of a split: {', '.join(foreign[:5])}.",
            remedy="move them elsewhere, then run again",
        )


def _is_ours(entry: Path) -> bool:
    if entry.is_symlink() or not entry.is_file():
        return False
    if entry.name == ".DS_Store":
        return True
    if entry.name != LEDGER_NAME and not PART_NAME.fullmatch(entry.name):
        return False
    try:
        read_footer(entry)
    except StoreError:
        return False  # a whole parquet file that somebody else has written
    except (OSError, pa.ArrowException):
        # A parquet file cut short or damaged holds nothing to lose; anything else may be the user's.
        with entry.open("rb") as stream:
            return stream.read(4) in (b"", b"PAR1")
    return True


def _recover(staging: Path, target: Path) -> None:
    aside = staging / REPLACED
    if not aside.exists():
        return
    if target.exists():
        shutil.rmtree(aside)
    else:
        aside.rename(target)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders atomically; False where the system or file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    source, destination = os.fsencode(first), os.fsencode(second)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(source, destination, _RENAME_SWAP)
    elif hasattr(libc, "renameat2"):
        failed = libc.renameat2(_AT_FDCWD, source, _AT_FDCWD, destination, _RENAME_EXCHANGE)
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))
