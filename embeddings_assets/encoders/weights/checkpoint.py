"""Checkpoint files to float32 parameters under their public names: nothing missing, nothing left over.

Files are untrusted: safetensors, or pickles read with a closed list of constructors. Every tensor is copied
out of the file, so that a file changed later cannot change a loaded model.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embeddings_assets.encoders.weights.find import WeightsSource
from embeddings_assets.encoders.weights.random_weights import random_parameters
from embeddings_assets.encoders.weights.torchscript import is_torchscript, read_torchscript
from embeddings_assets.errors import WeightsError

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, tuple[int, ...]]
Rename = Callable[[str], str | None]

_SHOWN = 3  # keys named in an error


def load_parameters(
    source: WeightsSource, shapes: Shapes, rename: Rename, *, within: str = "teacher"
) -> dict[str, "torch.Tensor"]:
    """Every parameter of `shapes`, float32 on the CPU, from the source's file or seeded at random.

    Args:
        shapes: parameter name to shape: exactly what must be there.
        rename: a key of the file to a name of `shapes`, or None for a key that is known and not needed.
        within: the key under which a torch file may hold its parameters, beside other things.

    Raises:
        WeightsError: the file does not load, or its keys or shapes are not those of the architecture.
    """
    if source.path is None:
        return random_parameters(shapes, model=source.model, seed=source.seed)
    found = _read(source.path, lambda key: rename(key) is not None, within)
    names = {key: str(rename(key)) for key in found}
    missing = [name for name in shapes if name not in names.values()]
    unexpected = [key for key, name in names.items() if name not in shapes]
    misshaped = [
        f"{key} {tuple(found[key].shape)}, expected {shapes[name]}"
        for key, name in names.items()
        if name in shapes and tuple(found[key].shape) != shapes[name]
    ]
    twice = [key for key, name in names.items() if list(names.values()).count(name) > 1]
    complaints = [
        f"{len(keys)} {what} ({'; '.join(sorted(keys)[:_SHOWN])}{'; ...' if len(keys) > _SHOWN else ''})"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshaped),
            ("given twice", twice),
        )
        if keys
    ]
    if complaints:
        raise WeightsError(
            f"{source.path}: not the weights of {source.model}. Parameters: {', '.join(complaints)}.",
            remedy=f'embeddings-assets weights fetch "{source.model}", or name the right file with --weights',
        )
    return {name: _float32(found[key]) for key, name in names.items()}


def check_config(path: Path, expected: Mapping[str, Any]) -> None:
    """Refuse a `config.json` that states another architecture than the one that will be built.

    Keys that the file leaves out have the library's defaults, which are the expected values.

    Raises:
        WeightsError: the file is unreadable, or a value that it states differs.
    """
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read as JSON ({error}).") from error
    for key, value in expected.items():
        section = stated
        *parents, last = key.split(".")
        for parent in parents:
            section = section.get(parent, {}) if isinstance(section, dict) else {}
        if isinstance(section, dict) and last in section and section[last] != value:
            raise WeightsError(
                f"{path}: {key} is {section[last]!r}, expected {value!r}: the checkpoint of another model."
            )


def _read(path: Path, keep: Callable[[str], bool], within: str) -> dict[str, "torch.Tensor"]:
    from safetensors import SafetensorError

    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path, keep)
        if is_torchscript(path):
            return read_torchscript(path, keep)
        return _read_torch(path, keep, within)
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        RuntimeError,
        SafetensorError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).split("\n", 1)[0][:300]
        raise WeightsError(
            f"{path}: the checkpoint does not load ({type(error).__name__}: {reason}).",
            remedy="delete the file and fetch it again: embeddings-assets weights fetch",
        ) from error


def _read_safetensors(path: Path, keep: Callable[[str], bool]) -> dict[str, "torch.Tensor"]:
    from safetensors import safe_open

    with safe_open(str(path), framework="pt", device="cpu") as file:
        return {key: file.get_tensor(key) for key in file.keys() if keep(key)}  # noqa: SIM118


def _read_torch(path: Path, keep: Callable[[str], bool], within: str) -> dict[str, "torch.Tensor"]:
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if isinstance(state, dict) and isinstance(state.get(within), dict):
        state = state[within]
    if not isinstance(state, dict):
        raise ValueError(f"holds a {type(state).__name__}, expected a dictionary of tensors")
    kept = {key: value for key, value in state.items() if isinstance(key, str) and keep(key)}
    strangers = [key for key, value in kept.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise ValueError(f"{strangers[0]!r} is no tensor")
    return kept


def _float32(tensor: "torch.Tensor") -> "torch.Tensor":
    import torch

    return tensor.detach().to(torch.float32, copy=True).contiguous()
