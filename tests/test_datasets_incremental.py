"""Preparing again: what has not changed is not read, and what is kept between runs decides nothing."""

import os
import shutil
import struct
import time
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets_support import CLASSES, NAMES, TEST, TRAIN, CopyRaw, listing_of
from image_tree import DATASET, write_tree

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.seen import SEEN_NAME
from embeddings_assets.datasets.splits import HoldOut
from embeddings_assets.errors import BadImagesError, SettingsError
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.parquet import read_footer, replace_table
from embeddings_assets.store.schema import MANIFEST_RULES

pytest_plugins = ("datasets_fixtures",)

CUB, FLOWERS, AIRCRAFT = "CUB-200-2011", "Oxford 102 Flowers", "FGVC-Aircraft"
IMAGES = CLASSES * (TRAIN + TEST)
LONG_AGO = 1_600_000_000 * 10**9


def let_it_age(root: Path) -> None:
    """Give everything below `root` an old time of last change: new files are never taken as unchanged."""
    for path in sorted(root.rglob("*"), reverse=True):
        if path.name != SEEN_NAME:
            os.utime(path, ns=(LONG_AGO, LONG_AGO))
    os.utime(root, ns=(LONG_AGO, LONG_AGO))


def read(paths: DataPaths, dataset: str = CUB, **options: object) -> list[int]:
    return [report.read for report in prepare_dataset(dataset, paths, **options)]


def inodes(paths: DataPaths, dataset: str = CUB) -> list[int]:
    return [path.stat().st_ino for path in sorted((paths.processed / dataset).glob("*/*.parquet"))]


