"""Tensors out of a TorchScript archive, without running any of its code.

OpenAI's published ViT-B-32.pt is such an archive. `torch.jit.load` would compile the code in it, and is
deprecated; the tensors are all that is wanted. The pickle is read with a closed list of constructors: an
archive that asks for anything else is refused.
"""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_DTYPES = {
    "HalfStorage": "float16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
}


class _Module:
    """Stands for every class of the archive's own: holds attributes, runs nothing."""

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"a module state of type {type(state).__name__}")
        self.__dict__.update(state)


@dataclass(frozen=True)
class _Storage:
    archive: zipfile.ZipFile
    name: str
    dtype: str
    count: int

    def read(self) -> "torch.Tensor":
        import torch

        dtype = getattr(torch, self.dtype)
        content = self.archive.read(self.name)
        if len(content) != self.count * dtype.itemsize:
            raise ValueError(f"{self.name}: {len(content)} bytes, expected {self.count} x {self.dtype}")
        return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)


@dataclass(frozen=True)
class _Tensor:
    """A tensor not yet read: those nobody asks for (the text tower) never are."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> "torch.Tensor":
        return self.storage.read().as_strided(self.size, self.stride, self.offset).clone()


def is_torchscript(path: Path) -> bool:
    """Whether the file is a zip archive with the constants that only TorchScript writes."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path, keep: Callable[[str], bool]) -> dict[str, "torch.Tensor"]:
    """The archive's parameters and buffers by dotted name, those for which `keep(name)` is true.

    Raises:
        ValueError, KeyError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile: the archive is
            damaged, or holds more than modules and tensors.
    """
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{len(pickles)} data.pkl in the archive, expected one")
        with archive.open(pickles[0]) as stream:
            module = _Unpickler(stream, archive, pickles[0].removesuffix("data.pkl")).load()
        if not isinstance(module, _Module):
            raise ValueError(f"the archive holds a {type(module).__name__}, expected a module")
        return {name: tensor.read() for name, tensor in _tensors(module, "") if keep(name)}


def _tensors(module: _Module, prefix: str) -> Iterator[tuple[str, _Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, _Tensor):
            yield f"{prefix}{name}", value


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(stream)
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "torch.jit._pickle":
            return _no_tensor
        raise pickle.UnpicklingError(f"the archive asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, count = pid
        if kind != "storage" or not isinstance(dtype, str):
            raise pickle.UnpicklingError(f"a persistent object {kind!r}")
        return _Storage(self.archive, f"{self.root}data/{key}", dtype, count)


def _rebuild_tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> _Tensor:
    return _Tensor(storage, offset, size, stride)


def _no_tensor(*_: object) -> None:
    """Typed lists and dictionaries of TorchScript: attributes that hold no parameters."""
