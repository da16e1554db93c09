"""The map of a split: true to the vectors, the same every time, small, and cheap for a large split."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from embeddings_assets.errors import StoreError
from embeddings_assets.quality.maps import MOST_BYTES, draw_map, principal_axes, sample_rows


def clusters(classes: int, each: int, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), each)
    vectors = rng.standard_normal((classes, width))[labels] + 0.05 * rng.standard_normal((len(labels), width))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit.astype(np.float32), labels.astype(np.int32)


def write_part(folder: Path, vectors: np.ndarray, labels: np.ndarray, *, group: int, index: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({"label": labels, "embedding": column})
    pq.write_table(table, folder / f"part-{index:05d}.parquet", row_group_size=group)


def test_the_axes_are_those_of_the_largest_variance() -> None:
    rng = np.random.default_rng(1)
    scales = np.array([0.1, 3.0, 0.2, 2.0, 0.1])
    vectors = (rng.standard_normal((4000, 5)) * scales + 7).astype(np.float32)
    points, explained = principal_axes(vectors)
    assert points.std(axis=0) == pytest.approx([3, 2], rel=0.05)
    assert np.abs(np.corrcoef(points[:, 0], vectors[:, 1])[0, 1]) > 0.999
    assert explained == pytest.approx(13 / (scales**2).sum(), rel=0.02)


def test_classes_that_lie_apart_have_dots_of_their_own_colours() -> None:
    vectors, labels = clusters(classes=3, each=30)
    drawn = draw_map(vectors, labels)
    picture = Image.open(io.BytesIO(drawn.png)).convert("RGB")
    hues = np.asarray(picture.convert("HSV"))[..., 0][np.asarray(picture.convert("HSV"))[..., 1] > 150]
    found = np.bincount(hues // 8, minlength=32)
    assert (found > 50).sum() == 3
    assert (drawn.points, drawn.classes) == (90, 3)


def test_equal_vectors_give_equal_bytes() -> None:
    vectors, labels = clusters(classes=5, each=8)
    assert draw_map(vectors, labels).png == draw_map(vectors.copy(), labels.copy()).png


def test_the_picture_stays_small_with_many_points_and_classes() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((2000, 32)).astype(np.float32)
    drawn = draw_map(vectors, rng.integers(0, 555, 2000))
    assert len(drawn.png) <= MOST_BYTES


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_or_equal_vectors_are_drawn_too(rows: int) -> None:
    drawn = draw_map(np.ones((rows, 8), np.float32), np.zeros(rows, np.int32))
    assert drawn.points == rows
    assert drawn.explained == 0


def test_a_large_split_is_sampled_evenly_over_its_parts(tmp_path: Path) -> None:
    rows, parts = 3000, 4
    for index in range(parts):
        labels = np.arange(rows, dtype=np.int32) + index * rows
        vectors = np.repeat(labels[:, None], 4, axis=1).astype(np.float32)
        write_part(tmp_path / "split", vectors, labels, group=500, index=index)
    vectors, labels = sample_rows(tmp_path / "split", most=400)
    assert 300 <= len(labels) <= 400
    assert (vectors[:, 0] == labels).all()
    assert (np.diff(labels) > 0).all()
    shares = np.bincount(labels // rows, minlength=parts) / len(labels)
    assert shares == pytest.approx(np.full(parts, 1 / parts), abs=0.05)


def test_a_small_split_is_drawn_whole(tmp_path: Path) -> None:
    vectors, labels = clusters(classes=4, each=6)
    write_part(tmp_path / "split", vectors, labels, group=10)
    found, found_labels = sample_rows(tmp_path / "split")
    assert (found == vectors).all()
    assert (found_labels == labels).all()
    assert draw_map(*sample_rows(tmp_path / "split")).points == 24


def test_a_split_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no embeddings here"):
        sample_rows(tmp_path)
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(StoreError, match="cannot be read"):
        sample_rows(tmp_path)
