"""Which weights a model would use: places, order, identity, the lock, and clear errors."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from embeddings_assets.catalog import MODELS, get_model
from embeddings_assets.encoders.weights.find import file_sha256, find_weights, stated_weights
from embeddings_assets.encoders.weights.inventory import list_weights, verify_weights
from embeddings_assets.encoders.weights.lock import (
    FetchedEntry,
    RandomEntry,
    read_lock,
    record_fetched,
    remove_random_lock,
    write_random_lock,
)
from embeddings_assets.errors import UnknownNameError, WeightsError


def put(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A weights root with one small file for every model, in the documented places."""
    root = tmp_path / "weights"
    put(root / "CLIP" / "ViT-B-32.pt", b"clip")
    put(root / "Franca" / "any name.pth", b"franca")
    for model in ("DINOv2", "SigLIPv2"):
        put(root / model / "config.json", b"{}")
        put(root / model / "model.safetensors", model.encode())
    return root


@pytest.mark.parametrize("model", [spec.name for spec in MODELS])
def test_root_own_folder_and_own_file_name_the_same_weights(model: str, root: Path) -> None:
    source = find_weights(model, root)
    assert source.path is not None
    assert source == find_weights(model, str(root / model)) == find_weights(model, source.path)
    assert source.sha256 == hashlib.sha256(source.path.read_bytes()).hexdigest()
    assert (source.kind, source.trained, source.origin) == ("file", None, source.path.name)
    assert str(root) not in source.origin


def test_clip_takes_an_open_clip_folder_too(tmp_path: Path) -> None:
    put(tmp_path / "CLIP" / "open_clip_config.json", b"{}")
    checkpoint = put(tmp_path / "CLIP" / "open_clip_model.safetensors")
    assert find_weights("CLIP", tmp_path).path == checkpoint
    both = put(tmp_path / "CLIP" / "ViT-B-32.pt")
    assert find_weights("CLIP", tmp_path).path == both


@pytest.mark.parametrize(
    ("model", "present", "absent"),
    [
        ("CLIP", "open_clip_model.safetensors", "open_clip_config.json"),
        ("DINOv2", "model.safetensors", "config.json"),
        ("SigLIPv2", "model.safetensors", "config.json"),
    ],
)
def test_half_a_folder_is_refused_by_name(model: str, present: str, absent: str, tmp_path: Path) -> None:
    put(tmp_path / model / present)
    with pytest.raises(WeightsError, match=absent):
        find_weights(model, tmp_path)


def test_franca_with_several_files_prefers_the_catalogs_name(root: Path) -> None:
    put(root / "Franca" / "other.pth")
    with pytest.raises(WeightsError, match=r"any name\.pth, other\.pth"):
        find_weights("Franca", root)
    official = put(root / "Franca" / get_model("Franca").filename)
    assert find_weights("Franca", root).path == official


@pytest.mark.parametrize("model", [spec.name for spec in MODELS])
@pytest.mark.parametrize("exists", [True, False])
def test_nothing_there_names_the_place_and_three_ways_out(model: str, exists: bool, tmp_path: Path) -> None:
    place = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(WeightsError) as caught:
        find_weights(model, place)
    text = str(caught.value)
    expected = (str(place), f'weights fetch "{model}"', "--weights DIR", "--weights random")
    assert [part for part in expected if part not in text] == []


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"notes\.txt.*ViT-B-32\.pt"):
        find_weights("CLIP", put(tmp_path / "notes.txt"))
    with pytest.raises(UnknownNameError):
        find_weights("clip", tmp_path)


def test_random_weights_are_asked_for_by_name_and_labelled() -> None:
    sources = [find_weights(spec.name, "random") for spec in MODELS]
    assert {source.trained for source in sources} == {False}
    assert {source.kind for source in sources} == {"random"}
    assert {source.origin for source in sources} == {"random seed 0"}
    assert len({source.sha256 for source in sources}) == len(MODELS)
    assert sources == [find_weights(spec.name, "random") for spec in MODELS]


def test_a_published_digest_is_known_to_be_trained(root: Path) -> None:
    path = root / "DINOv2" / "model.safetensors"
    entry = FetchedEntry("hub:facebook/dinov2-base", "c0ffee", path.name, file_sha256(path))
    record_fetched(root, "DINOv2", entry)
    source = find_weights("DINOv2", root)
    assert (source.trained, source.revision) == (True, "c0ffee")
    assert find_weights("DINOv2", path) == source, "however the file is named"
    assert find_weights("SigLIPv2", root).trained is None


def test_a_file_other_than_the_recorded_one_is_refused_with_both_digests(root: Path) -> None:
    path = root / "DINOv2" / "model.safetensors"
    before = file_sha256(path)
    record_fetched(root, "DINOv2", FetchedEntry("hub:facebook/dinov2-base", None, path.name, before))
    put(path, b"damaged")
    with pytest.raises(WeightsError) as caught:
        find_weights("DINOv2", root)
    text = str(caught.value)
    expected = (str(path), before, hashlib.sha256(b"damaged").hexdigest(), "weights fetch")
    assert [part for part in expected if part not in text] == []


