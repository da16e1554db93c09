"""Folders that may not be read, and names that are not text: told with a remedy, never a traceback."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets_support import CopyRaw

from embeddings_assets.cli.doctor import Line, examine
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.status import raw_status
from embeddings_assets.errors import EmbeddingsError, RawDataError, StoreError
from embeddings_assets.quality.duplicates import find_duplicates
from embeddings_assets.quality.manifests import check_manifest
from embeddings_assets.settings import DataPaths, Settings

pytest_plugins = ("datasets_fixtures",)

CUB, CARS, DOGS = "CUB-200-2011", "Stanford Cars", "Stanford Dogs"
NOBODY = 65534


@pytest.fixture
def paths() -> Iterator[DataPaths]:
    """A data root that somebody without privileges can reach."""
    root = Path(tempfile.mkdtemp(dir="/tmp"))
    root.chmod(0o755)
    yield DataPaths.from_root(root / "data")
    for path in root.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(root)


@contextlib.contextmanager
def without_privileges(owned: Path) -> Iterator[None]:
    """As somebody to whom modes apply, who owns everything below a folder."""
    if os.geteuid():
        yield
        return
    for path in (owned, *owned.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def doctor_on(paths: DataPaths, dataset: str) -> Line:
    root = paths.raw.parent
    settings = Settings(data_root=root, weights=str(root / "weights"))
    return next(line for line in examine(settings) if line.item == dataset)


def mend(remedy: str) -> None:
    """Run the command at the end of a remedy."""
    command = remedy.rsplit(": ", 1)[1]
    assert command.startswith("chmod")
    subprocess.run(command, shell=True, check=True)


def test_a_processed_folder_that_may_not_be_entered(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    prepare_dataset(CUB, paths)
    place = paths.processed / CUB
    doctor_on(paths, CUB)  # what it imports may not be readable for everybody
    with without_privileges(paths.raw.parent):
        place.chmod(0)
        line = doctor_on(paths, CUB)
        assert line.state == "wrong"
        assert "Permission denied" in line.found
        for look in (
            lambda: find_duplicates(paths, [CUB]),
            lambda: prepare_dataset(CUB, paths),
        ):
            with pytest.raises(StoreError, match="Permission denied"):
                look()
        finding = check_manifest(paths, CUB, "test", "no_duplicates_across_splits", max_bad_share=0.01)
        assert "Permission denied" in finding.found
        place.chmod(0o700)
        assert doctor_on(paths, CUB).state == "ready"


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        (CUB, "images.txt"),
        (CUB, "images"),
        (CUB, "."),
        (CARS, "devkit/cars_meta.mat"),
    ],
)
def test_what_may_not_be_read_is_not_told_to_be_fetched_again(
    copy_raw: CopyRaw, paths: DataPaths, dataset: str, name: str
) -> None:
    folder = copy_raw(dataset)
    doctor_on(paths, dataset)
    with without_privileges(paths.raw.parent):
        (folder / name).chmod(0)
        line = doctor_on(paths, dataset)
        assert line.state == "wrong"
        assert "Permission denied" in line.found
        assert "fetch" not in line.remedy
        with pytest.raises(RawDataError, match="Permission denied") as refusal:
            prepare_dataset(dataset, paths)
        assert refusal.value.remedy == line.remedy
        if name != ".":  # a folder that may not be listed has other things wrong with it, perhaps
            mend(line.remedy)
            assert doctor_on(paths, dataset).state == "ready"


def test_links_that_lead_nowhere_are_ledger_rows(copy_raw: CopyRaw, paths: DataPaths) -> None:
    """One goes in circles, one into a folder that may not be entered; the dataset is read all the same."""
    images = sorted((copy_raw(CUB) / "images").rglob("*.jpg"))
    closed = paths.raw / "closed"
    closed.mkdir()
    images[1].rename(closed / "image.jpg")
    images[0].unlink()
    images[0].symlink_to(images[0].name)
    images[1].symlink_to(closed / "image.jpg")
    raw_status(CUB, paths)  # what it imports may not be readable for everybody
    with without_privileges(paths.raw.parent):
        closed.chmod(0)
        status = raw_status(CUB, paths)
        assert (status.state, status.found) == ("present", len(images))
        reports = prepare_dataset(CUB, paths, max_bad_share=1.0)
        closed.chmod(0o700)
    assert sum(report.rows for report in reports) == len(images) - 2
    assert sum(report.ledger.get("unreadable", 0) for report in reports) == 2


def test_a_link_in_circles_in_a_class_tree_is_a_ledger_row(paths: DataPaths, copy_raw: CopyRaw) -> None:
    image = next(copy_raw(CUB).rglob("*.jpg"))
    for split in ("train", "validation", "test"):
        folder = paths.processed_split(CUB, split) / "class"
        folder.mkdir(parents=True)
        shutil.copy(image, folder / "1.jpg")
    (folder / "2.jpg").symlink_to("2.jpg")
    (folder.parent / "circle").symlink_to("circle")
    shutil.rmtree(paths.raw)
    reports = prepare_dataset(CUB, paths, max_bad_share=1.0)
    assert [report.ledger for report in reports] == [{}, {}, {"unreadable": 1}]


def test_a_class_that_may_not_be_entered_is_not_left_out(paths: DataPaths, copy_raw: CopyRaw) -> None:
    """The classes after it would get other labels. It is a folder elsewhere, to which the tree links."""
    image = next(copy_raw(CUB).rglob("*.jpg"))
    closed = paths.raw.parent / "closed"
    for split in ("train", "validation", "test"):
        for name in ("a", "b"):
            folder = paths.processed_split(CUB, split) / name
            folder.mkdir(parents=True)
            shutil.copy(image, folder / "1.jpg")
    folder = paths.processed_split(CUB, "train") / "a"
    closed.mkdir()
    folder.rename(closed / "a")
    folder.symlink_to(closed / "a")
    shutil.rmtree(paths.raw)
    doctor_on(paths, CUB)
    with without_privileges(paths.raw.parent):
        closed.chmod(0)
        line = doctor_on(paths, CUB)
        assert line.state == "wrong"
        assert f"{folder}: cannot be read (Permission denied)" in line.found
        with pytest.raises(RawDataError, match="Permission denied"):
            prepare_dataset(CUB, paths)
        mend(line.remedy)
        assert [report.rows for report in prepare_dataset(CUB, paths)] == [2, 2, 2]


def test_an_image_of_a_class_tree_that_cannot_be_reached_is_a_ledger_row(
    paths: DataPaths, copy_raw: CopyRaw
) -> None:
    image = next(copy_raw(CUB).rglob("*.jpg"))
    closed = paths.raw.parent / "closed"
    closed.mkdir()
    for split in ("train", "validation", "test"):
        folder = paths.processed_split(CUB, split) / "class"
        folder.mkdir(parents=True)
        shutil.copy(image, folder / "1.jpg")
    (folder / "2.jpg").symlink_to(closed / "image.jpg")
    shutil.rmtree(paths.raw)
    raw_status(CUB, paths)
    with without_privileges(paths.raw.parent):
        closed.chmod(0)
        reports = prepare_dataset(CUB, paths, max_bad_share=1.0)
        closed.chmod(0o700)
    assert [report.ledger for report in reports] == [{}, {}, {"unreadable": 1}]


def test_dogs_without_lists_are_told_of_the_lists_alone(copy_raw: CopyRaw, paths: DataPaths) -> None:
    folder = copy_raw(DOGS)
    for file in folder.glob("*_list.mat"):
        file.unlink()
    line = doctor_on(paths, DOGS)
    assert line.state == "wrong"
    assert "/lists.tar" in line.remedy
    assert "images.tar" not in line.remedy
    assert "datasets fetch" not in line.remedy
    assert f'tar -xf lists.tar -C "{folder}"' in line.remedy


def test_names_that_are_not_text_are_shown_escaped(paths: DataPaths) -> None:
    folder = paths.raw_folder(CUB)
    folder.mkdir(parents=True)
    (folder / os.fsdecode(b"caf\xe9\n.txt")).touch()
    with pytest.raises(EmbeddingsError, match=r"found caf\\udce9\\n\.txt") as refusal:
        prepare_dataset(CUB, paths)
    str(refusal.value).encode()


@pytest.mark.parametrize(
    "arguments",
    [("doctor",), ("doctor", "--json"), ("prepare", "--dataset", CUB), ("datasets", "fetch", CUB)],
)
def test_the_commands_print_any_name(paths: DataPaths, arguments: tuple[str, ...]) -> None:
    """Also where a terminal takes nothing but UTF-8."""
    odd = os.fsdecode(b"caf\xe9")
    folder = paths.raw_folder(CUB)
    folder.mkdir(parents=True)
    (folder / f"{odd}.txt").touch()
    (folder / "images.txt").mkdir()
    for root, said in ((paths.raw.parent, "caf\\udce9.txt"), (paths.raw.parent / odd, "EMBEDDINGS_DATA is")):
        shown = subprocess.run(
            [sys.executable, "-m", "embeddings_assets.cli.main", *arguments],
            env={"EMBEDDINGS_DATA": str(root), "PATH": "", "PYTHONIOENCODING": "utf-8:strict"},
            capture_output=True,
            check=False,
        )
        text = (shown.stdout + shown.stderr).decode()
        assert "Traceback" not in text
        assert said in text.replace("\\\\", "\\")


def test_a_raw_folder_whose_name_is_not_text(copy_raw: CopyRaw, paths: DataPaths) -> None:
    """It would be recorded in the manifests."""
    elsewhere = paths.raw.parent / os.fsdecode(b"caf\xe9")
    copy_raw(CUB).rename(elsewhere)
    with pytest.raises(RawDataError, match="the name is not UTF-8"):
        prepare_dataset(CUB, paths, raw_dir=elsewhere)
