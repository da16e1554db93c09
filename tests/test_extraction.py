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
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.parquet import read_footer, replace_table
from embeddings_assets.store.reading import load_frame, load_ledger, load_matrix, part_files
from embeddings_assets.store.verify import verify_split

pytest_plugins = ("extraction_fixtures",)

ROWS = 60


def run(tree: DataPaths, encoder: StubEncoder | None = None, **options: object) -> SplitReport:
    return extract_split(
        open_manifest(tree, DATASET, "train"),
        encoder or StubEncoder(),
        target=folder(tree),
        staging_root=tree.staging,
        options=ExtractionOptions(**{"shard_rows": 16, "batch_size": 8, **options}),  # type: ignore[arg-type]
    )


def folder(tree: DataPaths) -> Path:
    return tree.embeddings_split("CLIP", DATASET, "train")


def content(where: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(where.iterdir())}


def failed(tree: DataPaths) -> list[str]:
    findings = verify_split(folder(tree), processed=tree.processed)
    return [finding.check for finding in findings if not finding.passed]


def images(tree: DataPaths) -> list[Path]:
    manifest = open_manifest(tree, DATASET, "train")
    return [manifest.resolve(path) for path in manifest.slice(0, ROWS).column("image_path").to_pylist()]


def test_every_image_gets_its_own_vector_in_manifest_order(tree: DataPaths) -> None:
    report = run(tree)
    encoder = StubEncoder()
    expected = encoder.encode(np.stack([pixels(Image.open(path)) for path in images(tree)]))
    np.testing.assert_allclose(load_matrix(folder(tree)), expected, atol=1e-6)
    frame = load_frame(folder(tree))
    manifest = open_manifest(tree, DATASET, "train").slice(0, ROWS).to_pandas()
    for column in ("image_id", "image_path", "label", "class_name", "sha256", "width", "height"):
        assert frame[column].tolist() == manifest[column].tolist()
    assert (report.status, report.rows, report.computed) == ("computed", ROWS, ROWS)
    assert failed(tree) == []
    assert not tree.staging.exists()


def test_two_runs_give_the_same_bytes_and_mechanics_change_only_rounding(
    tree: DataPaths, prepared_tree: Path, tmp_path: Path
) -> None:
    first = run(tree)
    before = content(folder(tree))
    shutil.copytree(prepared_tree, tmp_path / "elsewhere")
    other = DataPaths.from_root(tmp_path / "elsewhere")
    run(other)
    assert content(folder(other)) == before
    shutil.rmtree(folder(other))
    again = run(other, batch_size=7, workers=3, shard_rows=25)
    assert again.footer == first.footer
    np.testing.assert_allclose(load_matrix(folder(other)), load_matrix(folder(tree)), atol=1e-6)


