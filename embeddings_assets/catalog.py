"""What exists: four models, six datasets, three splits, as plain data.

One row added here is one asset (a model) or one partition key (a dataset) more. Sources of the
counts and of the checkpoint facts are the datasets' official lists and the models' own releases.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeVar

from embeddings_assets.errors import UnknownNameError

Row = TypeVar("Row")

SPLITS: tuple[str, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class ModelSpec:
    """One encoder: what it is, how wide its vectors are, where its weights come from.

    `encoder` names the module of `embeddings_assets.encoders.families` that builds it. `native_width` is the
    width the network gives, `width` the width stored by contract. `filename` is the checkpoint file
    (`model.safetensors` in a transformers folder). `hub_repo` or `url` says where it is published;
    `sha256` is the published digest where one is known.
    """

    name: str
    encoder: str
    architecture: str
    checkpoint: str
    native_width: int
    width: int
    filename: str
    description: str
    licence: str
    homepage: str
    citation: str
    hub_repo: str | None = None
    revision: str = "main"
    url: str | None = None
    sha256: str | None = None
    research_only: bool = False

    def stored_width(self, width: str) -> int:
        """The stored width under the setting `contract` or `native`."""
        return self.native_width if width == "native" else self.width


@dataclass(frozen=True)
class Archive:
    """One published file of a dataset.

    `url` is None where it cannot be had without a form or a person. `bytes`, `md5` and `sha256` are the
    published ones, None where they are not known. What it holds, or the file itself where `unpack` is false,
    belongs in the dataset's raw folder; `strip` is the folder inside the archive that stands for that one.
    """

    filename: str
    url: str | None
    bytes: int | None = None
    md5: str | None = None
    sha256: str | None = None
    unpack: bool = True
    strip: str = ""


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset: its official folder, layout, classes and counts.

    `layout` names the module of `embeddings_assets.datasets` that reads the raw folder. `counts` are
    the images per official split; a dataset without an official `validation` gets one held out of
    its train split. `archives` are what it is published as, `instructions` how to get those without a
    url. `unpacked_bytes` is a rough estimate, for the room on the disk and as a bound of what may come out
    of the archives.
    """

    name: str
    layout: str
    raw_folder: str
    classes: int | None
    description: str
    licence: str
    homepage: str
    citation: str
    counts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    archives: tuple[Archive, ...] = ()
    instructions: str = ""
    unpacked_bytes: int = 10**9

    @property
    def can_be_fetched(self) -> bool:
        """Whether every archive is published at an address."""
        return bool(self.archives) and all(archive.url for archive in self.archives)

    def bytes_of(self, archive: Archive) -> int:
        """The size of one of the archives; a rough estimate where it is not published."""
        return archive.bytes or self.unpacked_bytes

    @property
    def has_official_validation(self) -> bool:
        return "validation" in self.counts


