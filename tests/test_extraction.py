"""The engine on real files: exactness of the bookkeeping, resume, reuse, refusal, atomicity."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_tree import DATASET, write_image
from PIL import Image
from stub_encoder import StubEncoder, pixels

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.errors import BadImagesError, SettingsError, StoreError
from embeddings_assets.extraction.engine import extract_split
from embeddings_assets.extraction.report import ExtractionOptions, SplitReport
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.files import read_footer, replace_table
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.reading import load_frame, load_ledger, load_matrix, part_files
from embeddings_assets.store.verify import verify_split

pytest_plugins = ("extraction_fixtures",)

ROWS = 60


def run(paths: DataPaths, encoder: StubEncoder | None = None, **options: object) -> SplitReport:
    return extract_split(
        open_manifest(paths, DATASET, "train"),
        encoder or StubEncoder(),
        target=folder(paths),
        staging_root=paths.staging,
        options=ExtractionOptions(**{"shard_rows": 16, "batch_size": 8, **options}),  # type: ignore[arg-type]
    )


def folder(paths: DataPaths) -> Path:
    return paths.embeddings_split("CLIP", DATASET, "train")


def content(where: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(where.iterdir())}


def failed(paths: DataPaths) -> list[str]:
    findings = verify_split(folder(paths), processed=paths.processed)
    return [finding.check for finding in findings if not finding.passed]


def images(paths: DataPaths) -> list[Path]:
    manifest = open_manifest(paths, DATASET, "train")
    return [manifest.resolve(path) for path in manifest.slice(0, ROWS).column("image_path").to_pylist()]


def test_every_image_gets_its_own_vector_in_manifest_order(paths: DataPaths) -> None:
    report = run(paths)
    encoder = StubEncoder()
    expected = encoder.encode(np.stack([pixels(Image.open(path)) for path in images(paths)]))
    np.testing.assert_allclose(load_matrix(folder(paths)), expected, atol=1e-6)
    frame = load_frame(folder(paths))
    manifest = open_manifest(paths, DATASET, "train").slice(0, ROWS).to_pandas()
    for column in ("image_id", "image_path", "label", "class_name", "sha256", "width", "height"):
        assert frame[column].tolist() == manifest[column].tolist()
    assert (report.status, report.rows, report.computed) == ("computed", ROWS, ROWS)
    assert failed(paths) == []
    assert not paths.staging.exists()


def test_two_runs_give_the_same_bytes_and_mechanics_change_only_rounding(
    paths: DataPaths, prepared: Path, tmp_path: Path
) -> None:
    first = run(paths)
    before = content(folder(paths))
    shutil.copytree(prepared, tmp_path / "elsewhere")
    other = DataPaths.from_root(tmp_path / "elsewhere")
    run(other)
    assert content(folder(other)) == before
    shutil.rmtree(folder(other))
    again = run(other, batch_size=7, workers=3, shard_rows=25)
    assert again.footer == first.footer
    np.testing.assert_allclose(load_matrix(folder(other)), load_matrix(folder(paths)), atol=1e-6)


def test_an_unchanged_split_is_left_alone(paths: DataPaths) -> None:
    run(paths)
    before = content(folder(paths))
    for path in images(paths):
        path.unlink()  # nothing may be decoded
    encoder = StubEncoder()
    assert run(paths, encoder).status == "unchanged"
    assert encoder.loads == 0
    assert content(folder(paths)) == before


_KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from stub_encoder import StubEncoder
from test_extraction import DataPaths, run
run(DataPaths.from_root(Path(sys.argv[2])), StubEncoder(kill_after=int(sys.argv[3])))
"""


