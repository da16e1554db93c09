"""The doctor's report on data in the states in which people hold it; it changes nothing."""

import subprocess
import sys

import pytest
from datasets_support import CopyRaw

from embeddings_assets.catalog import DATASETS, MODELS
from embeddings_assets.cli.doctor import Line, examine
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.settings import DataPaths, Settings

pytest_plugins = ("datasets_fixtures",)

CUB, DOGS, FLOWERS, NABIRDS = "CUB-200-2011", "Stanford Dogs", "Oxford 102 Flowers", "NABirds"


@pytest.fixture
def settings(paths: DataPaths) -> Settings:
    root = paths.raw.parent
    return Settings(data_root=root, weights=str(root / "weights"))


def lines_of(settings: Settings) -> dict[str, Line]:
    return {line.item: line for line in examine(settings)}


def test_present_partial_wrong_and_missing(copy_raw: CopyRaw, paths: DataPaths, settings: Settings) -> None:
    copy_raw(CUB)
    for image in sorted((copy_raw(FLOWERS) / "jpg").iterdir())[:3]:
        image.unlink()
    (copy_raw(DOGS) / "file_list.mat").write_bytes(b"<html>")
    before = sorted(paths.raw.parent.rglob("*"))
    lines = lines_of(settings)
    assert sorted(paths.raw.parent.rglob("*")) == before
    assert {name: lines[name].state for name in (CUB, FLOWERS, DOGS, NABIRDS)} == {
        CUB: "ready",
        FLOWERS: "partial",
        DOGS: "wrong",
        NABIRDS: "missing",
    }
    assert "27 of 30 images" in lines[FLOWERS].found
    assert lines[FLOWERS].remedy.endswith(f'prepare --dataset "{FLOWERS}" --allow-missing')
    assert "file_list.mat" in lines[DOGS].found
    assert f'datasets fetch "{DOGS}"' in lines[DOGS].remedy
    assert lines[NABIRDS].remedy.startswith(f'embeddings-assets datasets fetch "{NABIRDS}" --archives DIR')
    assert "drawn data of the demo" in lines[CUB].found
    assert "train 30 instead of 5,994" in lines[CUB].found
    assert "0 of 3 splits prepared" in lines[CUB].found
    assert lines[CUB].remedy == f'embeddings-assets prepare --dataset "{CUB}"'


def test_lists_without_an_image(copy_raw: CopyRaw, settings: Settings) -> None:
    folder = copy_raw(FLOWERS)
    for image in (folder / "jpg").iterdir():
        image.unlink()
    line = lines_of(settings)[FLOWERS]
    assert (line.state, line.remedy) == ("partial", f"complete {folder}")
    assert "0 of 30 images" in line.found


def test_prepared_splits_are_counted_and_damaged_ones_named(
    copy_raw: CopyRaw, paths: DataPaths, settings: Settings
) -> None:
    copy_raw(CUB)
    prepare_dataset(CUB, paths, splits=["test"])
    assert "1 of 3 splits prepared" in lines_of(settings)[CUB].found
    prepare_dataset(CUB, paths)
    assert "3 of 3 splits prepared" in lines_of(settings)[CUB].found
    assert lines_of(settings)[CUB].remedy == ""
    manifest = paths.processed_split(CUB, "test") / "manifest.parquet"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    line = lines_of(settings)[CUB]
    assert line.state == "wrong"
    assert str(manifest) in line.found
    assert line.remedy == f'embeddings-assets prepare --dataset "{CUB}"'


def test_every_dataset_model_and_the_machine_have_a_line(settings: Settings) -> None:
    lines = lines_of(settings)
    expected = {*(spec.name for spec in DATASETS), *(spec.name for spec in MODELS)}
    assert set(lines) == expected | {"disk", "memory", "device", "packages", "self-test"}
    for line in lines.values():
        assert line.remedy or line.state in ("ready", "note")
    assert "for 6 missing datasets" in lines["disk"].found
    floats = sum(sum(spec.counts.values()) for spec in DATASETS) * (512 + 768 + 512 + 512) * 4
    assert f"{floats / 1e9:.1f} GB for all embeddings" in lines["disk"].found
    assert not settings.data_root.exists()


def test_the_room_for_archives_is_what_fetch_asks_for(settings: Settings) -> None:
    """Where a size is not published, as for Aircraft, that of the unpacked dataset stands for it."""
    raw = sum(
        spec.unpacked_bytes + sum(archive.bytes or spec.unpacked_bytes for archive in spec.archives)
        for spec in DATASETS
    )
    assert f"about {raw / 1e9:.1f} GB needed for 6 missing" in lines_of(settings)["disk"].found


@pytest.mark.parametrize("columns", ["80", "160"])
def test_the_command_fits_the_screen(settings: Settings, copy_raw: CopyRaw, columns: str) -> None:
    copy_raw(CUB)
    shown = subprocess.run(
        [sys.executable, "-m", "embeddings_assets.cli.main", "doctor"],
        env={"EMBEDDINGS_DATA": str(settings.data_root), "PATH": "", "COLUMNS": columns},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(shown.stdout.splitlines()) <= 60
    assert 'embeddings-assets weights fetch "Franca"' in shown.stdout
    assert "Traceback" not in shown.stderr
