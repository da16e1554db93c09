"""What a fetch refuses before it downloads, and what it does not keep."""

import os
import resource
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from fetch_support import FLOWERS, Behaviour, publish, serving, spec_of, tree_of

from embeddings_assets.catalog import DatasetSpec
from embeddings_assets.datasets.fetch import fetch_published
from embeddings_assets.datasets.synthetic.writer import MARKER, remove_synthetic, write_synthetic
from embeddings_assets.errors import RawDataError, StoreError
from embeddings_assets.settings import DataPaths

IMAGES = "102flowers.tgz"


pytest_plugins = ("fetch_fixtures",)


def without_size(spec: DatasetSpec) -> DatasetSpec:
    """The dataset as if its images had no published size or digest."""
    first, *others = spec.archives
    return replace(spec, archives=(replace(first, bytes=None, md5=None, sha256=None), *others))


def test_what_file_managers_leave_in_an_empty_folder_does_not_stand_in_the_way(
    made: Path, published: Path, paths: DataPaths
) -> None:
    folder = paths.raw / "flowers-102"
    folder.mkdir(parents=True)
    for name in (".DS_Store", "._jpg", ".gitkeep"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    with serving(Behaviour(published)) as address:
        assert fetch_published(spec_of(published, address), paths).status == "fetched"
    assert tree_of(folder) == tree_of(made / "made" / "flowers-102")


@pytest.mark.parametrize("drawn", [True, False], ids=["demo", "cut down"])
def test_other_lists_than_the_published_ones_are_not_the_dataset(
    published: Path, paths: DataPaths, drawn: bool
) -> None:
    """What the demo has drawn, or somebody has cut down, is complete in itself."""
    folder = write_synthetic(paths.raw, FLOWERS, classes=3, train_per_class=4, test_per_class=2)
    if not drawn:
        (folder / MARKER).unlink()
    before = tree_of(folder)
    behaviour = Behaviour(published)
    with serving(behaviour) as address:
        with pytest.raises(RawDataError, match=r"train 6 instead of 10.* not overwritten") as refusal:
            fetch_published(spec_of(published, address), paths)
        assert tree_of(folder) == before
        assert not behaviour.asked
        assert ("drawn data of the demo" in refusal.value.problem) == drawn
        remedy = str(refusal.value.remedy)
        if not drawn:
            assert "move it away" in remedy
            return
        assert "embeddings-assets demo --remove" in remedy
        remove_synthetic(paths.raw, FLOWERS)
        assert fetch_published(spec_of(published, address), paths).status == "fetched"


@pytest.mark.parametrize("kind", ["hidden file", "hidden folder", "file", "link", "dangling link"])
def test_what_stands_in_the_way_is_refused_before_the_download(
    published: Path, paths: DataPaths, kind: str
) -> None:
    folder = paths.raw / "flowers-102"
    paths.raw.mkdir(parents=True)
    if kind == "file":
        folder.write_text("mine")
    elif "link" in kind:
        folder.symlink_to(paths.raw.parent / "elsewhere")
        if kind == "link":
            folder.resolve().mkdir()
    else:
        folder.mkdir()
        (folder / ".DS_Store").touch()
        if kind == "hidden folder":
            (folder / "._mine").mkdir()
        else:
            (folder / ".mine").write_text("mine")
    before = tree_of(paths.raw)
    behaviour = Behaviour(published)
    with serving(behaviour) as address, pytest.raises(RawDataError, match="stands there") as refusal:
        fetch_published(spec_of(published, address), paths)
    assert "move it away" in str(refusal.value)
    assert not behaviour.asked
    assert {name: what for name, what in tree_of(paths.raw).items() if ".fetch" not in name} == before


@pytest.mark.parametrize("hostile", [True, False], ids=["refused when unpacked", "not the dataset"])
def test_a_refused_download_is_not_kept(tmp_path: Path, paths: DataPaths, hostile: bool) -> None:
    """Where no digest is published, the next run would take it for checked."""
    publish(tmp_path / "made")
    published = tmp_path / "made" / "published"
    good = {file.name: file.read_bytes() for file in published.iterdir()}
    with tarfile.open(published / IMAGES, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../evil" if hostile else "other/file"))
    (published / "setid.mat").write_bytes(good["setid.mat"] if hostile else b"<text>")
    behaviour = Behaviour(published)
    with serving(behaviour) as address:
        with pytest.raises(RawDataError, match="refused at member" if hostile else r"setid\.mat") as refusal:
            fetch_published(without_size(spec_of(published, address)), paths)
        assert "fetch again" in str(refusal.value)
        assert not list(paths.raw.rglob("*.tgz"))
        for name, content in good.items():
            (published / name).write_bytes(content)
        assert fetch_published(without_size(spec_of(published, address)), paths).status == "fetched"
    with tarfile.open(published / IMAGES, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../evil"))
    other = DataPaths.from_root(tmp_path / "other")
    with pytest.raises(RawDataError):
        fetch_published(without_size(spec_of(published, "by-hand")), other, archives_dir=published)
    assert (published / IMAGES).is_file(), "the user's archives stay"


@pytest.mark.parametrize("length", [True, False], ids=["told", "not told"])
def test_a_download_of_unknown_size_ends_somewhere(tmp_path: Path, paths: DataPaths, length: bool) -> None:
    publish(tmp_path / "made")
    published = tmp_path / "made" / "published"
    (published / IMAGES).write_bytes(os.urandom(400_000))
    with serving(Behaviour(published, length=length)) as address:
        spec = replace(without_size(spec_of(published, address)), unpacked_bytes=100_000)
        with pytest.raises(RawDataError, match=r"gives more than 300,000 bytes for 102flowers\.tgz"):
            fetch_published(spec, paths)
    assert not list(paths.raw.rglob("*.part*"))


def test_a_download_longer_than_published_ends_there(tmp_path: Path, paths: DataPaths) -> None:
    publish(tmp_path / "made")
    published = tmp_path / "made" / "published"
    with serving(Behaviour(published, length=False)) as address:
        spec = spec_of(published, address)
        with (published / IMAGES).open("ab") as stream:
            stream.write(b"more")
        size = spec.archives[0].bytes
        with pytest.raises(RawDataError, match=f"gives more than {size:,} bytes"):
            fetch_published(spec, paths)
    assert not list(paths.raw.rglob("*.part*"))


def test_the_archives_of_a_dataset_share_one_bound(tmp_path: Path, paths: DataPaths) -> None:
    """Each of the two unpacks to less than the dataset may have, both together to more."""
    publish(tmp_path / "made")
    published = tmp_path / "made" / "published"
    for name in ("one.tgz", "two.tgz"):
        (tmp_path / "zeros").write_bytes(bytes(200_000))
        with tarfile.open(published / name, "w:gz") as tar:
            tar.add(tmp_path / "zeros", name)
    spec = spec_of(published, "by-hand")
    more = tuple(
        replace(spec.archives[0], filename=name, bytes=None, md5=None, sha256=None)
        for name in ("one.tgz", "two.tgz")
    )
    wanted = replace(spec, archives=more, unpacked_bytes=100_000)
    with pytest.raises(RawDataError, match=r"two\.tgz: refused .* more than 100,000 bytes come out of it"):
        fetch_published(wanted, paths, archives_dir=published)


def test_a_full_disk_is_no_broken_connection(published: Path, paths: DataPaths) -> None:
    """It is told at once, by name; what came is kept."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving(Behaviour(published)) as address:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
            with pytest.raises(StoreError, match=rf"{IMAGES}\.part: File too large"):
                fetch_published(spec_of(published, address), paths)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert fetch_published(spec_of(published, address), paths).status == "fetched"
