"""Byte-identical images, on the real samples and on made-up cases."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets_support import CopyRaw

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.errors import StoreError
from embeddings_assets.quality.duplicates import describe, find_duplicates
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest

pytest_plugins = ("datasets_fixtures",)

CUB, DOGS, FLOWERS, CARS = "CUB-200-2011", "Stanford Dogs", "Oxford 102 Flowers", "Stanford Cars"


@pytest.fixture(scope="module")
def sample(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> DataPaths:
    """The real samples of Flowers and Cars, prepared as far as they are there."""
    paths = DataPaths.from_root(tmp_path_factory.mktemp("sample"))
    for dataset in (FLOWERS, CARS):
        prepare_dataset(dataset, paths, raw_dir=shared / "data" / "raw", allow_missing=True)
    return paths


def test_the_four_pairs_of_flowers(sample: DataPaths) -> None:
    groups = find_duplicates(sample, [FLOWERS])
    assert {describe(group) for group in groups} == {
        "image_08077 (validation) = image_08067 (test)",
        "image_07307 (train) = image_07309 (test)",
        "image_07885 (test) = image_07886 (test)",
        "image_07323 (test) = image_07328 (test)",
    }
    across = {describe(group) for group in groups if group.across_splits}
    assert across == {
        "image_08077 (validation) = image_08067 (test)",
        "image_07307 (train) = image_07309 (test)",
    }
    assert not any(group.labels_differ or group.across_datasets for group in groups)


def test_the_ten_pairs_of_cars_with_different_labels(sample: DataPaths) -> None:
    groups = [group for group in find_duplicates(sample, [CARS]) if group.labels_differ]
    assert len(groups) == 10
    assert all(len(group.members) == 2 for group in groups)
    pairs = {frozenset(member.image_id for member in group.members) for group in groups}
    assert {"cars_train/00050", "cars_train/03436"} in pairs
    named = next(group for group in groups if group.members[0].image_id == "cars_train/00050")
    assert {member.label + 1 for member in named.members} == {42, 43}
    assert all(member.class_name in describe(named) for member in named.members)


def test_both_at_once_are_both_alone(sample: DataPaths) -> None:
    alone = [*find_duplicates(sample, [FLOWERS]), *find_duplicates(sample, [CARS])]
    assert find_duplicates(sample, [FLOWERS, CARS]) == alone


def test_none_among_images_that_differ(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    assert find_duplicates(paths, [CUB, DOGS]) == [], "nothing is prepared"
    prepare_dataset(CUB, paths)
    assert find_duplicates(paths, [CUB, DOGS]) == []


def test_three_of_a_kind_across_datasets(copy_raw: CopyRaw, paths: DataPaths) -> None:
    cub, dogs = copy_raw(CUB), copy_raw(DOGS)
    prepare_dataset(CUB, paths)
    file = paths.raw / open_manifest(paths, CUB, "test").slice(0, 1).to_pylist()[0]["image_path"][4:]
    other = next((dogs / "Images").rglob("*.jpg"))
    third = next(path for path in (cub / "images").rglob("*.jpg") if path != file)
    shutil.copy(file, other)
    shutil.copy(file, third)
    for dataset in (CUB, DOGS):
        prepare_dataset(dataset, paths)
    (group,) = find_duplicates(paths, [CUB, DOGS])
    assert len(group.members) == 3
    assert group.across_datasets
    assert [member.dataset for member in group.members] == [CUB, CUB, DOGS]
    assert f"({DOGS}/" in describe(group)


def test_what_is_looked_for_may_be_compared_with_more(copy_raw: CopyRaw, paths: DataPaths) -> None:
    """Groups without a member in the dataset that was asked for are not told."""
    cub, dogs = copy_raw(CUB), copy_raw(DOGS)
    first, second, *_ = sorted((dogs / "Images").rglob("*.jpg"))
    shutil.copy(first, second)
    shutil.copy(sorted((dogs / "Images").rglob("*.jpg"))[-1], next((cub / "images").rglob("*.jpg")))
    for dataset in (CUB, DOGS):
        prepare_dataset(dataset, paths)
    assert find_duplicates(paths, [CUB]) == []
    (group,) = find_duplicates(paths, [CUB], among=[CUB, FLOWERS, DOGS])
    assert group.across_datasets
    assert {member.dataset for member in group.members} == {CUB, DOGS}
    assert len(find_duplicates(paths, [DOGS], among=[CUB, DOGS])) == 2


def run_command(paths: DataPaths, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "embeddings_assets.cli.main", *arguments],
        env={"EMBEDDINGS_DATA": str(paths.raw.parent), "PATH": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_commands_compare_with_what_was_prepared_before(copy_raw: CopyRaw, paths: DataPaths) -> None:
    cub, dogs = copy_raw(CUB), copy_raw(DOGS)
    shutil.copy(next((dogs / "Images").rglob("*.jpg")), next((cub / "images").rglob("*.jpg")))
    prepare_dataset(CUB, paths)
    nothing = run_command(paths, "datasets", "duplicates", DOGS)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert f"nothing of {DOGS} is prepared" in nothing.stderr
    prepared = run_command(paths, "prepare", "--dataset", DOGS)
    assert "1 groups of identical images: 0 across splits, 1 across datasets" in prepared.stdout
    assert "Across datasets: 1" in run_command(paths, "datasets", "duplicates", DOGS).stdout


def test_a_damaged_manifest_takes_no_report_away(copy_raw: CopyRaw, paths: DataPaths) -> None:
    """It is an error where it belongs to a dataset that was asked for."""
    copy_raw(CUB)
    first, second, *_ = sorted((copy_raw(DOGS) / "Images").rglob("*.jpg"))
    shutil.copy(first, second)
    prepare_dataset(CUB, paths)
    damaged = paths.processed_split(CUB, "test") / "manifest.parquet"
    damaged.write_bytes(b"PAR1")
    prepared = run_command(paths, "prepare", "--dataset", DOGS)
    assert prepared.returncode == 0, "the damaged one is not the one that was prepared"
    assert "1 groups of identical images" in prepared.stdout
    for asked, code, said in ((DOGS, 0, "not compared"), ("all", 1, "Error")):
        shown = run_command(paths, "datasets", "duplicates", asked)
        assert (shown.returncode, shown.stdout.count(" = ")) == (code, 1)
        assert f"{said}: {damaged}" in shown.stderr
        data = run_command(paths, "datasets", "duplicates", asked, "--json")
        assert (data.returncode, len(json.loads(data.stdout))) == (code, 1)
        assert f"{said}: {damaged}" in data.stderr
    assert f"not compared: {damaged}" in prepared.stderr
    assert f'embeddings-assets prepare --dataset "{CUB}"' in prepared.stderr


def test_a_damaged_manifest_is_no_absent_one(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    prepare_dataset(CUB, paths)
    (paths.processed_split(CUB, "test") / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError):
        find_duplicates(paths, [CUB])


def test_the_command_names_them(sample: DataPaths) -> None:
    shown = run_command(sample, "datasets", "duplicates", FLOWERS)
    assert "Across splits: 2" in shown.stdout
    assert "image_07307 (train) = image_07309 (test)" in shown.stdout
    assert "Within a split: 2" in shown.stdout
    data = run_command(sample, "datasets", "duplicates", "--json")
    assert sum(len(group["members"]) for group in json.loads(data.stdout)) >= 28


def test_prepare_tells_how_many_there_are(shared: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "embeddings_assets.cli.main", "prepare", "--dataset", FLOWERS]
    options = ["--raw-dir", str(shared / "data" / "raw"), "--allow-missing"]
    shown = subprocess.run(
        [*command, *options], cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True, check=True
    )
    assert "4 groups of identical images: 2 across splits, 0 across datasets" in shown.stdout
