"""Real raw folders: whole ones are accepted, partial ones refused with a count and accepted when told to."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.status import raw_status
from embeddings_assets.errors import RawDataError
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest

pytest_plugins = ("datasets_fixtures",)


@pytest.fixture(scope="module")
def raw(shared: Path) -> Path:
    return shared / "data" / "raw"


@pytest.mark.parametrize(
    ("dataset", "train_and_validation", "test"),
    [("CUB-200-2011", 102, 102), ("FGVC-Aircraft", 32, 16), ("NABirds", 50, 50)],
)
def test_whole_folders_are_accepted(
    raw: Path, paths: DataPaths, dataset: str, train_and_validation: int, test: int
) -> None:
    status = raw_status(dataset, paths, raw)
    assert (status.state, status.found) == ("present", status.listed)
    assert status.listed == train_and_validation + test
    reports = {report.split: report for report in prepare_dataset(dataset, paths, raw_dir=raw)}
    assert reports["train"].rows + reports["validation"].rows == train_and_validation
    assert reports["test"].rows == test
    assert all(not report.ledger for report in reports.values())


@pytest.mark.parametrize(
    ("dataset", "found", "listed"),
    [("Oxford 102 Flowers", 619, 8189), ("Stanford Cars", 316, 16185), ("Stanford Dogs", 720, 20580)],
)
def test_partial_folders_are_refused_with_a_count(
    raw: Path, paths: DataPaths, dataset: str, found: int, listed: int
) -> None:
    status = raw_status(dataset, paths, raw)
    assert (status.state, status.found, status.listed) == ("partial", found, listed)
    with pytest.raises(RawDataError) as refusal:
        prepare_dataset(dataset, paths, raw_dir=raw)
    assert f"{listed - found:,} of {listed:,} listed images are missing" in str(refusal.value)
    assert "--allow-missing" in str(refusal.value)
    assert not paths.processed.exists(), "nothing is written before the refusal"

    reports = prepare_dataset(dataset, paths, raw_dir=raw, allow_missing=True)
    assert sum(report.rows for report in reports) == found
    assert sum(report.ledger["missing"] for report in reports) == listed - found
    assert all(report.rows + report.ledger["missing"] == report.listed for report in reports)


def test_manifest_of_a_raw_folder_elsewhere(raw: Path, paths: DataPaths) -> None:
    prepare_dataset("CUB-200-2011", paths, raw_dir=raw)
    manifest = open_manifest(paths, "CUB-200-2011", "test")
    row = manifest.slice(0, 1).to_pylist()[0]
    assert row["image_id"] == "1"
    assert row["image_path"] == (
        "raw/CUB_200_2011/images/001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg"
    )
    assert manifest.footer["raw_folder"] == str((raw / "CUB_200_2011").resolve())
    assert manifest.resolve(row["image_path"]).stat().st_size == row["bytes"]
    again = prepare_dataset("CUB-200-2011", paths)
    assert [report.changed for report in again] == [False] * 3, "the recorded folder is found again"


def test_identical_flowers_have_identical_digests(raw: Path, paths: DataPaths) -> None:
    prepare_dataset("Oxford 102 Flowers", paths, raw_dir=raw, allow_missing=True)
    digests = {}
    for split in ("train", "validation", "test"):
        table = pq.read_table(paths.processed_split("Oxford 102 Flowers", split) / "manifest.parquet")
        digests |= dict(zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    assert len(digests) == 619
    for one, other in ((8067, 8077), (7309, 7307), (7886, 7885), (7323, 7328)):
        assert digests[f"image_{one:05d}"] == digests[f"image_{other:05d}"]
    assert len(set(digests.values())) == 619 - 4
