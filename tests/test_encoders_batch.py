"""Embedding a few images: order, inputs of every kind, and errors that name the image."""

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embeddings_assets.encoders.batch import embed_images, kept_encoder, release_encoders
from embeddings_assets.encoders.plan import EncoderPlan, plan_encoder
from embeddings_assets.errors import EmbeddingsError, ImageError, Reason, SettingsError


@pytest.fixture(scope="module")
def plan() -> Iterator[EncoderPlan]:
    yield plan_encoder("CLIP", weights="random", device="cpu")
    release_encoders()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index in range(5):
        pixels = random.integers(0, 256, (20 + index, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((300, 200 + index)).save(folder / f"{index}.png")
    return sorted(folder.iterdir())


def test_paths_and_images_give_the_same_in_the_order_given(plan: EncoderPlan, paths: list[Path]) -> None:
    vectors = embed_images(paths, plan)
    assert (vectors.shape, vectors.dtype) == ((5, 512), np.float32)
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() <= 1e-6
    mixed = [str(paths[0]), Image.open(paths[1]), *paths[2:]]
    assert np.array_equal(embed_images(mixed, plan), vectors)
    assert np.abs(embed_images(paths[::-1], plan)[::-1] - vectors).max() <= 1e-6
    assert np.abs(embed_images(paths, plan, batch_size=2) - vectors).max() <= 1e-6


def test_no_images_give_no_rows() -> None:
    unloaded = plan_encoder("DINOv2", weights="random", device="cpu")
    assert embed_images([], unloaded).shape == (0, 768)


@pytest.mark.parametrize("images", ["a.jpg", Path("a.jpg"), Image.new("L", (9, 9)), b"a", 3, {"a": 1}])
def test_anything_but_a_sequence_is_refused(images: object, plan: EncoderPlan) -> None:
    with pytest.raises(EmbeddingsError, match=r"pass a list|expected a sequence"):
        embed_images(images, plan)


def test_a_bad_image_is_named_with_its_index(plan: EncoderPlan, paths: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "page.jpg"
    bad.write_text("<html>not found</html>")
    with pytest.raises(ImageError) as caught:
        embed_images([*paths[:3], bad], plan, batch_size=2)
    assert caught.value.reason is Reason.NOT_AN_IMAGE
    assert "image 3" in str(caught.value)
    assert str(bad) in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    with pytest.raises(ImageError, match=r"image 0.*1 x 30000"):
        embed_images([Image.new("RGB", (1, 30_000))], plan)
    with pytest.raises(EmbeddingsError, match="image 1 is a NoneType"):
        embed_images([paths[0], None], plan)


def test_a_batch_size_below_one_is_refused(plan: EncoderPlan, paths: list[Path]) -> None:
    with pytest.raises(SettingsError, match="batch_size"):
        embed_images(paths, plan, batch_size=0)


def test_encoders_are_kept_between_calls_but_not_without_end(plan: EncoderPlan, paths: list[Path]) -> None:
    first = kept_encoder(plan)
    assert kept_encoder(plan_encoder("CLIP", weights="random", device="cpu")) is first
    for width in ("contract", "native"):
        embed_images(paths[:1], plan_encoder("Franca", weights="random", width=width, device="cpu"))
    assert kept_encoder(plan) is not first
    with pytest.raises(EmbeddingsError, match="closed"):
        first.encode(np.zeros((1, 224, 224, 3), np.uint8))
