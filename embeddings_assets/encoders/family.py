"""What the module of one family of models offers; it is all that is written for a new family.

A family is one kind of network with one preprocessing. `ModelSpec.encoder` names its module in this package:
nothing registers it, and everything that differs between families is stated in it.
"""

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, cast

from embeddings_assets.catalog import ModelSpec
from embeddings_assets.encoders.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from embeddings_assets.encoders.weights.find import WeightsSource


@dataclass(frozen=True)
class CheckpointFiles:
    """Which files of a model's own folder are its checkpoint. A file of the catalog's name always is.

    Attributes:
        any_name: so is the only file with the suffix of the catalog's name, whatever it is called.
        companions: further names, each with the file that must lie beside a checkpoint of that name: without
            it, the folder is a broken-off copy. It is downloaded from the hub with the checkpoint.
        hub_extras: further files to download from the hub.
    """

    any_name: bool = False
    companions: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    hub_extras: tuple[str, ...] = ()

    def names(self, spec: ModelSpec) -> list[str]:
        """The names a checkpoint may have, the preferred one first."""
        return list(dict.fromkeys((spec.filename, *self.companions)))

    def hub_companions(self, spec: ModelSpec) -> list[str]:
        """What is downloaded from the hub beside the checkpoint itself."""
        beside = self.companions.get(spec.filename)
        return [*([] if beside is None else [beside]), *self.hub_extras]


@dataclass(frozen=True)
class NetworkSize:
    """How large a network of a family is. Its MLPs are as wide as the family makes them of `width`.

    Attributes:
        output: width of its vectors.
    """

    width: int
    layers: int
    heads: int
    output: int


@dataclass(frozen=True)
class ClassTokenParts:
    """The last of the blocks of a model, taken apart: pre-norm attention and MLP, both with a residual.

    Attributes:
        blocks: all blocks; what takes the place of the last one is put there.
        query, key, value, out: linear layers, each for all heads.
        scale1, scale2: what the attention's and the MLP's outputs go through before they are added.
    """

    blocks: "torch.nn.ModuleList"
    heads: int
    norm1: "torch.nn.Module"
    query: "torch.nn.Linear"
    key: "torch.nn.Linear"
    value: "torch.nn.Linear"
    out: "torch.nn.Linear"
    scale1: "torch.nn.Module"
    norm2: "torch.nn.Module"
    mlp: "torch.nn.Module"
    scale2: "torch.nn.Module"


class Family(Protocol):
    """The module of a family. It loads neither torch nor a model library before `build` is called.

    Attributes:
        RECIPE: from an image to the network's pixels; part of the code version of its assets.
        CHECKPOINT: how weights are recognised on disk.
        LIBRARIES: distributions beside torch, Pillow and numpy whose versions go into the files' footers.
    """

    RECIPE: Recipe
    CHECKPOINT: CheckpointFiles
    LIBRARIES: tuple[str, ...]

    def build(self, source: "WeightsSource") -> "torch.nn.Module":
        """A float32 module from normalised pixels [n, 3, size, size] to vectors [n, native_width].

        `load_parameters` reads the checkpoint, or draws seeded parameters where the source is random.

        Raises:
            WeightsError: the checkpoint is not one of this family.
        """
        ...

    def shapes(self, size: NetworkSize) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every parameter of the image tower, as they are published.

        Needed for `self_test.py`, which holds what a family's published code gives for a tiny network.
        """
        ...

    def assemble(self, parameters: "dict[str, torch.Tensor]", size: NetworkSize) -> "torch.nn.Module":
        """The module that `build` gives, of parameters at hand. Needed where `shapes` is."""
        ...

    def blocks(self, model: "torch.nn.Module") -> "Iterable[torch.nn.Module]":
        """The parts of a built model that the `fast` profile computes in bfloat16; may be none."""
        ...

    def class_token_parts(self, model: "torch.nn.Module") -> "ClassTokenParts | None":
        """Of a built model whose vector is made of one token, the first: its last block; otherwise None.

        Nothing else of that block is computed.
        """
        ...


def family_of(spec: ModelSpec) -> Family:
    """The module of a model's family.

    Raises:
        ModuleNotFoundError: the catalog row names a module that does not exist.
    """
    return cast(Family, importlib.import_module(f"embeddings_assets.encoders.families.{spec.encoder}"))
