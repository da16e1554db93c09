"""What is proved of a prepared split, where images are missing or cannot be used."""

from pathlib import Path

from datasets_support import CLASSES, TEST, TRAIN, CopyRaw

from embeddings_assets.catalog import SPLITS
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.quality.manifests import ManifestFinding, check_manifest
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest

pytest_plugins = ("datasets_fixtures",)

CUB, FLOWERS = "CUB-200-2011", "Oxford 102 Flowers"


def counts(paths: DataPaths, dataset: str, split: str) -> ManifestFinding:
    return check_manifest(paths, dataset, split, "official_counts", max_bad_share=0.01)


def test_a_partial_copy_does_not_have_the_official_counts(shared: Path, paths: DataPaths) -> None:
    """Its lists are whole, its images are not."""
    prepare_dataset(FLOWERS, paths, raw_dir=shared / "data" / "raw", allow_missing=True)
    for split, official in (("train", 1020), ("validation", 1020), ("test", 6149)):
        rows = open_manifest(paths, FLOWERS, split).rows
        finding = counts(paths, FLOWERS, split)
        assert (finding.passed, finding.only_warn) == (False, True)
        assert finding.expected == f"{official:,}"
        assert finding.found == f"{rows:,} are there, {official - rows:,} of {official:,} are missing"
        assert f'embeddings-assets prepare --dataset "{FLOWERS}"' in finding.remedy
        assert str(shared.resolve()) in finding.remedy


def test_what_is_missing_of_validation_is_missing_of_train(copy_raw: CopyRaw, paths: DataPaths) -> None:
    """As many as listed are there, but for the one; an unusable image is there."""
    folder = copy_raw(CUB)
    (folder / "SYNTHETIC.txt").unlink()
    prepare_dataset(CUB, paths)
    rows = open_manifest(paths, CUB, "validation").slice(0, 2).to_pylist()
    gone, bad = (paths.raw / row["image_path"].removeprefix("raw/") for row in rows)
    bad.write_bytes(b"text")
    prepare_dataset(CUB, paths, max_bad_share=0.5)
    listed = CLASSES * TRAIN
    for split in ("train", "validation"):
        assert counts(paths, CUB, split).found == f"{listed} listed"
    gone.unlink()
    prepare_dataset(CUB, paths, allow_missing=True, max_bad_share=0.5)
    for split in ("train", "validation"):
        finding = counts(paths, CUB, split)
        assert not finding.passed
        assert finding.found == f"{listed - 1} are there, 1 of {listed} are missing"
    assert counts(paths, CUB, "test").found == f"{CLASSES * TEST} listed"


def test_drawn_images_and_half_prepared_ones_can_be_missing_too(copy_raw: CopyRaw, paths: DataPaths) -> None:
    folder = copy_raw(CUB)
    prepare_dataset(CUB, paths)
    assert all(counts(paths, CUB, split).passed for split in SPLITS)
    path = open_manifest(paths, CUB, "train").slice(0, 1).to_pylist()[0]["image_path"]
    (paths.raw / path.removeprefix("raw/")).unlink()
    prepare_dataset(CUB, paths, allow_missing=True)
    assert "these images are drawn" in counts(paths, CUB, "train").found
    assert not counts(paths, CUB, "train").passed
    (folder / "SYNTHETIC.txt").unlink()
    for file in paths.processed_split(CUB, "validation").iterdir():
        file.unlink()
    finding = counts(paths, CUB, "train")
    assert "not prepared yet" in finding.expected
    assert not finding.passed
