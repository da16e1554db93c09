"""Going on with a download that broke off, and when not to."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fetch_support import Behaviour, serving, spec_of, tree_of

from embeddings_assets.datasets.fetch import fetch_published
from embeddings_assets.errors import RawDataError
from embeddings_assets.settings import DataPaths

IMAGES = "102flowers.tgz"

pytest_plugins = ("fetch_fixtures",)


def test_a_download_that_breaks_off_goes_on(
    published: Path, expected: dict[str, str], paths: DataPaths
) -> None:
    behaviour = Behaviour(published, break_off_after=[10_000, 10_000])
    with serving(behaviour) as address:
        fetch_published(spec_of(published, address), paths)
    ranges = [asked for path, asked in behaviour.asked if path.endswith(IMAGES)]
    assert ranges == [None, "bytes=10000-", "bytes=20000-"]
    assert tree_of(paths.raw / "flowers-102") == expected


def test_a_server_that_always_breaks_off_is_given_up_and_the_part_is_kept(
    published: Path, expected: dict[str, str], paths: DataPaths
) -> None:
    with serving(Behaviour(published, break_off_after=[5000, *[0] * 20])) as address:
        with pytest.raises(RawDataError, match=r"broke off .* 5,000 bytes are kept"):
            fetch_published(spec_of(published, address), paths)
        assert not (paths.raw / "flowers-102").exists()
    behaviour = Behaviour(published)
    with serving(behaviour) as address:
        fetch_published(spec_of(published, address), paths)
    assert behaviour.asked[0] == (f"/{IMAGES}", "bytes=5000-")
    assert tree_of(paths.raw / "flowers-102") == expected


def test_a_server_that_begins_again_and_again_is_given_up(published: Path, paths: DataPaths) -> None:
    """It ignores ranges and breaks off now later, now sooner: more than before is not always progress."""
    behaviour = Behaviour(published, ranges=False, break_off_after=[5000, 4000] * 20)
    with serving(behaviour) as address, pytest.raises(RawDataError, match="broke off"):
        fetch_published(spec_of(published, address), paths)
    assert len(behaviour.asked) <= 6


@pytest.mark.parametrize("change", [{"ranges": False}, {"etag": '"2"'}, {"etag": 'W/"1"'}])
def test_a_part_of_another_file_is_not_gone_on_with(
    published: Path, expected: dict[str, str], paths: DataPaths, change: dict[str, object]
) -> None:
    behaviour = Behaviour(published, break_off_after=[5000, *[0] * 20])
    with serving(behaviour) as address:
        with pytest.raises(RawDataError):
            fetch_published(spec_of(published, address), paths)
        behaviour.break_off_after.clear()
        for name, value in change.items():
            setattr(behaviour, name, value)
        fetch_published(spec_of(published, address), paths)
    assert tree_of(paths.raw / "flowers-102") == expected


def test_a_server_that_does_not_tell_the_length(
    published: Path, expected: dict[str, str], paths: DataPaths
) -> None:
    behaviour = Behaviour(published, length=False)
    with serving(behaviour) as address:
        fetch_published(spec_of(published, address), paths)
    assert tree_of(paths.raw / "flowers-102") == expected


def test_a_part_as_long_as_the_file_is_begun_again(
    published: Path, expected: dict[str, str], paths: DataPaths
) -> None:
    leave_a_part(paths, b"x" * (published / IMAGES).stat().st_size)
    with serving(Behaviour(published)) as address:
        fetch_published(spec_of(published, address), paths)
    assert tree_of(paths.raw / "flowers-102") == expected


def leave_a_part(paths: DataPaths, content: bytes) -> Path:
    """What a run leaves that is killed while it downloads the images."""
    staging = paths.raw / ".fetch-flowers-102"
    staging.mkdir(parents=True)
    (staging / f"{IMAGES}.part").write_bytes(content)
    (staging / f"{IMAGES}.part.json").write_text(json.dumps({"validator": '"1"'}))
    return staging


@pytest.mark.parametrize("size_is_published", [True, False])
def test_a_complete_part_is_checked_and_not_downloaded_again(
    published: Path, expected: dict[str, str], paths: DataPaths, size_is_published: bool
) -> None:
    """A run was killed between the last byte and the end of the check."""
    content = (published / IMAGES).read_bytes()
    leave_a_part(paths, content)
    behaviour = Behaviour(published)
    with serving(behaviour) as address:
        spec = spec_of(published, address)
        if not size_is_published:
            spec = replace(spec, archives=(replace(spec.archives[0], bytes=None), *spec.archives[1:]))
        fetch_published(spec, paths)
    asked = [asked for path, asked in behaviour.asked if path.endswith(IMAGES)]
    assert asked == ([] if size_is_published else [f"bytes={len(content)}-"])
    assert tree_of(paths.raw / "flowers-102") == expected


def test_an_interrupted_fetch_goes_on_where_the_disk_has_just_enough_room(
    published: Path, expected: dict[str, str], paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part, and what a killed run has unpacked, are not counted a second time."""
    staging = leave_a_part(paths, (published / IMAGES).read_bytes()[:20_000])
    with serving(Behaviour(published)) as address:
        spec = spec_of(published, address)
        room = spec.unpacked_bytes + sum(spec.bytes_of(archive) for archive in spec.archives)

        def disk_usage(folder: Path) -> SimpleNamespace:
            files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]
            return SimpleNamespace(free=room - sum(file.stat().st_size for file in files))

        monkeypatch.setattr(shutil, "disk_usage", disk_usage)
        for missing in (1, 0):
            (staging / "tree").mkdir()
            (staging / "tree" / "half").write_bytes(bytes(4_000_000))
            room -= missing
            with pytest.raises(RawDataError, match="GB are free") if missing else nullcontext():
                fetch_published(spec, paths)
            room += missing
    assert tree_of(paths.raw / "flowers-102") == expected