def test_the_demos_lock_asks_for_random_weights_where_no_file_is(root: Path, tmp_path: Path) -> None:
    write_random_lock(root)
    assert find_weights("CLIP", root).kind == "file", "a real file wins"
    empty = tmp_path / "empty"
    write_random_lock(empty)
    assert all(find_weights(spec.name, empty) == find_weights(spec.name, "random") for spec in MODELS)
    remove_random_lock(empty)
    assert list(empty.iterdir()) == []
    remove_random_lock(empty)


def test_the_demos_lock_leaves_fetched_entries_alone(tmp_path: Path) -> None:
    entry = FetchedEntry("https://example.org/x.pth", None, "x.pth", "ab" * 32)
    record_fetched(tmp_path, "Franca", entry)
    write_random_lock(tmp_path)
    assert read_lock(tmp_path)["Franca"] == entry
    assert read_lock(tmp_path)["CLIP"] == RandomEntry(0)
    remove_random_lock(tmp_path)
    assert read_lock(tmp_path) == {"Franca": entry}
    assert json.loads((tmp_path / "weights.lock").read_text())["schema"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        '{"schema": 2, "models": {}}',
        '{"schema": 1, "models": {"Unheard of": {"source": "random"}}}',
        '{"schema": 1, "models": {"CLIP": {"source": "https://example.org"}}}',
        '{"schema": 1, "models": {"CLIP": {"source": "random", "seed": "x"}}}',
    ],
)
def test_a_broken_lock_is_named(text: str, root: Path) -> None:
    (root / "weights.lock").write_text(text)
    with pytest.raises(WeightsError, match=r"weights\.lock"):
        find_weights("CLIP", root)
    assert len(verify_weights(root)) == 1


def test_a_changed_file_gets_a_new_digest(tmp_path: Path) -> None:
    path = put(tmp_path / "a.pth", b"one")
    first = file_sha256(path)
    put(path, b"two")
    os.utime(path, ns=(1, 1))
    assert file_sha256(path) == hashlib.sha256(b"two").hexdigest() != first


def test_which_weights_those_are_is_known_before_any_is_read(tmp_path: Path) -> None:
    random = find_weights("DINOv2", "random").sha256
    assert stated_weights("DINOv2", "random") == random
    assert stated_weights("CLIP", tmp_path) == get_model("CLIP").sha256, "what would be fetched"
    write_random_lock(tmp_path)
    assert stated_weights("DINOv2", tmp_path) == random
    put(tmp_path / "DINOv2" / "config.json", b"{}")
    put(tmp_path / "DINOv2" / "model.safetensors")
    published = stated_weights("DINOv2", tmp_path)
    assert published == "facebook/dinov2-base@main", "a file wins over the lock"
    assert stated_weights("DINOv2", tmp_path / "DINOv2") == published
    fetched = FetchedEntry("hub:facebook/dinov2-base", "abc", "model.safetensors", "0" * 64)
    record_fetched(tmp_path, "DINOv2", fetched)
    assert stated_weights("DINOv2", tmp_path) == published, "also after it was fetched"
    record_fetched(tmp_path, "DINOv2", replace(fetched, source="hub:someone/else", sha256="1" * 64))
    assert stated_weights("DINOv2", tmp_path) == "1" * 64
    (tmp_path / "weights.lock").write_text("not a lock")
    assert stated_weights("DINOv2", tmp_path) == published


def test_the_inventory_names_every_model_and_its_state(root: Path) -> None:
    (root / "CLIP" / "ViT-B-32.pt").unlink()
    (root / "SigLIPv2" / "config.json").unlink()
    (root / "Franca" / "any name.pth").unlink()
    lock = {"schema": 1, "models": {"Franca": {"source": "random", "seed": 3}}}
    (root / "weights.lock").write_text(json.dumps(lock))
    rows = {row.model: row for row in list_weights(root)}
    assert list(rows) == [spec.name for spec in MODELS]
    assert {name: row.state for name, row in rows.items()} == {
        "CLIP": "missing",
        "DINOv2": "ready",
        "Franca": "random",
        "SigLIPv2": "invalid",
    }
    assert rows["DINOv2"].size == len(b"DINOv2")
    assert rows["DINOv2"].path == root / "DINOv2" / "model.safetensors"
    assert rows["Franca"].trained is False
    assert "config.json" in (rows["SigLIPv2"].problem or "")
    assert "research" in rows["Franca"].licence


def test_verify_finds_damage_and_loss(root: Path) -> None:
    assert verify_weights(root) == []
    for model, name in (("CLIP", "ViT-B-32.pt"), ("Franca", "any name.pth")):
        record_fetched(root, model, FetchedEntry("https://x", None, name, file_sha256(root / model / name)))
    assert verify_weights(root) == []
    put(root / "CLIP" / "ViT-B-32.pt", b"damaged")
    (root / "Franca" / "any name.pth").unlink()
    problems = verify_weights(root)
    assert len(problems) == 2
    assert "sha256" in problems[0]
    assert str(root / "Franca" / "any name.pth") in problems[1]
