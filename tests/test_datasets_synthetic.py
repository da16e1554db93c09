"""Synthetic datasets have the published structure, the same readers read them, real data is never touched."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets_support import CLASSES, NAMES, TEST, TRAIN, ReadFolder
from PIL import Image
from scipy.io import loadmat

from embeddings_assets.catalog import get_dataset
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.synthetic.writer import remove_synthetic, write_synthetic
from embeddings_assets.errors import RawDataError, SettingsError
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest

pytest_plugins = ("datasets_fixtures",)

WITH_VALIDATION = {"train": TEST * CLASSES, "validation": TEST * CLASSES, "test": TEST * CLASSES}
HELD_OUT = {"train": (TRAIN - 1) * CLASSES, "validation": CLASSES, "test": TEST * CLASSES}


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(synthetic_raw: Path, paths: DataPaths, name: str) -> None:
    reports = prepare_dataset(name, paths, raw_dir=synthetic_raw, strict=True)
    official_validation = name in ("FGVC-Aircraft", "Oxford 102 Flowers")
    assert {report.split: report.rows for report in reports} == (
        WITH_VALIDATION if official_validation else HELD_OUT
    )
    assert all(report.classes == CLASSES for report in reports)
    manifests = [open_manifest(paths, name, report.split) for report in reports]
    rows = [row for manifest in manifests for row in manifest.slice(0, manifest.rows).to_pylist()]
    assert len({row["sha256"] for row in rows}) == len(rows), "no two images are the same"
    assert {"RGB", "L"} <= {row["mode"] for row in rows}
    assert {(row["width"] > row["height"]) - (row["width"] < row["height"]) for row in rows} == {-1, 0, 1}
    assert all(160 <= side < 480 for row in rows for side in (row["width"], row["height"]))


@pytest.mark.parametrize("name", NAMES)
def test_same_arguments_give_the_same_bytes(synthetic_raw: Path, tmp_path: Path, name: str) -> None:
    counts = {"classes": CLASSES, "train_per_class": TRAIN, "test_per_class": TEST}
    again = write_synthetic(tmp_path, name, **counts)
    expected = digests(synthetic_raw / again.name)
    assert digests(again) == expected
    other = write_synthetic(tmp_path, name, **counts, seed=1)
    assert other == again
    assert set(digests(other).values()).isdisjoint(
        {digest for path, digest in expected.items() if path.lower().endswith(".jpg")}
    )


def structure(value: Any) -> Any:
    """Names, orientation and kinds of a .mat variable, without its length and values."""
    if isinstance(value, np.ndarray):
        first = value.flat[0] if value.size else None
        shape = tuple("n" if side > 1 else side for side in value.shape)
        if value.dtype.names:
            return shape, {name: structure(first[name]) for name in value.dtype.names}
        return shape, value.dtype.kind, structure(first) if value.dtype == object else None
    return type(value).__name__


@pytest.mark.parametrize("name", ["Oxford 102 Flowers", "Stanford Cars", "Stanford Dogs"])
def test_mat_files_have_the_published_structure(annotations: Path, synthetic_raw: Path, name: str) -> None:
    folder = get_dataset(name).raw_folder
    compared = []
    for path in sorted((synthetic_raw / folder).rglob("*.mat")):
        published = annotations / folder / path.relative_to(synthetic_raw / folder)
        ours, theirs = loadmat(path), loadmat(published)
        names = {key for key in theirs if not key.startswith("__")}
        assert {key for key in ours if not key.startswith("__")} == names
        for key in names:
            assert structure(ours[key]) == structure(theirs[key]), (path.name, key)
        compared.append(path.name)
    assert len(compared) == {"Oxford 102 Flowers": 2, "Stanford Cars": 4, "Stanford Dogs": 3}[name]


@pytest.mark.parametrize("name", ["CUB-200-2011", "FGVC-Aircraft", "NABirds"])
def test_text_lists_are_those_of_the_published_set(annotations: Path, synthetic_raw: Path, name: str) -> None:
    folder = get_dataset(name).raw_folder
    published = {path.relative_to(annotations / folder) for path in (annotations / folder).rglob("*.txt")}
    ours = {path.relative_to(synthetic_raw / folder) for path in (synthetic_raw / folder).rglob("*.txt")}
    assert ours == published | {Path("SYNTHETIC.txt")}


def test_oddities_of_the_real_sets(tmp_path: Path, read_folder: ReadFolder) -> None:
    def written(name: str) -> Any:
        return read_folder(name, write_synthetic(tmp_path, name, train_per_class=3, test_per_class=2))

    assert "F-16A/B" in written("FGVC-Aircraft").class_names
    cars = written("Stanford Cars").class_names
    assert "Ram C/V Cargo Van Minivan 2012" in cars
    assert list(cars) != sorted(cars)
    birds = written("NABirds")
    assert [record.class_id for record in birds.records] != [str(record.label) for record in birds.records]
    assert Counter(record.path[-4:] for record in birds.records).keys() == {".jpg", ".JPG"}
    dogs = written("Stanford Dogs")
    assert "black-and-tan coonhound" in dogs.class_names
    odd = next(record for record in dogs.records if record.image_id == "n02105855_2933")
    with Image.open(dogs.folder / odd.path) as image:
        assert (image.format, image.mode) == ("PNG", "RGBA")


def test_classes_differ_visibly(synthetic_raw: Path, read_folder: ReadFolder) -> None:
    """The saturated pixels of colour images: their mean hue alone names the class."""
    listing = read_folder("CUB-200-2011", synthetic_raw / "CUB_200_2011")
    hues: dict[int, list[float]] = {}
    for record in listing.records:
        with Image.open(listing.folder / record.path) as image:
            if image.mode != "RGB":
                continue
            hue, saturation, _ = (np.asarray(band, dtype=float) for band in image.convert("HSV").split())
        angle = 2 * np.pi * hue[saturation > 150] / 256
        hues.setdefault(record.label, []).append(float(np.angle(np.exp(1j * angle).mean())))
    means = {label: np.angle(np.exp(1j * np.array(angles)).mean()) for label, angles in hues.items()}
    for label, angles in hues.items():
        for angle in angles:
            nearest = min(means, key=lambda other: abs(np.angle(np.exp(1j * (angle - means[other])))))
            assert nearest == label


def test_unmarked_folder_is_never_written_or_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "CUB_200_2011"
    folder.mkdir()
    (folder / "images.txt").write_text("1 a/b.jpg\n")
    with pytest.raises(RawDataError, match="no SYNTHETIC"):
        write_synthetic(tmp_path, "CUB-200-2011")
    assert remove_synthetic(tmp_path, "CUB-200-2011") is False
    assert digests(folder).keys() == {"images.txt"}


def test_rewriting_keeps_replaces_and_removes(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path, "Stanford Dogs", classes=2, train_per_class=2, test_per_class=1)
    listed = folder / "file_list.mat"
    before = listed.stat().st_mtime_ns
    write_synthetic(tmp_path, "Stanford Dogs", classes=2, train_per_class=2, test_per_class=1)
    assert listed.stat().st_mtime_ns == before, "the same arguments leave it as it is"
    next(folder.rglob("*.jpg")).unlink()
    write_synthetic(tmp_path, "Stanford Dogs", classes=2, train_per_class=2, test_per_class=1)
    assert len(list(folder.rglob("*.jpg"))) == 6, "a file that went missing is restored"
    write_synthetic(tmp_path, "Stanford Dogs", classes=3, train_per_class=2, test_per_class=1)
    assert len(list(folder.rglob("*.jpg"))) == 9, "other arguments replace it"
    assert remove_synthetic(tmp_path, "Stanford Dogs") is True
    assert list(tmp_path.iterdir()) == []
    assert remove_synthetic(tmp_path, "Stanford Dogs") is False


@pytest.mark.parametrize(
    "counts", [{"classes": 0}, {"classes": 103}, {"train_per_class": 1}, {"test_per_class": 0}]
)
def test_counts_out_of_range(tmp_path: Path, counts: dict[str, int]) -> None:
    with pytest.raises(SettingsError):
        write_synthetic(tmp_path, "CUB-200-2011", **counts)


@pytest.mark.parametrize("name", NAMES)
def test_more_classes_than_real_names(tmp_path: Path, read_folder: ReadFolder, name: str) -> None:
    folder = write_synthetic(tmp_path, name, classes=11, train_per_class=2, test_per_class=1)
    assert len({record.class_name for record in read_folder(name, folder).records}) == 11
