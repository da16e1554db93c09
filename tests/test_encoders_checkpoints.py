"""Reading checkpoints: strictly, in every accepted format, and never running what is in them."""

import json
import math
import pickle
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from encoders_kit import CORE, MAX_ABS, kit_encoder, kit_pixels, reference
from safetensors.torch import save_file
from transformers import Dinov2Config, Dinov2Model

from embeddings_assets import catalog
from embeddings_assets.catalog import get_model
from embeddings_assets.encoders.families import clip, dinov2, franca, siglip2
from embeddings_assets.encoders.families.vit14 import SIZES, architecture
from embeddings_assets.encoders.plan import plan_encoder
from embeddings_assets.encoders.weights.checkpoint import load_parameters
from embeddings_assets.encoders.weights.find import WeightsSource, find_weights
from embeddings_assets.encoders.weights.torchscript import is_torchscript
from embeddings_assets.errors import EmbeddingsError, WeightsError

SHAPES = {"a": (2, 3), "b": (4,)}
GOOD = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}


def saved(tensors: dict[str, torch.Tensor], folder: Path, form: str) -> WeightsSource:
    """A Franca source whose file holds these tensors; `form` is the file format."""
    path = folder / "franca.pth"
    if form == "safetensors":
        path = folder / "model.safetensors"
        save_file(tensors, path)
    else:
        wrapped = {"teacher": tensors} if form == "teacher" else tensors
        torch.save(wrapped, path, _use_new_zipfile_serialization=form != "legacy")
    return WeightsSource("Franca", "file", path, "0" * 64, None, path.name)


@pytest.mark.parametrize("form", ["safetensors", "plain", "teacher", "legacy"])
def test_every_format_gives_float32_copies(form: str, tmp_path: Path) -> None:
    source = saved({"a": GOOD["a"].half(), "b": GOOD["b"]}, tmp_path, form)
    loaded = load_parameters(source, SHAPES, str)
    source.path.write_bytes(b"")
    assert set(loaded) == set(SHAPES)
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values())
    assert all(torch.equal(loaded[name], GOOD[name]) for name in SHAPES)


@pytest.mark.parametrize("form", ["safetensors", "teacher"])
@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"a": GOOD["a"]}, r"1 missing \(b\)"),
        ({**GOOD, "stranger": torch.ones(1)}, r"1 unexpected \(stranger\)"),
        ({**GOOD, "b": torch.ones(5)}, r"1 of another shape \(b \(5,\), expected \(4,\)\)"),
        ({**GOOD, "module.b": torch.zeros(4)}, r"2 given twice \(b; module\.b\)"),
        ({f"x{index}": torch.ones(1) for index in range(9)}, r"9 unexpected \(x0; x1; x2; \.\.\.\)"),
    ],
)
def test_what_does_not_fit_is_named(
    form: str, tensors: dict[str, torch.Tensor], complaint: str, tmp_path: Path
) -> None:
    source = saved(tensors, tmp_path, form)
    with pytest.raises(WeightsError, match=complaint) as caught:
        load_parameters(source, SHAPES, franca.plain_name)
    assert str(source.path) in str(caught.value)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran").absolute(),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"teacher": {"a": Payload()}}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"evil\.pth"):
        franca.build(find_weights("Franca", tmp_path / "evil.pth"))
    assert not Path("ran").exists()


def test_a_torchscript_archive_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ViT-B-32.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps(Payload()))
        archive.writestr("x/constants.pkl", pickle.dumps(()))
    assert is_torchscript(path)
    with pytest.raises(WeightsError, match="asks for"):
        clip.build(find_weights("CLIP", path))
    assert not Path("ran").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"<html>", b"\x08\0\0\0\0\0\0\0{}"])
