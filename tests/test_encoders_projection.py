"""The pinned projection: orthonormal, reproducible by its routine, refused when altered."""

from pathlib import Path

import numpy as np
import pytest

from embeddings_assets.encoders.projection import PROJECTION_PATH, load_projection, make_projection
from embeddings_assets.errors import WeightsError


def test_the_shipped_matrix_has_orthonormal_columns() -> None:
    matrix = load_projection()
    assert (matrix.shape, matrix.dtype) == ((768, 512), np.float32)
    gram = matrix.astype(np.float64).T @ matrix
    assert np.abs(gram - np.eye(512)).max() <= 1e-6


def test_the_routine_gives_the_shipped_matrix() -> None:
    assert np.abs(make_projection() - load_projection()).max() <= 1e-6


def test_cosines_survive_within_the_theoretical_error() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((400, 768))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    projected = vectors @ load_projection()
    projected /= np.linalg.norm(projected, axis=1, keepdims=True)
    error = (projected @ projected.T - vectors @ vectors.T)[np.triu_indices(400, 1)]
    assert np.sqrt(1 / 512 - 1 / 768) == pytest.approx(error.std(), rel=0.1)


def test_an_altered_or_absent_matrix_is_refused(tmp_path: Path) -> None:
    content = bytearray(PROJECTION_PATH.read_bytes())
    content[-1] ^= 1
    altered = tmp_path / "projection_768x512.npy"
    altered.write_bytes(content)
    with pytest.raises(WeightsError, match=r"projection_768x512\.npy.*sha256"):
        load_projection(altered)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_projection(tmp_path / "absent.npy")


def test_the_matrix_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        load_projection()[0, 0] = 1.0