def test_an_unchanged_split_is_left_alone(tree: DataPaths) -> None:
    run(tree)
    before = content(folder(tree))
    for path in images(tree):
        path.unlink()  # nothing may be decoded
    encoder = StubEncoder()
    assert run(tree, encoder).status == "unchanged"
    assert encoder.loads == 0
    assert content(folder(tree)) == before


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
    tree: DataPaths, prepared_tree: Path, tmp_path: Path, batch: int
) -> None:
    tests = str(Path(__file__).parent)
    arguments = [sys.executable, "-c", _KILLED, tests, str(tree.processed.parent), str(batch)]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert part_files(folder(tree)) == []
    encoder = StubEncoder()
    report = run(tree, encoder)
    # Batches of 8 in shards of 16: what the killed run had staged is not computed again.
    assert report.resumed == (batch - 1) // 2 * 16
    assert encoder.encoded == ROWS - report.resumed
    shutil.copytree(prepared_tree, tmp_path / "undisturbed")
    undisturbed = DataPaths.from_root(tmp_path / "undisturbed")
    run(undisturbed)
    assert content(folder(tree)) == content(folder(undisturbed))
    assert not tree.staging.exists()


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_staged_shard_is_computed_again(tree: DataPaths, damage: str) -> None:
    broken = images(tree)[-1]
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(BadImagesError):
        run(tree, strict=True)
    broken.write_bytes(whole)
    staged = sorted(tree.staging.rglob("shard-*"))
    assert len(staged) == 3
    data = bytearray(staged[1].read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    else:
        del data[-100:]
    staged[1].write_bytes(data)
    report = run(tree)
    assert (report.resumed, report.computed) == (32, ROWS - 32)
    assert failed(tree) == []


def test_another_recipe_is_refused_by_name_and_replaced_on_request(tree: DataPaths) -> None:
    run(tree)
    before = content(folder(tree))
    with pytest.raises(StoreError, match=r"precision is 'exact', asked for 'fast'") as refusal:
        run(tree, StubEncoder(precision="fast"))
    assert "--replace" in str(refusal.value)
    assert content(folder(tree)) == before
    assert not tree.staging.exists()
    report = run(tree, StubEncoder(precision="fast"), replace=True)
    assert report.changed_fields == ("precision",)
    assert report.computed == ROWS
    assert report.footer["precision"] == "fast"


def test_a_split_of_other_preprocessing_is_refused_by_the_field_that_differs(tree: DataPaths) -> None:
    run(tree)
    other = StubEncoder()
    recipe = {**other.footer()["recipe"], "resize_order": "horizontal first"}
    other.footer = lambda: {**StubEncoder().footer(), "recipe": recipe}  # type: ignore[method-assign]
    with pytest.raises(StoreError, match=r"recipe\.resize_order is None, asked for 'horizontal first'"):
        run(tree, other)
    assert run(tree, other, replace=True).changed_fields == ("recipe.resize_order",)


def test_a_changed_image_alone_is_embedded_again(tree: DataPaths) -> None:
    run(tree)
    write_image(images(tree)[30], seed=999)
    prepare_dataset(DATASET, tree)
    encoder = StubEncoder()
    report = run(tree, encoder)
    assert (report.computed, report.reused, encoder.encoded) == (1, ROWS - 1, 1)
    assert failed(tree) == []


def test_a_renamed_class_costs_no_forward_pass(tree: DataPaths) -> None:
    run(tree)
    for split in ("train", "validation", "test"):
        where = tree.processed_split(DATASET, split)
        (where / "auklet").rename(where / "zebra finch")
    prepare_dataset(DATASET, tree)
    encoder = StubEncoder()
    assert run(tree, encoder).reused == ROWS
    assert encoder.loads == 0
    assert set(load_frame(folder(tree))["class_name"]) == {"albatross", "blackbird", "zebra finch"}
    assert failed(tree) == []


def test_a_bad_image_is_one_ledger_row_and_nobody_elses_vector(tree: DataPaths) -> None:
    before = run(tree)
    clean = load_matrix(folder(tree))
    bad = images(tree)[17]
    bad.write_bytes(bad.read_bytes()[:400])
    shutil.rmtree(folder(tree))
    report = run(tree, max_bad_share=0.05)
    assert report.ledger == {"changed": 1}
    assert report.rows == before.rows - 1
    np.testing.assert_allclose(load_matrix(folder(tree)), np.delete(clean, 17, axis=0), atol=1e-6)
    ledger = load_ledger(folder(tree)).to_pylist()
    assert [row["image_path"].rsplit("/", 1)[-1] for row in ledger] == [bad.name]
    assert failed(tree) == []


@pytest.mark.parametrize("options", [{"strict": True}, {"max_bad_share": 0.01}])
def test_too_many_bad_images_leave_the_old_split(tree: DataPaths, options: dict[str, object]) -> None:
    run(tree)
    before = content(folder(tree))
    for number, path in enumerate(images(tree)[:2]):
        write_image(path, seed=2000 + number)
    prepare_dataset(DATASET, tree)
    for path in images(tree)[:2]:
        path.unlink()
    with pytest.raises(BadImagesError, match="missing") as refusal:
        run(tree, **options)
    assert "--max-bad-share" in str(refusal.value)
    assert content(folder(tree)) == before


def test_vectors_of_a_part_from_elsewhere_are_not_reused(tree: DataPaths) -> None:
    run(tree)
    part = part_files(folder(tree))[0]
    footer = {**read_footer(part), "precision": "fast", "part": 1}
    table = pq.ParquetFile(part).read()
    replace_table(table.slice(0, 30), part, read_footer(part))
    replace_table(table.slice(30), part.with_name("part-00001.parquet"), footer)
    report = run(tree)
    assert (report.computed, report.reused) == (30, 30)


def test_a_split_that_cannot_be_read_is_replaced_only_on_request(tree: DataPaths) -> None:
    run(tree)
    part = part_files(folder(tree))[0]
    part.write_bytes(part.read_bytes()[:-30])
    with pytest.raises(StoreError, match="cannot be read") as refusal:
        run(tree)
    assert "--replace" in str(refusal.value)
    assert run(tree, replace=True).computed == ROWS
    assert failed(tree) == []


def test_a_damaged_vector_is_not_reused(tree: DataPaths) -> None:
    run(tree)
    part = part_files(folder(tree))[0]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 4
    part.write_bytes(data)
    write_image(images(tree)[30], seed=999)
    prepare_dataset(DATASET, tree)
    report = run(tree)
    assert (report.computed, report.reused) == (ROWS, 0)
    assert failed(tree) == []


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


def test_what_other_libraries_have_staged_is_not_mixed_in(tree: DataPaths) -> None:
    def stop(encoder: StubEncoder) -> None:
        options = ExtractionOptions(shard_rows=16, batch_size=8)
        manifest = open_manifest(tree, DATASET, "train")

        def at_the_end(done: int, total: int) -> None:
            if done == total:
                raise KeyboardInterrupt

        places = {"target": folder(tree), "staging_root": tree.staging}
        with pytest.raises(KeyboardInterrupt):
            extract_split(manifest, encoder, options=options, progress=at_the_end, **places)

    class Upgraded(StubEncoder):
        def footer(self) -> dict[str, object]:
            return {**super().footer(), "libraries": {"torch": "9"}}

    stop(StubEncoder())
    assert run(tree, Upgraded()).resumed == 0
    shutil.rmtree(folder(tree))
    stop(Upgraded())
    assert run(tree, Upgraded()).resumed == ROWS