@pytest.mark.parametrize("name", ["ViT-B-32.pt", "open_clip_model.safetensors"])
def test_damaged_files_are_named(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        clip.build(find_weights("CLIP", tmp_path / name))


@pytest.mark.parametrize(
    ("family", "model", "config", "complaint"),
    [
        (dinov2, "DINOv2", {"model_type": "dinov2_with_registers"}, "model_type"),
        (dinov2, "DINOv2", {"model_type": "dinov2", "layer_norm_eps": 1e-5}, "layer_norm_eps"),
        (siglip2, "SigLIPv2", {"model_type": "siglip2"}, "model_type"),
        (
            siglip2,
            "SigLIPv2",
            {"model_type": "siglip", "vision_config": {"hidden_act": "gelu"}},
            "hidden_act",
        ),
        (siglip2, "SigLIPv2", {"model_type": "siglip", "vision_config": {"image_size": 256}}, "image_size"),
    ],
)
def test_a_folder_of_another_architecture_is_refused(
    family: object, model: str, config: dict, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match=rf"config\.json: .*{complaint}"):
        family.build(find_weights(model, tmp_path))


def test_the_kits_key_counts_are_the_published_ones() -> None:
    assert len(franca.shapes()) == 175
    assert len(dinov2.shapes()) == 223
    assert len(siglip2.shapes()) == 208
    assert len(clip.shapes()) == 152


@pytest.mark.parametrize("width", [384, 768, 1024])
@pytest.mark.parametrize("family", [dinov2, franca])
def test_every_size_has_as_many_parameters_as_the_architecture(family: ModuleType, width: int) -> None:
    config = Dinov2Config(**architecture(SIZES[width]), use_swiglu_ffn=family is franca, image_size=518)
    with torch.device("meta"):
        network = Dinov2Model(config)
    expected = sum(tensor.numel() for tensor in network.state_dict().values())
    assert sum(math.prod(shape) for shape in family.shapes(SIZES[width]).values()) == expected


@pytest.mark.parametrize(
    ("model", "native_width", "complaint"),
    [("DINOv2", 500, "native_width is 500; .* 384, 768, 1024"), ("CLIP", 768, "vectors of width 512, but")],
)
def test_a_catalog_row_of_another_width_than_the_network_is_refused(
    model: str, native_width: int, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(get_model(model), native_width=native_width, width=native_width)
    monkeypatch.setattr(catalog, "MODELS", (row,))
    with pytest.raises(EmbeddingsError, match=complaint) as caught:
        plan_encoder(model, weights="random", device="cpu").load().encode(
            np.zeros((1, 224, 224, 3), np.uint8)
        )
    assert "catalog.py" in str(caught.value)


def test_parameters_may_lie_under_any_key_that_the_family_names(tmp_path: Path) -> None:
    torch.save({"model": GOOD, "epoch": 3}, tmp_path / "franca.pth")
    source = WeightsSource("Franca", "file", tmp_path / "franca.pth", "0" * 64, None, "franca.pth")
    assert set(load_parameters(source, SHAPES, str, within="model")) == set(SHAPES)
    with pytest.raises(WeightsError, match="'model' is no tensor"):
        load_parameters(source, SHAPES, str)


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        ("module.backbone.blocks.2.7.attn.qkv.weight", "blocks.7.attn.qkv.weight"),
        ("backbone.blocks.0.11.ls1.gamma", "blocks.11.ls1.gamma"),
        ("blocks.3.10.mlp.w12.bias", "blocks.10.mlp.w12.bias"),
        ("pos_embed", "pos_embed"),
    ],
)
def test_franca_keys_lose_prefix_and_chunk(key: str, plain: str) -> None:
    assert franca.plain_name(key) == plain


def scripted(state: dict[str, torch.Tensor], path: Path) -> None:
    """A TorchScript archive with exactly these parameters, as OpenAI published its own."""

    def module_of(entries: dict[str, torch.Tensor]) -> torch.nn.Module:
        module = torch.nn.Module()
        children: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in entries.items():
            head, _, rest = name.partition(".")
            if rest:
                children.setdefault(head, {})[rest] = tensor
            elif tensor.is_floating_point():
                module.register_parameter(head, torch.nn.Parameter(tensor))
            else:
                module.register_buffer(head, tensor)
        for head, entries_below in children.items():
            module.add_module(head, module_of(entries_below))
        return module

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; published archives stay
        torch.jit.script(module_of(state)).save(path)


def test_openais_torchscript_archive_gives_the_published_vectors(
    parity_kit: Path, shared: Path, tmp_path: Path
) -> None:
    state = torch.load(parity_kit / "clip_openai" / "ViT-B-32.pt", weights_only=True)
    assert {tensor.dtype for tensor in state.values()} >= {torch.float16, torch.float32}
    path = tmp_path / "CLIP" / "ViT-B-32.pt"
    path.parent.mkdir()
    scripted(state, path)
    assert is_torchscript(path)
    encoder = plan_encoder("CLIP", weights=tmp_path, device="cpu").load()
    vectors = encoder.encode(kit_pixels(shared, kit_encoder(parity_kit, "clip-openai"), CORE)[:3])
    assert np.abs(vectors - reference(shared, "clip_vitb32.core")[:3]).max() <= MAX_ABS


@pytest.mark.parametrize("stated", [False, None, "absent"])
def test_an_open_clip_folder_of_another_activation_is_refused(
    parity_kit: Path, tmp_path: Path, stated: object
) -> None:
    folder = tmp_path / "CLIP"
    folder.mkdir()
    (folder / "open_clip_model.safetensors").symlink_to(
        parity_kit / "clip_open_clip" / "open_clip_model.safetensors"
    )
    config = json.loads((parity_kit / "clip_open_clip" / "open_clip_config.json").read_text())
    if stated == "absent":
        del config["model_cfg"]["quick_gelu"]
    else:
        config["model_cfg"]["quick_gelu"] = stated
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="quick_gelu is not true"):
        plan_encoder("CLIP", weights=tmp_path, device="cpu").load()
