"""Files: what other libraries read, size, several parts, torn manifests, and what verify finds."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_tree import DATASET, write_tree
from stub_encoder import StubEncoder

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.errors import StoreError
from embeddings_assets.extraction.engine import extract_split
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.footer import recipe_fingerprint
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.parquet import open_writer, replace_table
from embeddings_assets.store.reading import load_frame, load_matrix, part_files, split_bytes
from embeddings_assets.store.schema import FOOTER_KEY, LEDGER_SCHEMA, MANIFEST_SCHEMA, ROWS_PER_PART
from embeddings_assets.store.verify import CHECKS, split_folders, verify_split
from embeddings_assets.store.writer import SplitWriter

ROWS = 60


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("extracted")
    paths = write_tree(root)
    for split in ("train", "validation", "test"):
        extract_split(
            open_manifest(paths, DATASET, split),
            StubEncoder(),
            target=paths.embeddings_split("CLIP", DATASET, split),
            staging_root=paths.staging,
        )
    return root


@pytest.fixture
def paths(extracted: Path, tmp_path: Path) -> DataPaths:
    shutil.copytree(extracted, tmp_path / "data")
    return DataPaths.from_root(tmp_path / "data")


@pytest.fixture
def part(paths: DataPaths) -> Path:
    return paths.embeddings_split("CLIP", DATASET, "train") / "part-00000.parquet"


def failed(paths: DataPaths) -> set[str]:
    folder = paths.embeddings_split("CLIP", DATASET, "train")
    return {
        finding.check for finding in verify_split(folder, processed=paths.processed) if not finding.passed
    }


def rewrite(
    part: Path,
    change: Callable[[pa.Table], pa.Table] = lambda table: table,
    footer_change: Callable[[dict[str, object]], None] = lambda footer: None,
    **options: object,
) -> None:
    """Write a part again as a tool would that knows the format but not the promises."""
    footer = json.loads(pq.read_metadata(part).metadata[FOOTER_KEY])
    table = change(pq.ParquetFile(part).read())
    footer_change(footer)
    footer["recipe_fingerprint"] = recipe_fingerprint(footer)
    encoding = {"use_dictionary": False, "column_encoding": {"embedding.list.element": "BYTE_STREAM_SPLIT"}}
    with (
        part.open("wb") as stream,
        open_writer(stream, table.schema, footer, **{**encoding, **options}) as writer,
    ):
        writer.write_table(table)


def with_vectors(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[pa.Table], pa.Table]:
    def apply(table: pa.Table) -> pa.Table:
        column = table.column("embedding").combine_chunks()
        matrix = change(column.flatten().to_numpy().reshape(len(table), -1).copy())
        kind = pa.list_(column.type.value_field, matrix.shape[1])
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.astype(np.float32).ravel()), type=kind)
        return table.set_column(table.num_columns - 1, pa.field("embedding", kind, nullable=False), vectors)

    return apply


def poison(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(matrix: np.ndarray) -> np.ndarray:
        matrix[5, 7] = value
        return matrix

    return change


def with_column(name: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def apply(table: pa.Table) -> pa.Table:
        values = table.column(name).to_pylist()
        values[row] = value
        index = table.column_names.index(name)
        return table.set_column(
            index, table.schema.field(name), pa.array(values, table.schema.field(name).type)
        )

    return apply


def test_other_libraries_read_the_files_without_our_code(paths: DataPaths, part: Path) -> None:
    frame = pd.read_parquet(part.parent)
    ours = load_frame(part.parent)
    assert list(frame.columns) == list(ours.columns)
    assert np.array_equal(np.stack(frame["embedding"].tolist()), np.stack(ours["embedding"].tolist()))
    datasets = pytest.importorskip("datasets")
    # Unlike pandas and pyarrow, `datasets` does not skip names that begin with `_`: it needs the pattern.
    parts = str(part.parent / "part-*.parquet")
    loaded = datasets.load_dataset("parquet", data_files=parts, split="train", cache_dir=str(paths.raw))
    assert loaded.num_rows == ROWS
    assert np.array_equal(np.asarray(loaded["embedding"][:], np.float32), load_matrix(part.parent))


def test_the_matrix_is_the_stored_buffer(part: Path) -> None:
    matrix = load_matrix(part.parent)
    assert matrix.shape == (ROWS, 512)
    assert matrix.dtype == np.float32
    vector = load_frame(part.parent)["embedding"][3]
    assert vector.base is not None  # a view of one matrix, no copy per row
    assert np.array_equal(vector, matrix[3])


def test_files_are_no_larger_than_the_raw_vectors(extracted: Path) -> None:
    for folder in split_folders(extracted / "embeddings"):
        rows = len(load_matrix(folder))
        assert split_bytes(folder) <= rows * 512 * 4, (folder, rows)


def test_many_rows_make_several_parts_that_depend_on_the_row_number_alone(tmp_path: Path) -> None:
    rows, width = ROWS_PER_PART + 100, 4
    vectors = np.full((rows, width), 0.5, dtype=np.float32)
    ids = pa.array([str(row) for row in range(rows)])
    one = pa.array(np.ones(rows, np.int32))
    carried = pa.table(
        {
            **dict.fromkeys(("image_id", "image_path", "class_name", "sha256"), ids),
            **dict.fromkeys(("label", "width", "height"), one),
        }
    )
    footer = {"width": width, "dataset": DATASET, "split": "train", "model": "CLIP"}
    written = []
    for step in (100_000, 7_777):
        folder = tmp_path / str(step)
        folder.mkdir()
        with SplitWriter(folder, footer, rows) as writer:
            for start in range(0, rows, step):
                writer.append(carried.slice(start, step), vectors[start : start + step])
            writer.finish(LEDGER_SCHEMA.empty_table())
        written.append([path.read_bytes() for path in part_files(folder)])
        assert [pq.read_metadata(path).num_rows for path in part_files(folder)] == [ROWS_PER_PART, 100]
        assert load_frame(folder, ["image_id"])["image_id"].tolist() == ids.to_pylist()
    assert written[0] == written[1]


def test_a_writer_reads_back_what_it_wrote(tmp_path: Path, part: Path) -> None:
    footer = {"width": 512, "dataset": DATASET, "split": "train", "model": "CLIP"}
    (tmp_path / "other").mkdir()
    shutil.copy(part, tmp_path / "other" / "part-00001.parquet")  # files that are not what was written
    carried = pq.ParquetFile(part).read()
    with SplitWriter(tmp_path / "other", footer, ROWS) as writer:
        writer.append(carried, load_matrix(part.parent))
        with pytest.raises(StoreError, match="read back differ"):
            writer.finish(LEDGER_SCHEMA.empty_table())


def test_a_writer_refuses_another_number_of_rows(tmp_path: Path) -> None:
    footer = {"width": 4, "dataset": DATASET, "split": "train", "model": "CLIP"}
    with (
        SplitWriter(tmp_path, footer, 3) as writer,
        pytest.raises(StoreError, match="0 rows written, 3 expected"),
    ):
        writer.finish(LEDGER_SCHEMA.empty_table())


def test_a_good_split_passes_every_check(paths: DataPaths, part: Path) -> None:
    findings = verify_split(part.parent, processed=paths.processed)
    assert {finding.check for finding in findings} == set(CHECKS)
    assert all(finding.passed for finding in findings)


@pytest.mark.parametrize(
    ("check", "damage"),
    [
        ("readable", lambda part: os.truncate(part, part.stat().st_size - 50)),
        ("readable", lambda part: part.with_name("_ledger.parquet").unlink()),
        ("readable", lambda part: part.rename(part.with_name("part-00001.parquet"))),
        ("readable", lambda part: rewrite(part, column_encoding=None)),
        ("readable", lambda part: rewrite(part, lambda table: table.drop_columns(["sha256"]))),
        ("readable", lambda part: rewrite(part, footer_change=lambda footer: footer.update(width="512"))),
        ("readable", lambda part: rewrite(part, footer_change=lambda footer: footer.update(model="../CLIP"))),
        ("readable", lambda part: pq.write_table(pq.ParquetFile(part).read(), part)),
        (
            "dimension",
            lambda part: rewrite(
                part,
                with_vectors(
                    lambda matrix: matrix[:, :100] / np.linalg.norm(matrix[:, :100], axis=1)[:, None]
                ),
                lambda footer: footer.update(width=100),
            ),
        ),
        ("finite", lambda part: rewrite(part, with_vectors(poison(np.nan)))),
        ("finite", lambda part: rewrite(part, with_vectors(poison(np.inf)))),
        ("unit_norm", lambda part: rewrite(part, with_vectors(lambda matrix: matrix * 1.0001))),
        ("row_count", lambda part: rewrite(part, lambda table: table.slice(1))),
        (
            "manifest_order",
            lambda part: rewrite(part, lambda table: table.take([1, 0, *range(2, len(table))])),
        ),
        ("manifest_order", lambda part: rewrite(part, with_column("sha256", 4, "0" * 64))),
        ("labels", lambda part: rewrite(part, with_column("label", 4, 2))),
        ("labels", lambda part: rewrite(part, with_column("class_name", 4, "magpie"))),
        ("footer", lambda part: rewrite(part, with_column("model", 4, "DINOv2"))),
        (
            "footer",
            lambda part: rewrite(part, footer_change=lambda footer: footer.update(checkpoint="other")),
        ),
        ("footer", lambda part: rewrite(part, footer_change=lambda footer: footer.update(rows=7))),
        (
            "size",
            lambda part: rewrite(
                part,
                compression_level=None,
                footer_change=lambda footer: footer.update(note=os.urandom(40_000).hex()),
            ),
        ),
    ],
)
def test_verify_finds_what_is_wrong(
    paths: DataPaths, part: Path, check: str, damage: Callable[[Path], object]
) -> None:
    damage(part)
    assert check in failed(paths)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_one_flipped_bit_is_found(paths: DataPaths, part: Path, place: float) -> None:
    data = bytearray(part.read_bytes())
    data[int(len(data) * place)] ^= 4
    part.write_bytes(data)
    assert failed(paths) == {"readable"}
    with pytest.raises(StoreError, match="part-00000"):
        load_matrix(part.parent)


def test_no_damage_to_a_footer_ends_the_process(part: Path) -> None:
    whole = part.read_bytes()
    length = int.from_bytes(whole[-8:-4], "little")
    code = "import pathlib, sys; from embeddings_assets.store.verify import verify_split; "
    code += "verify_split(pathlib.Path(sys.argv[1]), processed=None)"
    for place in range(len(whole) - 8 - length, len(whole) - 8 - length + 1200, 150):
        data = bytearray(whole)
        data[place] ^= 0x0F
        part.write_bytes(data)
        checked = subprocess.run(
            [sys.executable, "-c", code, str(part.parent)], capture_output=True, check=False
        )
        assert checked.returncode == 0, (place, checked.stderr)


def test_a_foreign_ledger_is_found(paths: DataPaths, part: Path) -> None:
    pd.DataFrame({"mine": [1]}).to_parquet(part.with_name("_ledger.parquet"))
    assert failed(paths) == {"readable"}
    beside = paths.processed_split(DATASET, "train") / "_ledger.parquet"
    pd.DataFrame({"mine": [1]}).to_parquet(beside)
    with pytest.raises(StoreError, match="not a ledger"):
        open_manifest(paths, DATASET, "train")
    prepare_dataset(DATASET, paths)
    assert open_manifest(paths, DATASET, "train").rows == ROWS


def test_a_split_whose_parts_are_gone_is_found(paths: DataPaths, part: Path) -> None:
    (paths.embeddings / "CLIP" / "loop").symlink_to(paths.embeddings)
    (paths.embeddings / "CLIP").rename(paths.raw.parent / "elsewhere")
    (paths.embeddings / "CLIP").symlink_to(paths.raw.parent / "elsewhere")
    part.unlink()
    folders = list(split_folders(paths.embeddings))
    assert part.parent in folders
    assert len(folders) == 3
    assert failed(paths) == {"readable"}


@pytest.mark.parametrize("columns", [[], ["nope"], "label"])
def test_columns_that_are_not_there_are_an_error(part: Path, columns: list[str]) -> None:
    with pytest.raises(StoreError, match="asked for"):
        load_frame(part.parent, columns)


def test_verify_notices_a_footer_whose_fingerprint_was_not_updated(paths: DataPaths, part: Path) -> None:
    footer = json.loads(pq.read_metadata(part).metadata[FOOTER_KEY])
    footer["precision"] = "fast"
    table = pq.ParquetFile(part).read()
    encoding = {"embedding.list.element": "BYTE_STREAM_SPLIT"}
    with (
        part.open("wb") as stream,
        open_writer(stream, table.schema, footer, use_dictionary=False, column_encoding=encoding) as writer,
    ):
        writer.write_table(table)
    assert "footer" in failed(paths)


def test_verify_notices_another_manifest(paths: DataPaths) -> None:
    where = paths.processed_split(DATASET, "train")
    (where / "auklet").rename(where / "zebra finch")
    prepare_dataset(DATASET, paths)
    assert failed(paths) == {"manifest_order"}
    (where / "manifest.parquet").unlink()
    assert "row_count" in failed(paths)


def test_a_manifest_and_its_ledger_belong_together(paths: DataPaths) -> None:
    where = paths.processed_split(DATASET, "train")
    bad = next(iter((where / "auklet").glob("*.jpg")))
    bad.write_bytes(b"<html>")
    before = (where / "_ledger.parquet").read_bytes()
    prepare_dataset(DATASET, paths, max_bad_share=0.1)
    assert open_manifest(paths, DATASET, "train").ledger().column("reason").to_pylist() == ["not_an_image"]
    (where / "_ledger.parquet").write_bytes(before)  # as if a crash had kept the second rename back
    with pytest.raises(StoreError, match="another run"):
        open_manifest(paths, DATASET, "train")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_a_damaged_manifest_names_itself_and_the_command(paths: DataPaths, content: bytes) -> None:
    where = paths.processed_split(DATASET, "train") / "manifest.parquet"
    where.write_bytes(content)
    with pytest.raises(StoreError, match=r"manifest\.parquet") as error:
        open_manifest(paths, DATASET, "train")
    assert "embeddings-assets prepare" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"), [("rows", 7), ("rows", None), ("fingerprint", None), ("options", 3), ("raw_folder", 5)]
)
def test_a_manifest_with_a_damaged_footer_is_refused(paths: DataPaths, name: str, value: object) -> None:
    where = paths.processed_split(DATASET, "train") / "manifest.parquet"
    footer = json.loads(pq.read_metadata(where).metadata[FOOTER_KEY])
    replace_table(pq.ParquetFile(where).read(), where, {**footer, name: value})
    with pytest.raises(StoreError, match=name):
        open_manifest(paths, DATASET, "train")


def test_a_manifest_never_leads_outside_the_data_root(paths: DataPaths) -> None:
    manifest = open_manifest(paths, DATASET, "train")
    for outside in ("/etc/passwd", "raw/../../secret", "elsewhere/a.jpg", "raw", "..", "raw/a\0b"):
        with pytest.raises(StoreError, match="does not lie below"):
            manifest.resolve(outside)


def test_manifest_slices_equal_the_whole_file(paths: DataPaths) -> None:
    manifest = open_manifest(paths, DATASET, "train")
    whole = manifest.slice(0, manifest.rows)
    assert whole.schema.equals(MANIFEST_SCHEMA)
    assert whole.num_rows == ROWS
    assert manifest.slice(10, 13).equals(whole.slice(10, 3))
    assert manifest.slice(ROWS, ROWS + 5).num_rows == 0
