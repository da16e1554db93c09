"""Fetching a dataset from a real server that breaks off, lies or goes away, and being killed meanwhile."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fetch_support
import pytest
from datasets_killing import seconds_of, ten_kills
from fetch_support import FLOWERS, Behaviour, publish, serving, spec_of, tree_of

from embeddings_assets.catalog import DATASETS
from embeddings_assets.datasets.fetch import fetch_dataset, fetch_published
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.errors import RawDataError, SplitBusyError
from embeddings_assets.io.locks import exclusive
from embeddings_assets.settings import DataPaths

IMAGES = "102flowers.tgz"


pytest_plugins = ("fetch_fixtures",)


def nothing_looks_finished(paths: DataPaths) -> bool:
    return not (paths.raw / "flowers-102").exists()


def test_a_dataset_comes_whole_and_can_be_prepared(
    published: Path, expected: dict[str, str], paths: DataPaths
) -> None:
    terms: list[str] = []
    with serving(Behaviour(published)) as address:
        spec = spec_of(published, address)
        report = fetch_published(spec, paths, on_terms=lambda spec: terms.append(spec.licence))
        assert report.status == "fetched"
        again = fetch_published(spec, paths, on_terms=lambda spec: terms.append(spec.licence))
        assert again.status == "already there"
    assert tree_of(paths.raw / "flowers-102") == expected
    assert sorted(path.name for path in paths.raw.iterdir()) == [".fetched", "flowers-102"]
    assert terms == [spec.licence], "shown once"
    record = json.loads((paths.raw / ".fetched" / "flowers-102.json").read_text())
    assert record["licence"] == spec.licence
    assert [archive["sha256"] for archive in record["archives"]] == [item.sha256 for item in spec.archives]
    assert sum(report.rows for report in prepare_dataset(FLOWERS, paths)) == 5 * (2 + 2 + 2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"flip": True}, r"gave a file with sha256 .* expected"),
        ({"html": True}, r"gave a web page instead of 102flowers\.tgz"),
        ({"status": 404}, r"the server answers 404"),
        ({"status": 503}, r"broke off \(the server answers 503"),
    ],
)
def test_wrong_content_is_refused_and_not_kept(
    published: Path, paths: DataPaths, change: dict[str, object], text: str
) -> None:
    behaviour = replace(Behaviour(published), **change)
    with serving(behaviour) as address, pytest.raises(RawDataError, match=text):
        fetch_published(spec_of(published, address), paths)
    assert nothing_looks_finished(paths)
    assert not list(paths.raw.rglob("*.part*"))


def test_no_server_at_all(published: Path, paths: DataPaths) -> None:
    with serving(Behaviour(published)) as address:
        pass
    with pytest.raises(RawDataError, match="broke off"):
        fetch_published(spec_of(published, address), paths)


def test_archives_at_hand_are_checked_and_used(
    published: Path, expected: dict[str, str], paths: DataPaths, tmp_path: Path
) -> None:
    spec = spec_of(published, "by-hand")
    before = tree_of(published)
    fetch_published(spec, paths, archives_dir=published)
    assert tree_of(paths.raw / "flowers-102") == expected
    assert tree_of(published) == before, "the user's archives stay"
    absent = (
        r"102flowers\.tgz, imagelabels\.mat, setid\.mat .* not there(.|\n)*unpacked already may be placed"
    )
    with pytest.raises(RawDataError, match=absent):
        fetch_published(spec, DataPaths.from_root(tmp_path / "other"), archives_dir=tmp_path)
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in published.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes()[:-1])
    with pytest.raises(RawDataError, match="expected"):
        fetch_published(spec, DataPaths.from_root(tmp_path / "third"), archives_dir=damaged)


def test_a_tar_that_is_called_tgz(tmp_path: Path, paths: DataPaths) -> None:
    raw = publish(tmp_path / "plain", compressed=False)
    published = tmp_path / "plain" / "published"
    fetch_published(spec_of(published, "by-hand"), paths, archives_dir=published)
    assert tree_of(paths.raw / "flowers-102") == tree_of(raw)


def test_a_folder_that_is_not_whole_is_not_overwritten(published: Path, paths: DataPaths) -> None:
    folder = paths.raw / "flowers-102"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(RawDataError, match="it is not overwritten") as refusal:
        fetch_published(spec_of(published, "by-hand"), paths, archives_dir=published)
    assert "move it away" in str(refusal.value)
    assert tree_of(folder).keys() == {"mine.txt"}


def test_archives_of_something_else(published: Path, paths: DataPaths) -> None:
    spec = spec_of(published, "by-hand")
    spec = replace(spec, archives=spec.archives[:1])
    with pytest.raises(RawDataError, match=r"do not hold the dataset: .*imagelabels\.mat"):
        fetch_published(spec, paths, archives_dir=published)
    assert nothing_looks_finished(paths)


def test_a_disk_that_is_too_small(published: Path, paths: DataPaths) -> None:
    spec = replace(spec_of(published, "by-hand"), unpacked_bytes=10**18)
    with pytest.raises(RawDataError, match=r"GB are free; .* needs about"):
        fetch_published(spec, paths, archives_dir=published)


def test_two_at_once(published: Path, paths: DataPaths) -> None:
    staging = paths.raw / ".fetch-flowers-102"
    staging.mkdir(parents=True)

    def fail() -> None:
        raise AssertionError("nobody else is here")

    with exclusive(staging, fail), pytest.raises(SplitBusyError, match="another process is fetching"):
        fetch_published(spec_of(published, "by-hand"), paths, archives_dir=published)


@pytest.mark.parametrize("dataset", ["NABirds", "Stanford Cars"])
def test_what_cannot_be_downloaded_is_explained(paths: DataPaths, dataset: str) -> None:
    with pytest.raises(RawDataError, match="cannot be downloaded by a program") as refusal:
        fetch_dataset(dataset, paths)
    spec = next(spec for spec in DATASETS if spec.name == dataset)
    assert all(archive.filename in str(refusal.value) for archive in spec.archives)
    assert f"unpacked already may be placed at {paths.raw / spec.raw_folder} instead" in str(refusal.value)
    assert f'embeddings-assets datasets fetch "{dataset}" --archives FOLDER' in str(refusal.value)
    assert not paths.raw.exists()


def test_a_dataset_of_ones_own_has_nothing_to_fetch(paths: DataPaths, published: Path) -> None:
    spec = replace(spec_of(published, "by-hand"), archives=())
    with pytest.raises(RawDataError, match="no published archives"):
        fetch_published(spec, paths, archives_dir=published)
    assert not paths.raw.exists()


def test_the_commands_fetch_and_list(
    published: Path, expected: dict[str, str], paths: DataPaths, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "embeddings_assets.cli.main", "datasets"]
    listed = subprocess.run([*command, "list"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(spec.name in listed.stdout for spec in DATASETS)
    by_hand = subprocess.run(
        [*command, "fetch", "NABirds"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert by_hand.returncode == 1
    assert "https://dl.allaboutbirds.org/nabirds" in by_hand.stderr
    assert "Traceback" not in by_hand.stderr
    for address, options in (("by-hand", ["--archives", str(published)]), ("", [])):
        root = tmp_path / f"root {len(options)}"
        with serving(Behaviour(published)) as served:
            fetched = subprocess.run(
                [
                    sys.executable,
                    fetch_support.__file__,
                    str(published),
                    address or served,
                    FLOWERS,
                    *options,
                ],
                env={"EMBEDDINGS_DATA": str(root), "PATH": ""},
                capture_output=True,
                text=True,
                check=True,
            )
        assert tree_of(root / "raw" / "flowers-102") == expected
        assert fetched.stdout == f"{FLOWERS}: fetched, {root / 'raw' / 'flowers-102'}\n"
        assert fetched.stderr.count("Licence: ") == 1


@pytest.mark.parametrize("by_hand", [False, True], ids=["fetch", "unpack"])
def test_killed_at_ten_moments(
    tmp_path: Path, published: Path, expected: dict[str, str], by_hand: bool
) -> None:
    """What was killed is gone on with; what has its name is whole, and is fetched once more."""
    if by_hand:  # enough of it to be in the middle of
        raw = publish(tmp_path / "large", extra=600)
        published, expected = tmp_path / "large" / "published", tree_of(raw)
    root, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    folder = root / "raw" / "flowers-102"
    behaviour = Behaviour(published, pause=0.002)
    with serving(behaviour) as address:
        arguments = published, "by-hand" if by_hand else address
        seconds = seconds_of(fetch_support.fetch, *arguments, undisturbed)
        assert tree_of(undisturbed / "raw" / "flowers-102") == expected
        for killed in ten_kills(seconds, fetch_support.fetch, *arguments, root):
            if folder.is_dir() and any(folder.iterdir()):
                assert tree_of(folder) == expected
            if not killed:
                shutil.rmtree(root / "raw")
        behaviour.pause = 0.0
        fetch_support.fetch(*arguments, root)
    assert tree_of(folder) == expected
    assert sorted(path.name for path in (root / "raw").iterdir()) == [".fetched", "flowers-102"]
