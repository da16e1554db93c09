"""Raw datasets to manifests: rows, ledger, policies, byte-identity, and that a failure changes nothing."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets_support import CLASSES, TEST, CopyRaw, listing_of

from embeddings_assets.catalog import SPLITS
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.report import PrepareReport
from embeddings_assets.datasets.seen import SEEN_NAME
from embeddings_assets.datasets.splits import HoldOut
from embeddings_assets.datasets.status import raw_status
from embeddings_assets.errors import (
    BadImagesError,
    EmbeddingsError,
    RawDataError,
    SettingsError,
    UnknownNameError,
)
from embeddings_assets.io.locks import exclusive
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest

pytest_plugins = ("datasets_fixtures",)

CUB = "CUB-200-2011"
FLOWERS = "Oxford 102 Flowers"


def written(paths: DataPaths) -> dict[str, bytes]:
    """Every file below the processed folder but the memory of what was seen, which holds times."""
    files = sorted(path for path in paths.processed.rglob("*") if path.is_file() and path.name != SEEN_NAME)
    return {str(path.relative_to(paths.processed)): path.read_bytes() for path in files}


def rows_of(paths: DataPaths, dataset: str, split: str) -> list[dict[str, object]]:
    manifest = open_manifest(paths, dataset, split)
    rows: list[dict[str, object]] = manifest.slice(0, manifest.rows).to_pylist()
    return rows


def test_a_run_cut_off_between_ledger_and_manifest_loses_no_option(
    copy_raw: CopyRaw, paths: DataPaths, tmp_path: Path
) -> None:
    elsewhere = shutil.move(copy_raw(CUB), tmp_path / "elsewhere")
    rule = HoldOut(share=0.3, seed=4)
    prepare_dataset(CUB, paths, raw_dir=elsewhere, hold_out=rule, crop="bounding_box")
    before = written(paths)
    for split in SPLITS:
        (paths.processed_split(CUB, split) / "_ledger.parquet").unlink()
    prepare_dataset(CUB, paths)
    assert written(paths) == before


def test_a_dataset_that_is_not_there_is_told_as_it_is_and_no_folder_is_made(paths: DataPaths) -> None:
    with pytest.raises(RawDataError) as refused:
        prepare_dataset(CUB, paths)
    assert str(refused.value).count("no such folder") == 2
    assert not paths.processed.parent.exists()


def test_options_are_decided_when_the_folder_is_free(
    copy_raw: CopyRaw, paths: DataPaths, tmp_path: Path
) -> None:
    """Who waits for another run does not undo what it was asked for."""
    copy_raw(CUB)
    prepare_dataset(CUB, paths, crop="bounding_box")
    place = paths.processed / CUB
    shutil.move(place, tmp_path / "made by the other")
    place.mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with exclusive(place, lambda: None):
            waiting = pool.submit(prepare_dataset, CUB, paths)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1)
            shutil.copytree(tmp_path / "made by the other", place, dirs_exist_ok=True)
        waiting.result(timeout=60)
    assert open_manifest(paths, CUB, "train").crop == "bounding_box"


def test_manifest_rows(copy_raw: CopyRaw, paths: DataPaths) -> None:
    folder = copy_raw(CUB)
    reports = prepare_dataset(CUB, paths)
    assert [report.split for report in reports] == list(SPLITS)
    listing = listing_of(CUB, paths)
    by_id = {record.image_id: record for record in listing.records}
    seen: list[str] = []
    for split in SPLITS:
        manifest = open_manifest(paths, CUB, split)
        assert manifest.footer["raw_folder"] is None
        assert manifest.footer["options"] == {"hold_out": {"share": 0.1, "seed": 0}, "crop": "none"}
        ids = []
        for row in rows_of(paths, CUB, split):
            record = by_id[row["image_id"]]
            assert row["image_path"] == f"raw/CUB_200_2011/{record.path}"
            file = manifest.resolve(row["image_path"])
            assert file == folder / record.path
            assert row["bytes"] == file.stat().st_size
            assert row["official_split"] == record.official_split == ("test" if split == "test" else "train")
            assert (row["label"], row["class_name"]) == (record.label, record.class_name)
            ids.append(int(row["image_id"]))
        assert ids == sorted(ids), "the order of images.txt"
        seen += map(str, ids)
    assert sorted(seen) == sorted(by_id)


def test_official_validation_is_recorded_as_such(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(FLOWERS)
    reports = prepare_dataset(FLOWERS, paths)
    assert [report.official for report in reports] == [1020, 1020, 6149]
    assert open_manifest(paths, FLOWERS, "validation").footer["options"] == {"hold_out": None, "crop": "none"}
    assert {row["official_split"] for row in rows_of(paths, FLOWERS, "validation")} == {"validation"}


def test_same_inputs_give_the_same_bytes(copy_raw: CopyRaw, paths: DataPaths, tmp_path: Path) -> None:
    copy_raw(CUB)
    first = prepare_dataset(CUB, paths, workers=1)
    before = written(paths)
    again = prepare_dataset(CUB, paths, workers=7)
    assert written(paths) == before
    assert [report.changed for report in first] == [True] * 3
    assert [report.changed for report in again] == [False] * 3
    elsewhere = DataPaths.from_root(tmp_path / "moved")
    shutil.copytree(paths.raw, elsewhere.raw)
    prepare_dataset(CUB, elsewhere)
    assert written(elsewhere) == before, "nothing of the machine's paths is in the files"


def test_raw_folder_elsewhere_gives_the_same_fingerprints(
    copy_raw: CopyRaw, paths: DataPaths, synthetic_raw: Path
) -> None:
    copy_raw(CUB)
    here = prepare_dataset(CUB, paths)
    shutil.rmtree(paths.raw)
    for raw_dir in (synthetic_raw, synthetic_raw / "CUB_200_2011", None):
        there = prepare_dataset(CUB, paths, raw_dir=raw_dir)
        assert [report.fingerprint for report in there] == [report.fingerprint for report in here]
        recorded = open_manifest(paths, CUB, "train").footer["raw_folder"]
        assert recorded == str(synthetic_raw / "CUB_200_2011")


@pytest.mark.parametrize("name", ["CUB_200_2011/CUB_200_2011", "mine/birds"])
def test_a_folder_inside_the_raw_folder_moves_with_the_data_root(
    paths: DataPaths, synthetic_raw: Path, tmp_path: Path, name: str
) -> None:
    """It is recorded by its name below `raw`."""
    shutil.copytree(synthetic_raw / "CUB_200_2011", paths.raw / name)
    raw_dir = None if name.startswith("CUB") else paths.raw / name
    prepare_dataset(CUB, paths, raw_dir=raw_dir)
    moved = DataPaths.from_root(paths.raw.parent.rename(tmp_path / "moved"))
    manifest = open_manifest(moved, CUB, "train")
    assert manifest.footer["raw_folder"] == name
    assert manifest.raw_folder == moved.raw / name
    for row in rows_of(moved, CUB, "train"):
        assert manifest.resolve(str(row["image_path"])).is_relative_to(moved.raw / name)
        assert manifest.resolve(str(row["image_path"])).is_file()
    assert not any(report.changed for report in prepare_dataset(CUB, moved)), "found where it was recorded"


def test_a_changed_image_changes_only_its_split(copy_raw: CopyRaw, paths: DataPaths) -> None:
    folder = copy_raw(FLOWERS)
    prepare_dataset(FLOWERS, paths)
    path = paths.raw / str(rows_of(paths, FLOWERS, "test")[0]["image_path"]).removeprefix("raw/")
    path.write_bytes(path.read_bytes() + b"\x00")
    changed = {report.split: report.changed for report in prepare_dataset(FLOWERS, paths)}
    assert changed == {"train": False, "validation": False, "test": True}
    assert folder in path.parents


def test_only_the_wanted_splits_are_written(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    calls: list[tuple[int, int]] = []
    reports = prepare_dataset(CUB, paths, splits=["test"], progress=lambda *done: calls.append(done))
    assert [report.split for report in reports] == ["test"]
    assert [path.name for path in (paths.processed / CUB).iterdir() if path.is_dir()] == ["test"]
    assert calls == [(done, TEST * CLASSES) for done in range(1, TEST * CLASSES + 1)]


def test_hold_out_options_reach_the_manifest(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    prepare_dataset(CUB, paths)
    before = [row["image_id"] for row in rows_of(paths, CUB, "validation")]
    prepare_dataset(CUB, paths, hold_out=HoldOut(share=0.5, seed=3))
    after = [row["image_id"] for row in rows_of(paths, CUB, "validation")]
    assert (len(before), len(after)) == (CLASSES, 3 * CLASSES)
    assert open_manifest(paths, CUB, "test").footer["options"] == {
        "hold_out": {"share": 0.5, "seed": 3},
        "crop": "none",
    }


def test_missing_images_do_not_move_the_hold_out(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    prepare_dataset(CUB, paths)
    held = {row["image_id"] for row in rows_of(paths, CUB, "validation")}
    gone = rows_of(paths, CUB, "train")[0]
    (paths.raw / str(gone["image_path"]).removeprefix("raw/")).unlink()
    reports = prepare_dataset(CUB, paths, allow_missing=True)
    assert {row["image_id"] for row in rows_of(paths, CUB, "validation")} == held
    assert reports[0].ledger == {"missing": 1}
    entry = open_manifest(paths, CUB, "train").ledger().to_pylist()
    assert [(row["image_id"], row["image_path"]) for row in entry] == [(gone["image_id"], gone["image_path"])]


def test_dangling_links_and_folders_are_missing_images(copy_raw: CopyRaw, paths: DataPaths) -> None:
    folder = copy_raw(FLOWERS)
    one, other = folder / "jpg" / "image_00001.jpg", folder / "jpg" / "image_00002.jpg"
    one.unlink()
    one.symlink_to(folder / "nowhere.jpg")
    other.unlink()
    other.mkdir()
    status = raw_status(FLOWERS, paths)
    assert (status.state, status.found, status.listed) == ("partial", 28, 30)
    with pytest.raises(RawDataError, match="2 of 30 listed images are missing"):
        prepare_dataset(FLOWERS, paths)


BAD = {
    "derived/zero_bytes.jpg": "empty",
    "derived/text.jpg": "not_an_image",
    "derived/only_20_bytes.jpg": "corrupt",
    "found_in_the_wild/git_lfs_pointer_named_image_06734.jpg": "not_an_image",
    "found_in_the_wild/html_viewer_page_named_image_06734.jpg": "not_an_image",
    "libjpeg-turbo/monkey12.jpg": "corrupt",
    "pillow/decompression_bomb.gif": "oversized",
    "pillow/png_decompression_dos.png": "oversized",
    "skimage/truncated.jpg": "truncated",
}


def test_bad_images_become_ledger_rows(copy_raw: CopyRaw, paths: DataPaths, shared: Path) -> None:
    copy_raw(CUB)
    prepare_dataset(CUB, paths)
    replaced = dict(zip((row["image_path"] for row in rows_of(paths, CUB, "train")), BAD, strict=False))
    for image_path, tricky in replaced.items():
        target = paths.raw / str(image_path).removeprefix("raw/")
        target.write_bytes((shared / "data" / "tricky" / tricky).read_bytes())
    report = prepare_dataset(CUB, paths, splits=["train"], max_bad_share=0.5)[0]
    manifest = open_manifest(paths, CUB, "train")
    ledger = {row["image_path"]: row["reason"] for row in manifest.ledger().to_pylist()}
    assert ledger == {image_path: BAD[tricky] for image_path, tricky in replaced.items()}
    assert sum(report.ledger.values()) == len(BAD)
    assert report.rows == manifest.rows == report.listed - len(BAD)
    assert not {row["image_path"] for row in rows_of(paths, CUB, "train")} & set(ledger)


def test_facts_are_those_of_the_content(copy_raw: CopyRaw, paths: DataPaths, shared: Path) -> None:
    """A PNG named .jpg, a greyscale and a palette image, and EXIF orientation 6, which is not applied."""
    copy_raw(CUB)
    prepare_dataset(CUB, paths)
    kept = {
        "derived/png_named.jpg": ("PNG", "RGB", 600, 400),
        "pillow/hopper_gray.jpg": ("JPEG", "L", 128, 128),
        "skimage/palette_gray.png": ("PNG", "P", 10, 10),
        "exif/Portrait_6.jpg": ("JPEG", "RGB", 1800, 1200),
        "pillow/rot1mir0.avif": ("AVIF", "RGB", 427, 640),
    }
    chosen = [str(row["image_path"]) for row in rows_of(paths, CUB, "train")][: len(kept)]
    for image_path, tricky in zip(chosen, kept, strict=True):
        (paths.raw / image_path.removeprefix("raw/")).write_bytes(
            (shared / "data" / "tricky" / tricky).read_bytes()
        )
    prepare_dataset(CUB, paths, splits=["train"], strict=True)
    rows = {row["image_path"]: row for row in rows_of(paths, CUB, "train")}
    for image_path, expected in zip(chosen, kept.values(), strict=True):
        row = rows[image_path]
        assert (row["format"], row["mode"], row["width"], row["height"]) == expected


def damage(paths: DataPaths, split: str, count: int) -> list[str]:
    chosen = [str(row["image_path"]) for row in rows_of(paths, CUB, split)][:count]
    for image_path in chosen:
        (paths.raw / image_path.removeprefix("raw/")).write_bytes(b"not an image")
    return chosen


def test_too_many_bad_images_leave_everything_as_it_was(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    prepare_dataset(CUB, paths)
    before = written(paths)
    bad = damage(paths, "test", 2)
    (paths.raw / str(rows_of(paths, CUB, "train")[0]["image_path"]).removeprefix("raw/")).write_bytes(b"")
    with pytest.raises(BadImagesError) as refusal:
        prepare_dataset(CUB, paths, max_bad_share=0.19)
    assert f"2 of {TEST * CLASSES} images cannot be used" in str(refusal.value)
    assert bad[0] in str(refusal.value)
    assert written(paths) == before
    reports = prepare_dataset(CUB, paths, max_bad_share=0.2)
    assert [sum(report.ledger.values()) for report in reports] == [1, 0, 2]


def test_one_bad_image_under_strict(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    prepare_dataset(CUB, paths)
    damage(paths, "train", 1)
    prepare_dataset(CUB, paths, max_bad_share=1.0)
    with pytest.raises(BadImagesError):
        prepare_dataset(CUB, paths, max_bad_share=1.0, strict=True)


def test_missing_images_are_not_counted_as_bad(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    prepare_dataset(CUB, paths)
    for row in rows_of(paths, CUB, "train")[5:]:
        (paths.raw / str(row["image_path"]).removeprefix("raw/")).unlink()
    reports = prepare_dataset(CUB, paths, allow_missing=True, strict=True)
    assert reports[0].rows == 5


def test_split_without_a_usable_image(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    prepare_dataset(CUB, paths)
    before = written(paths)
    for row in rows_of(paths, CUB, "test"):
        (paths.raw / str(row["image_path"]).removeprefix("raw/")).unlink()
    with pytest.raises(RawDataError, match=r"CUB-200-2011/test: no usable image \(10 missing\)") as refusal:
        prepare_dataset(CUB, paths, allow_missing=True)
    assert str(refusal.value.remedy).startswith(f"put images of test into {paths.raw_folder(CUB)}, then: ")
    assert str(refusal.value.remedy).endswith(f'prepare --dataset "{CUB}" --allow-missing')
    assert written(paths) == before


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"dataset": "CUB"}, UnknownNameError),
        ({"dataset": CUB, "splits": ["val"]}, UnknownNameError),
        ({"dataset": CUB, "max_bad_share": 1.5}, SettingsError),
    ],
)
def test_unknown_arguments(
    copy_raw: CopyRaw, paths: DataPaths, arguments: dict[str, object], error: type[EmbeddingsError]
) -> None:
    copy_raw(CUB)
    with pytest.raises(error):
        prepare_dataset(paths=paths, **arguments)
    assert not paths.processed.exists()


def test_files_are_plain_parquet(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    report: PrepareReport = prepare_dataset(CUB, paths, splits=["train"])[0]
    table = pq.read_table(paths.processed / CUB / "train")
    assert table.num_rows == report.rows, "the ledger's name keeps it out of a read of the folder"