@pytest.mark.parametrize("batch", [1, 4, 8])
def test_a_killed_run_goes_on_at_the_shard_and_ends_with_the_same_bytes(
    paths: DataPaths, prepared: Path, tmp_path: Path, batch: int
) -> None:
    tests = str(Path(__file__).parent)
    arguments = [sys.executable, "-c", _KILLED, tests, str(paths.processed.parent), str(batch)]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert part_files(folder(paths)) == []
    encoder = StubEncoder()
    report = run(paths, encoder)
    # Batches of 8 in shards of 16: what the killed run had staged is not computed again.
    assert report.resumed == (batch - 1) // 2 * 16
    assert encoder.encoded == ROWS - report.resumed
    shutil.copytree(prepared, tmp_path / "undisturbed")
    undisturbed = DataPaths.from_root(tmp_path / "undisturbed")
    run(undisturbed)
    assert content(folder(paths)) == content(folder(undisturbed))
    assert not paths.staging.exists()


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_staged_shard_is_computed_again(paths: DataPaths, damage: str) -> None:
    broken = images(paths)[-1]
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(BadImagesError):
        run(paths, strict=True)
    broken.write_bytes(whole)
    staged = sorted(paths.staging.rglob("shard-*"))
    assert len(staged) == 3
    data = bytearray(staged[1].read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    else:
        del data[-100:]
    staged[1].write_bytes(data)
    report = run(paths)
    assert (report.resumed, report.computed) == (32, ROWS - 32)
    assert failed(paths) == []


def test_another_recipe_is_refused_by_name_and_replaced_on_request(paths: DataPaths) -> None:
    run(paths)
    before = content(folder(paths))
    with pytest.raises(StoreError, match=r"precision is 'exact', asked for 'fast'") as refusal:
        run(paths, StubEncoder(precision="fast"))
    assert "--replace" in str(refusal.value)
    assert content(folder(paths)) == before
    assert not paths.staging.exists()
    report = run(paths, StubEncoder(precision="fast"), replace=True)
    assert report.changed_fields == ("precision",)
    assert report.computed == ROWS
    assert report.footer["precision"] == "fast"


def test_a_changed_image_alone_is_embedded_again(paths: DataPaths) -> None:
    run(paths)
    write_image(images(paths)[30], seed=999)
    prepare_dataset(DATASET, paths)
    encoder = StubEncoder()
    report = run(paths, encoder)
    assert (report.computed, report.reused, encoder.encoded) == (1, ROWS - 1, 1)
    assert failed(paths) == []


def test_a_renamed_class_costs_no_forward_pass(paths: DataPaths) -> None:
    run(paths)
    for split in ("train", "validation", "test"):
        where = paths.processed_split(DATASET, split)
        (where / "auklet").rename(where / "zebra finch")
    prepare_dataset(DATASET, paths)
    encoder = StubEncoder()
    assert run(paths, encoder).reused == ROWS
    assert encoder.loads == 0
    assert set(load_frame(folder(paths))["class_name"]) == {"albatross", "blackbird", "zebra finch"}
    assert failed(paths) == []


def test_a_bad_image_is_one_ledger_row_and_nobody_elses_vector(paths: DataPaths) -> None:
    before = run(paths)
    clean = load_matrix(folder(paths))
    bad = images(paths)[17]
    bad.write_bytes(bad.read_bytes()[:400])
    shutil.rmtree(folder(paths))
    report = run(paths, max_bad_share=0.05)
    assert report.ledger == {"changed": 1}
    assert report.rows == before.rows - 1
    np.testing.assert_allclose(load_matrix(folder(paths)), np.delete(clean, 17, axis=0), atol=1e-6)
    ledger = load_ledger(folder(paths)).to_pylist()
    assert [row["image_path"].rsplit("/", 1)[-1] for row in ledger] == [bad.name]
    assert failed(paths) == []


@pytest.mark.parametrize("options", [{"strict": True}, {"max_bad_share": 0.01}])
def test_too_many_bad_images_leave_the_old_split(paths: DataPaths, options: dict[str, object]) -> None:
    run(paths)
    before = content(folder(paths))
    for number, path in enumerate(images(paths)[:2]):
        write_image(path, seed=2000 + number)
    prepare_dataset(DATASET, paths)
    for path in images(paths)[:2]:
        path.unlink()
    with pytest.raises(BadImagesError, match="missing") as refusal:
        run(paths, **options)
    assert "--max-bad-share" in str(refusal.value)
    assert content(folder(paths)) == before


def test_vectors_of_a_part_from_elsewhere_are_not_reused(paths: DataPaths) -> None:
    run(paths)
    part = part_files(folder(paths))[0]
    footer = {**read_footer(part), "precision": "fast", "part": 1}
    table = pq.ParquetFile(part).read()
    replace_table(table.slice(0, 30), part, read_footer(part))
    replace_table(table.slice(30), part.with_name("part-00001.parquet"), footer)
    report = run(paths)
    assert (report.computed, report.reused) == (30, 30)


def test_a_split_that_cannot_be_read_is_replaced_only_on_request(paths: DataPaths) -> None:
    run(paths)
    part = part_files(folder(paths))[0]
    part.write_bytes(part.read_bytes()[:-30])
    with pytest.raises(StoreError, match="cannot be read") as refusal:
        run(paths)
    assert "--replace" in str(refusal.value)
    assert run(paths, replace=True).computed == ROWS
    assert failed(paths) == []


def test_a_damaged_vector_is_not_reused(paths: DataPaths) -> None:
    run(paths)
    part = part_files(folder(paths))[0]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 4
    part.write_bytes(data)
    write_image(images(paths)[30], seed=999)
    prepare_dataset(DATASET, paths)
    report = run(paths)
    assert (report.computed, report.reused) == (ROWS, 0)
    assert failed(paths) == []


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"shard_rows": -5},
        {"workers": -1},
        {"max_bad_share": 5},
        {"max_bad_share": float("nan")},
        {"max_bad_share": "x"},
        {"workers": True},
        {"strict": "no"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=next(iter(options))):
        ExtractionOptions(**options)


def test_what_other_libraries_have_staged_is_not_mixed_in(paths: DataPaths) -> None:
    def stop(encoder: StubEncoder) -> None:
        options = ExtractionOptions(shard_rows=16, batch_size=8)
        manifest = open_manifest(paths, DATASET, "train")

        def at_the_end(done: int, total: int) -> None:
            if done == total:
                raise KeyboardInterrupt

        places = {"target": folder(paths), "staging_root": paths.staging}
        with pytest.raises(KeyboardInterrupt):
            extract_split(manifest, encoder, options=options, progress=at_the_end, **places)

    class Upgraded(StubEncoder):
        def footer(self) -> dict[str, object]:
            return {**super().footer(), "libraries": {"torch": "9"}}

    stop(StubEncoder())
    assert run(paths, Upgraded()).resumed == 0
    shutil.rmtree(folder(paths))
    stop(Upgraded())
    assert run(paths, Upgraded()).resumed == ROWS
