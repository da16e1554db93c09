"""Which folders a run's configuration may name.

Dagster's web server has no authentication, and any page open in a browser on the machine can launch a run
with a configuration of its choice. The boundary is therefore fixed when the definitions are loaded, where no
run configuration can reach it.
"""

from dataclasses import dataclass
from pathlib import Path

from embeddings_assets.errors import SettingsError
from embeddings_assets.settings import RANDOM_WEIGHTS, Settings


@dataclass(frozen=True)
class Boundary:
    """The data root and the weights as they were configured; `root` is absolute, links followed."""

    root: Path
    weights: str

    @classmethod
    def of(cls, settings: Settings) -> "Boundary":
        return cls(root=settings.data_root.resolve(), weights=settings.weights)

    def data_root(self, value: str) -> Path:
        """A data root to write below: the configured one, under whatever name.

        No other: a partition stands for its files in one data root, so that a run that wrote elsewhere would
        be recorded as what the graph shows and checks.

        Raises:
            SettingsError: it is another folder.
        """
        if Path(value).resolve() != self.root:
            raise SettingsError(
                f"The data root {value!r} is not the configured data root {self.root}.",
                remedy="leave data.root out of the run configuration; for another data root, start Dagster "
                "with EMBEDDINGS_DATA and a DAGSTER_HOME of its own",
            )
        return Path(value)

    def raw_folder(self, value: str) -> Path:
        """A raw folder to read from, inside the data root; the way there may be a link.

        Raises:
            SettingsError: it lies elsewhere.
        """
        if not self._named_inside(Path(value), self.root):
            raise SettingsError(
                f"The raw folder {value!r} lies outside the configured data root {self.root}.",
                remedy=f"link it into {self.root}, or prepare it once with "
                "`embeddings-assets prepare --raw-dir DIR`, which the manifests remember",
            )
        return Path(value)

    def weights_of(self, value: str) -> str:
        """Weights to load: the configured ones, or a folder inside the data root or the configured folder.

        `random` only where it is configured: it would replace what trained weights have made.

        Raises:
            SettingsError: they lie elsewhere.
        """
        if value == self.weights:
            return value
        if value == RANDOM_WEIGHTS:
            raise SettingsError(
                "Random weights would replace embeddings made with trained ones.",
                remedy="leave gpu.weights out of the run configuration, or set EMBEDDINGS_WEIGHTS=random",
            )
        allowed = [self.root]
        if self.weights != RANDOM_WEIGHTS:
            allowed.append(Path(self.weights).resolve())
        if not any(self._named_inside(Path(value), folder) for folder in allowed):
            raise SettingsError(
                f"The weights {value!r} lie outside the configured folders "
                f"({', '.join(str(folder) for folder in allowed)}).",
                remedy="leave gpu.weights out of the run configuration, or set EMBEDDINGS_WEIGHTS anew",
            )
        return value

    @staticmethod
    def _named_inside(path: Path, folder: Path) -> bool:
        """Whether the path lies in the folder, as it is written or with its links followed."""
        written = path.absolute()
        as_written = ".." not in written.parts and written.is_relative_to(folder)
        return as_written or path.resolve().is_relative_to(folder)
