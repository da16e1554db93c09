"""Where data, weights and scratch live, and how to compute: read once, by the faces.

No other module reads an environment variable; every room takes these values as arguments.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from embeddings_assets.catalog import get_dataset, get_model, get_split
from embeddings_assets.errors import SettingsError

PRECISIONS: tuple[str, ...] = ("exact", "fast")
WIDTHS: tuple[str, ...] = ("contract", "native")
RANDOM_WEIGHTS = "random"


@dataclass(frozen=True)
class DataPaths:
    """Folders of one data root; every path below them is built from the catalog, never from a raw key."""

    raw: Path
    processed: Path
    embeddings: Path

    @classmethod
    def from_root(cls, root: Path) -> "DataPaths":
        return cls(raw=root / "raw", processed=root / "processed", embeddings=root / "embeddings")

    @classmethod
    def from_folders(cls, processed: Path, embeddings: Path) -> "DataPaths":
        """The layout named by its processed and embeddings folders; `raw` lies beside `processed`."""
        return cls(raw=processed.parent / "raw", processed=processed, embeddings=embeddings)

    @property
    def staging(self) -> Path:
        return self.embeddings / ".staging"

    def raw_folder(self, dataset: str) -> Path:
        return self.raw / get_dataset(dataset).raw_folder

    def processed_split(self, dataset: str, split: str) -> Path:
        return self.processed / get_dataset(dataset).name / get_split(split)

    def embeddings_split(self, model: str, dataset: str, split: str) -> Path:
        return self.embeddings / get_model(model).name / get_dataset(dataset).name / get_split(split)


@dataclass(frozen=True)
class Settings:
    """Everything the environment decides. `weights` is a folder or the word `random`."""

    data_root: Path = Path("data")
    weights: str = "data/weights"
    device: str = "auto"
    precision: str = "exact"
    width: str = "contract"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Settings from `EMBEDDINGS_DATA`, `_WEIGHTS`, `_DEVICE`, `_PRECISION` and `_WIDTH`.

        Raises:
            SettingsError: a variable holds a value outside its closed list, or a data root that is not UTF-8.
        """
        root = Path(environment.get("EMBEDDINGS_DATA") or "data")
        if not _is_utf8(root):
            raise SettingsError(f"EMBEDDINGS_DATA is {str(root)!r}; pyarrow opens only names that are UTF-8.")
        return cls(
            data_root=root,
            weights=environment.get("EMBEDDINGS_WEIGHTS") or str(root / "weights"),
            device=environment.get("EMBEDDINGS_DEVICE") or "auto",
            precision=_choice(environment, "EMBEDDINGS_PRECISION", PRECISIONS),
            width=_choice(environment, "EMBEDDINGS_WIDTH", WIDTHS),
        )

    @property
    def weights_root(self) -> Path:
        """Where checkpoints lie or would be put, also while `random` ones are asked for."""
        return self.data_root / "weights" if self.weights == RANDOM_WEIGHTS else Path(self.weights)

    @property
    def paths(self) -> DataPaths:
        return DataPaths.from_root(self.data_root)

    def paths_with(self, processed: str | Path | None, embeddings: str | Path | None) -> DataPaths:
        """The paths of the data root, with either folder replaced by one that was named.

        Raw data is that beside the processed folder where there is any: image paths in manifests begin there.
        """
        own = self.paths
        named = own.processed if processed is None else Path(processed)
        beside = named.parent / "raw"
        return DataPaths(
            raw=beside if os.path.isdir(beside) else own.raw,  # noqa: PTH112 - no error where none may look
            processed=named,
            embeddings=own.embeddings if embeddings is None else Path(embeddings),
        )


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _choice(environment: Mapping[str, str], variable: str, choices: tuple[str, ...]) -> str:
    value = environment.get(variable) or choices[0]
    if value not in choices:
        raise SettingsError(
            f"{variable} is {value!r}; it can be {' or '.join(repr(choice) for choice in choices)}.",
            remedy=f"export {variable}={choices[0]}",
        )
    return value


def malloc_is_set_up() -> bool:
    """Whether the environment sets glibc's malloc up: a MALLOC_*_ variable, or tunables (mallopt(3))."""
    return "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "") or any(
        name.startswith("MALLOC_") and name.endswith("_") for name in os.environ
    )