MODELS: tuple[ModelSpec, ...] = (
    ModelSpec(
        name="CLIP",
        encoder="clip",
        architecture="ViT-B/32, QuickGELU",
        checkpoint="openai/ViT-B-32",
        native_width=512,
        width=512,
        filename="ViT-B-32.pt",
        description="OpenAI CLIP ViT-B/32: image tower and joint projection.",
        licence="MIT",
        homepage="https://github.com/openai/CLIP",
        citation="https://arxiv.org/abs/2103.00020",
        url=(
            "https://openaipublic.azureedge.net/clip/models/"
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt"
        ),
        sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
    ModelSpec(
        name="DINOv2",
        encoder="dinov2",
        architecture="ViT-B/14",
        checkpoint="facebook/dinov2-base",
        native_width=768,
        width=768,
        filename="model.safetensors",
        description="Meta DINOv2 ViT-B/14: class token after the final LayerNorm.",
        licence="Apache-2.0",
        homepage="https://github.com/facebookresearch/dinov2",
        citation="https://arxiv.org/abs/2304.07193",
        hub_repo="facebook/dinov2-base",
    ),
    ModelSpec(
        name="Franca",
        encoder="franca",
        architecture="ViT-B/14, SwiGLU",
        checkpoint="valeoai/franca_vitb14_In21K",
        native_width=768,
        width=512,
        filename="franca_vitb14_In21K.pth",
        description="valeo.ai Franca ViT-B/14 (ImageNet-21K): class token after the final LayerNorm.",
        licence="Weights for research only, commercial use prohibited; code Apache-2.0",
        homepage="https://github.com/valeoai/Franca",
        citation="https://arxiv.org/abs/2507.14137",
        url="https://github.com/valeoai/Franca/releases/download/v1.0.0/franca_vitb14_In21K.pth",
        research_only=True,
    ),
    ModelSpec(
        name="SigLIPv2",
        encoder="siglip2",
        architecture="ViT-B/16, attention pooling",
        checkpoint="google/siglip2-base-patch16-224",
        native_width=768,
        width=512,
        filename="model.safetensors",
        description="Google SigLIP 2 base, patch 16, 224 px: pooled image embedding.",
        licence="Apache-2.0",
        homepage="https://github.com/google-research/big_vision",
        citation="https://arxiv.org/abs/2502.14786",
        hub_repo="google/siglip2-base-patch16-224",
    ),
)

DATASETS: tuple[DatasetSpec, ...] = (
    DatasetSpec(
        name="CUB-200-2011",
        layout="cub",
        raw_folder="CUB_200_2011",
        classes=200,
        counts=MappingProxyType({"train": 5994, "test": 5794}),
        description="Caltech-UCSD Birds: 200 bird species.",
        licence="Non-commercial research",
        homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        citation="https://authors.library.caltech.edu/records/cvm3y-5hh21",
        archives=(
            Archive(
                "CUB_200_2011.tgz",
                "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",
                bytes=1_150_585_339,
                md5="97eceeb196236b17998738112f37df78",
                sha256="0c685df5597a8b24909f6a7c9db6d11e008733779a671760afef78feb49bf081",
                strip="CUB_200_2011",
            ),
        ),
        unpacked_bytes=1_250_000_000,
    ),
    DatasetSpec(
        name="FGVC-Aircraft",
        layout="aircraft",
        raw_folder="fgvc-aircraft-2013b",
        classes=100,
        counts=MappingProxyType({"train": 3334, "validation": 3333, "test": 3333}),
        description="FGVC-Aircraft 2013b: 100 aircraft variants.",
        licence="Non-commercial research; photographers keep their copyright",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        citation="https://arxiv.org/abs/1306.5151",
        archives=(
            Archive(
                "fgvc-aircraft-2013b.tar.gz",
                "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                md5="d4acdd33327262359767eeaa97a4f732",
                strip="fgvc-aircraft-2013b",
            ),
        ),
        unpacked_bytes=2_900_000_000,
    ),
    DatasetSpec(
        name="NABirds",
        layout="nabirds",
        raw_folder="nabirds",
        classes=555,
        counts=MappingProxyType({"train": 23929, "test": 24633}),
        description="NABirds: 555 visual categories of North American birds.",
        licence="Non-commercial research, no redistribution (Cornell Lab of Ornithology)",
        homepage="https://dl.allaboutbirds.org/nabirds",
        citation="https://openaccess.thecvf.com/content_cvpr_2015/html/Horn_Building_a_Bird_2015_CVPR_paper.html",
        archives=(Archive("nabirds.tar.gz", None, md5="df21a9e4db349a14e2b08adfd45873bd", strip="nabirds"),),
        instructions="Cornell gives NABirds to those who fill in the form at "
        "https://dl.allaboutbirds.org/nabirds and accept its terms. Download nabirds.tar.gz "
        "there into a folder of yours.",
        unpacked_bytes=10_000_000_000,
    ),
    DatasetSpec(
        name="Oxford 102 Flowers",
        layout="flowers",
        raw_folder="flowers-102",
        classes=102,
        counts=MappingProxyType({"train": 1020, "validation": 1020, "test": 6149}),
        description="Oxford 102 Category Flowers: flowers common in the United Kingdom.",
        licence="Research; images keep their photographers' copyright",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        citation="https://www.robots.ox.ac.uk/~vgg/publications/2008/Nilsback08/",
        archives=(
            Archive(
                "102flowers.tgz",
                "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",
                bytes=344_862_509,
                md5="52808999861908f626f3c1f4e79d11fa",
                sha256="2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
            ),
            Archive(
                "imagelabels.mat",
                "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat",
                bytes=502,
                md5="e0620be6f572b9609742df49c70aed4d",
                unpack=False,
            ),
            Archive(
                "setid.mat",
                "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/setid.mat",
                bytes=14_989,
                md5="a5357ecc9cb78c4bef273ce3793fc85c",
                unpack=False,
            ),
        ),
        unpacked_bytes=360_000_000,
    ),
    DatasetSpec(
        name="Stanford Cars",
        layout="cars",
        raw_folder="stanford_cars",
        classes=196,
        counts=MappingProxyType({"train": 8144, "test": 8041}),
        description="Stanford Cars: 196 makes, models and years.",
        licence="Non-commercial research (ImageNet terms)",
        homepage="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        citation="https://www.cv-foundation.org/openaccess/content_iccv_workshops_2013/W19/html/Krause_3D_Object_Representations_2013_ICCV_paper.html",
        archives=(
            Archive("cars_train.tgz", None, bytes=979_269_282, md5="065e5b463ae28d29e77c1b4b166cfe61"),
            Archive("cars_test.tgz", None, bytes=977_350_468, md5="4ce7ebf6a94d07f1952d94dd34c4d501"),
            Archive("car_devkit.tgz", None, bytes=330_960, md5="c3b158d763b6e2245038c8ad08e45376"),
            Archive(
                "cars_test_annos_withlabels.mat",
                None,
                bytes=185_758,
                md5="b0a2b23655a3edd16d84508592a98d10",
                sha256="790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
                unpack=False,
            ),
        ),
        instructions="The host of Stanford Cars is gone since 2023 and no other is official. From a copy you "
        "trust, put cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat into a "
        "folder of yours; their published digests are checked.",
        unpacked_bytes=2_000_000_000,
    ),
    DatasetSpec(
        name="Stanford Dogs",
        layout="dogs",
        raw_folder="stanford_dogs",
        classes=120,
        counts=MappingProxyType({"train": 12000, "test": 8580}),
        description="Stanford Dogs: 120 breeds, drawn from ImageNet.",
        licence="Non-commercial research (ImageNet terms)",
        homepage="http://vision.stanford.edu/aditya86/ImageNetDogs/",
        citation="http://vision.stanford.edu/aditya86/ImageNetDogs/",
        archives=(
            Archive(
                "images.tar",
                "http://vision.stanford.edu/aditya86/ImageNetDogs/images.tar",
                bytes=793_579_520,
                md5="1bb1f2a596ae7057f99d7d75860002ef",
            ),
            Archive(
                "annotation.tar",
                "http://vision.stanford.edu/aditya86/ImageNetDogs/annotation.tar",
                bytes=21_852_160,
                md5="4298cc0031f6bc6e74612ac83b5988e2",
            ),
            Archive(
                "lists.tar",
                "http://vision.stanford.edu/aditya86/ImageNetDogs/lists.tar",
                bytes=481_280,
                md5="edbb9f16854ec66506b5f09b583e0656",
            ),
        ),
        unpacked_bytes=830_000_000,
    ),
)


def get_model(name: str) -> ModelSpec:
    """The model with exactly this name.

    Raises:
        UnknownNameError: the catalog holds no such model.
    """
    return _lookup("model", name, {model.name: model for model in MODELS})


def get_dataset(name: str) -> DatasetSpec:
    """The dataset with exactly this name.

    Raises:
        UnknownNameError: the catalog holds no such dataset.
    """
    return _lookup("dataset", name, {dataset.name: dataset for dataset in DATASETS})


def get_split(name: str) -> str:
    """The split with exactly this name.

    Raises:
        UnknownNameError: the name is none of `train`, `validation` and `test`.
    """
    return _lookup("split", name, {split: split for split in SPLITS})


def names_of(kind: Literal["model", "dataset", "split"], value: str | None) -> list[str]:
    """The names that `value` stands for; `all` and None stand for every one.

    Raises:
        UnknownNameError: the catalog holds no such model, dataset or split.
    """
    if value is None or value == "all":
        every = {"model": (row.name for row in MODELS), "dataset": (row.name for row in DATASETS)}
        return list(every.get(kind, SPLITS))
    lookups = {"model": get_model, "dataset": get_dataset, "split": get_split}
    lookups[kind](value)
    return [value]


def _lookup(kind: str, name: str, rows: Mapping[str, Row]) -> Row:
    if isinstance(name, str) and name in rows:
        return rows[name]
    by_lower = {known.lower(): known for known in rows}
    asked = str(name).lower()
    close = [lower for lower in by_lower if asked and asked in lower]
    close = close or difflib.get_close_matches(asked, by_lower, n=1)
    known = ", ".join(repr(row) for row in rows)
    raise UnknownNameError(
        f"Unknown {kind} {name!r}. Known: {known}.",
        remedy=f"use {by_lower[close[0]]!r}" if len(close) == 1 else None,
    )