def swap_content_unseen(path: Path) -> None:
    """Other pixels, same size, same time of last change."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def raw(copy_raw: CopyRaw, paths: DataPaths) -> Path:
    """A CUB folder that was unpacked long ago and prepared once."""
    folder = copy_raw(CUB)
    let_it_age(paths.raw)
    assert sum(read(paths)) == IMAGES
    return folder


def test_a_second_run_opens_no_image_and_writes_nothing(raw: Path, paths: DataPaths) -> None:
    first = prepare_dataset(CUB, paths, reread=True)
    before = inodes(paths)
    again = prepare_dataset(CUB, paths)
    assert [report.read for report in again] == [0, 0, 0]
    assert [report.changed for report in again] == [False] * 3
    assert inodes(paths) == before, "no file was replaced"
    for old, new in zip(first, again, strict=True):
        names = ("dataset", "split", "rows", "ledger", "fingerprint", "classes", "listed", "official")
        assert [getattr(old, name) for name in names] == [getattr(new, name) for name in names]


def test_unchanged_is_told_by_size_and_time(raw: Path, paths: DataPaths) -> None:
    image = next((raw / "images").rglob("*.jpg"))
    before = [open_manifest(paths, CUB, split).fingerprint for split in ("train", "validation", "test")]
    swap_content_unseen(image)
    assert sum(read(paths)) == 0
    reports = prepare_dataset(CUB, paths, reread=True)
    assert sum(report.read for report in reports) == IMAGES
    assert sum(report.changed for report in reports) == 1
    assert [report.fingerprint for report in reports] != before


def test_a_touched_and_a_new_file_alone_are_read(raw: Path, paths: DataPaths) -> None:
    images = sorted((raw / "images").rglob("*.jpg"))
    os.utime(images[3], ns=(LONG_AGO, LONG_AGO + 10**9))
    assert sum(read(paths)) == 1
    assert sum(read(paths)) == 0
    content = images[5].read_bytes()
    images[5].unlink()
    assert sum(read(paths, allow_missing=True)) == 0
    images[5].write_bytes(content)
    assert sum(read(paths, allow_missing=True)) == 1


def test_a_file_of_this_moment_is_read_again(raw: Path, paths: DataPaths) -> None:
    """It could change once more within the same tick of the clock."""
    image = next((raw / "images").rglob("*.jpg"))
    later = time.time_ns() + 5 * 10**9
    os.utime(image, ns=(later, later))
    assert [sum(read(paths)), sum(read(paths))] == [1, 1]


def test_a_file_that_changes_right_after_it_was_read_is_noticed(copy_raw: CopyRaw, paths: DataPaths) -> None:
    """In place, so that its folder stays as it was, with everything else unpacked long ago."""
    folder = copy_raw(CUB)
    let_it_age(paths.raw)
    image = next((folder / "images").rglob("*.jpg"))
    os.utime(image)
    first = prepare_dataset(CUB, paths)
    data = image.read_bytes()
    with image.open("r+b") as stream:
        stream.write(data[:-30] + bytes(28) + data[-2:])
    os.utime(image, ns=(LONG_AGO, LONG_AGO))
    again = prepare_dataset(CUB, paths)
    assert sum(report.read for report in again) == 1
    assert [report.fingerprint for report in again] != [report.fingerprint for report in first]


def test_a_file_that_is_gone_is_forgotten(raw: Path, paths: DataPaths) -> None:
    next((raw / "images").rglob("*.jpg")).unlink()
    let_it_age(paths.raw)
    prepare_dataset(CUB, paths, allow_missing=True)
    before = inodes(paths)
    prepare_dataset(CUB, paths, allow_missing=True)
    assert inodes(paths) == before


def test_changed_lists_are_read_again(raw: Path, paths: DataPaths) -> None:
    flags = raw / "train_test_split.txt"
    lines = flags.read_text().splitlines()
    place = next(index for index, line in enumerate(lines) if line.endswith(" 1"))
    lines[place] = lines[place][:-1] + "0"
    flags.write_text("\n".join(lines) + "\n")
    reports = prepare_dataset(CUB, paths)
    assert sum(report.read for report in reports) == 0, "the images are the same"
    assert reports[2].rows == CLASSES * TEST + 1


@pytest.mark.parametrize("dataset", NAMES)
def test_every_list_that_is_read_is_watched(copy_raw: CopyRaw, paths: DataPaths, dataset: str) -> None:
    folder = copy_raw(dataset)
    let_it_age(paths.raw)
    prepare_dataset(dataset, paths)
    watched = listing_of(dataset, paths).lists
    suffix = ".mat" if list(folder.glob("*.mat")) else ".txt"
    assert len(watched) >= 2
    assert {path.suffix for path in watched} == {suffix}
    for path in watched:
        before = inodes(paths, dataset)
        prepare_dataset(dataset, paths)
        assert inodes(paths, dataset) == before
        os.utime(path, ns=(LONG_AGO, LONG_AGO + 1))
        prepare_dataset(dataset, paths)
        assert inodes(paths, dataset) != before, path
    before = inodes(paths, dataset)
    os.utime(watched[0].parent, ns=(LONG_AGO, LONG_AGO + 2))
    prepare_dataset(dataset, paths)
    assert inodes(paths, dataset) != before, "a file beside the lists may have come or gone"


def test_another_option_is_no_unchanged_run(raw: Path, paths: DataPaths) -> None:
    image = next((raw / "images").rglob("*.jpg"))
    image.write_bytes(b"not an image")
    os.utime(image, ns=(LONG_AGO, LONG_AGO + 1))
    prepare_dataset(CUB, paths, max_bad_share=1.0)
    with pytest.raises(BadImagesError):
        prepare_dataset(CUB, paths)
    held_out = prepare_dataset(CUB, paths, max_bad_share=1.0, hold_out=HoldOut(0.4))
    assert [report.changed for report in held_out] == [True] * 3
    assert [report.read for report in held_out] == [0, 0, 0], "a bad image is remembered as well"


def test_decode_reads_what_was_only_opened(raw: Path, paths: DataPaths) -> None:
    assert sum(read(paths, decode=True)) == IMAGES
    assert sum(read(paths, decode=True)) == 0
    assert sum(read(paths)) == 0, "what was decoded need not be opened again"


def test_what_decoding_found_does_not_outlive_it(copy_raw: CopyRaw, paths: DataPaths) -> None:
    """With the memory or without it, the same options give the same manifest."""
    folder = copy_raw(CUB)
    image = next((folder / "images").rglob("*.jpg"))
    data = zlib.compress(bytes(range(256)) * 20)
    header = struct.pack(">2I5B", 48, 36, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data[: len(data) // 2]), (b"IEND", b""))
    sound = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    image.write_bytes(b"\x89PNG\r\n\x1a\n" + sound)
    let_it_age(paths.raw)

    def prepared(*, decode: bool) -> tuple[list[str], int]:
        reports = prepare_dataset(CUB, paths, max_bad_share=1.0, decode=decode)
        return [report.fingerprint for report in reports], sum(
            sum(report.ledger.values()) for report in reports
        )

    opened, decoded = prepared(decode=False), prepared(decode=True)
    assert (opened[1], decoded[1]) == (0, 1)
    assert prepared(decode=False) == opened
    assert prepared(decode=True) == decoded


def test_manifests_that_are_gone_or_foreign_are_written_again(raw: Path, paths: DataPaths) -> None:
    before = open_manifest(paths, CUB, "test").fingerprint
    shutil.rmtree(paths.processed_split(CUB, "test"))
    reports = prepare_dataset(CUB, paths)
    assert [report.read for report in reports] == [0, 0, 0]
    assert open_manifest(paths, CUB, "test").fingerprint == before


@pytest.mark.parametrize("content", [b"", b"PAR1 no more", None])
def test_a_damaged_memory_costs_time_only(raw: Path, paths: DataPaths, content: bytes | None) -> None:
    seen = paths.processed / CUB / SEEN_NAME
    whole = seen.read_bytes()
    seen.write_bytes(whole[:-100] if content is None else content)
    reports = prepare_dataset(CUB, paths)
    assert sum(report.read for report in reports) == IMAGES
    assert [report.changed for report in reports] == [False] * 3
    assert sum(read(paths)) == 0


def test_what_earlier_rules_have_left_is_not_used(raw: Path, paths: DataPaths) -> None:
    seen = paths.processed / CUB / SEEN_NAME
    header = read_footer(seen)
    assert header["versions"]["rules"] == str(MANIFEST_RULES)
    header["versions"]["rules"] = str(MANIFEST_RULES - 1)
    replace_table(pq.read_table(seen), seen, header)
    assert sum(read(paths, splits=["test"])) == CLASSES * TEST
    assert sum(read(paths)) == CLASSES * TRAIN, "nor for the other splits"


def test_another_raw_folder_is_read_by_itself(
    raw: Path, paths: DataPaths, tmp_path: Path, synthetic_raw: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(synthetic_raw / raw.name, other / raw.name)
    let_it_age(other)
    assert sum(read(paths, raw_dir=other)) == IMAGES
    assert sum(read(paths, raw_dir=other)) == 0


def test_split_by_split_is_remembered_as_a_whole(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(FLOWERS)
    let_it_age(paths.raw)
    assert [read(paths, FLOWERS, splits=[split])[0] > 0 for split in ("train", "validation", "test")]
    before = inodes(paths, FLOWERS)
    assert read(paths, FLOWERS) == [0, 0, 0]
    assert inodes(paths, FLOWERS) == before


def test_a_class_tree_is_remembered_although_manifests_are_written_into_it(tmp_path: Path) -> None:
    paths = write_tree(tmp_path / "data", per_class=4)
    let_it_age(paths.processed / DATASET)
    prepare_dataset(DATASET, paths)
    before = inodes(paths, DATASET)
    assert read(paths, DATASET) == [0, 0, 0]
    assert inodes(paths, DATASET) == before
    new = paths.processed_split(DATASET, "test") / "owl" / "1.jpg"
    new.parent.mkdir()
    shutil.copy(next(paths.processed.rglob("*.jpg")), new)
    reports = prepare_dataset(DATASET, paths)
    assert [report.read for report in reports] == [0, 0, 1]
    assert reports[2].classes == 4


def test_a_stopped_run_keeps_what_it_has_looked_at(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    let_it_age(paths.raw)

    def stop(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(CUB, paths, progress=stop)
    assert not list(paths.processed.rglob("manifest.parquet"))
    assert sum(read(paths)) == IMAGES - 20


@pytest.mark.parametrize("reread", [True, False], ids=["reread", "nothing to do"])
def test_leftovers_of_killed_runs_go(raw: Path, paths: DataPaths, reread: bool) -> None:
    folder = paths.processed_split(CUB, "train")
    leftovers = [
        folder / ".manifest.parquet.123.tmp",
        folder / "._ledger.parquet.123.tmp",
        paths.processed / CUB / f".{SEEN_NAME}.123.tmp",
    ]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    prepare_dataset(CUB, paths, reread=reread)
    assert not [leftover for leftover in leftovers if leftover.exists()]


def test_splits_with_different_options_do_not_mix(raw: Path, paths: DataPaths) -> None:
    with pytest.raises(
        SettingsError, match=r"train was prepared with hold_out seed 0, share 0\.1"
    ) as refusal:
        prepare_dataset(CUB, paths, splits=["test", "validation"], hold_out=HoldOut(0.5))
    assert "--hold-out 0.5" in str(refusal.value)
    prepare_dataset(CUB, paths, splits=["validation"])
    prepare_dataset(CUB, paths, hold_out=HoldOut(0.5))
    prepare_dataset(CUB, paths, splits=["validation"], hold_out=HoldOut(0.5))
