"""What a run can be configured with: the folders (`data`) and the computing (`gpu`).

Every field can be set per run in the launchpad. Importing this module loads neither torch nor a room that
reads images; the methods do.
"""

import contextlib
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import dagster as dg
from pydantic import Field, PrivateAttr

from embeddings_assets.errors import SettingsError
from embeddings_assets.graph.boundary import Boundary
from embeddings_assets.settings import DataPaths, Settings

if TYPE_CHECKING:
    from embeddings_assets.datasets.report import PrepareReport
    from embeddings_assets.datasets.status import RawStatus
    from embeddings_assets.extraction.report import SplitReport
    from embeddings_assets.pipeline import EncoderCache

_DEVICES = ("auto", "cpu", "cuda")


class DataResource(dg.ConfigurableResource):
    """Where images, manifests and embeddings lie, and which raw data is good enough."""

    boundary: ClassVar[Boundary | None] = None

    root: str = Field(
        description="Data root: holds raw/, processed/ and embeddings/. Anything but the configured one "
        "(EMBEDDINGS_DATA), whose files the partitions stand for, is refused."
    )
    raw_dir: str | None = Field(
        default=None,
        description="Folder inside the data root that holds the official raw folders. Default: <root>/raw.",
    )
    allow_missing: bool = Field(
        default=False,
        description="Accept a partial dataset: listed images that are absent go to the ledger.",
    )
    max_bad_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of a split's images, 0 to 1, that may be unusable before preparing it fails.",
    )
    strict: bool = Field(default=False, description="Tolerate no unusable image when preparing.")
    crop: Literal["as_prepared", "none", "banner", "bounding_box"] = Field(
        default="as_prepared",
        description="Part of each image to use: none (all of it), banner (all but the copyright line of "
        "FGVC-Aircraft), bounding_box, or as the dataset's manifests stand (none if there are none yet).",
    )
    hold_out_share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of train that becomes validation where a dataset publishes none. "
        "Default: as the dataset's manifests stand, else 0.1.",
    )
    hold_out_seed: int | None = Field(
        default=None,
        description="Seed of the hold-out. Default: as the dataset's manifests stand, else 0.",
    )
    decode: bool = Field(
        default=False, description="Decode every image when preparing: finds damage inside files too."
    )

    @classmethod
    def bound_to(cls, settings: Settings) -> Self:
        """The resource of these settings; no run configuration can lead it out of their data root."""
        variables = {"boundary": Boundary.of(settings)}
        return cast("Callable[[], Self]", _bound(cls, variables, {"root": str(settings.data_root)}))()

    @property
    def paths(self) -> DataPaths:
        """The folders of the data root.

        Raises:
            SettingsError: the root is not the configured one.
        """
        return DataPaths.from_root(_boundary_of(self).data_root(self.root))

    def observe(self, dataset: str) -> "RawStatus":
        """Whether a dataset's images are there, and in which version; opens none."""
        from embeddings_assets.datasets.status import raw_status

        return raw_status(dataset, self.paths, self._raw_folder())

    def prepare(self, dataset: str, split: str, log: dg.DagsterLogManager) -> "PrepareReport":
        """Write the manifest of one split (see `prepare_dataset` for what is raised)."""
        from embeddings_assets.graph.running import prepare_split

        return prepare_split(
            dataset,
            split,
            self.paths,
            log,
            raw_dir=self._raw_folder(),
            allow_missing=self.allow_missing,
            max_bad_share=self.max_bad_share,
            strict=self.strict,
            crop=None if self.crop == "as_prepared" else self.crop,
            hold_out_share=self.hold_out_share,
            hold_out_seed=self.hold_out_seed,
            decode=self.decode,
        )

    def _raw_folder(self) -> Path | None:
        return None if self.raw_dir is None else _boundary_of(self).raw_folder(self.raw_dir)


class GpuResource(dg.ConfigurableResource):
    """How embeddings are computed. Encoders live as long as the run."""

    boundary: ClassVar[Boundary | None] = None
    kept: "ClassVar[EncoderCache | None]" = None

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto takes the first GPU, or the CPU where there is none."
    )
    precision: Literal["exact", "fast"] = Field(
        default="exact",
        description="exact: float32 and reference pixels. fast: bfloat16 and tensor resize, cos >= 0.9995.",
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        le=16_384,
        description="Images per forward pass. Default: 256 on a GPU, 32 on a CPU, or what memory allows.",
    )
    workers: int | None = Field(
        default=None, ge=1, le=256, description="Decoding processes. Default: one per core, at most 16."
    )
    shard_rows: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Images staged together: what a crash can cost. Default: 1024.",
    )
    max_bad_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of a split's images, 0 to 1, that may be unusable before embedding it fails.",
    )
    strict: bool = Field(default=False, description="Fail at the first unusable image.")
    replace: bool = Field(
        default=True,
        description="Replace a split that was made with another recipe; off: fail, and keep it.",
    )
    weights: str = Field(
        description="Weights folder: the configured one (EMBEDDINGS_WEIGHTS, which may be 'random' for "
        "untrained ones), one inside it or inside the data root; anything else is refused."
    )
    _cache: "EncoderCache | None" = PrivateAttr(default=None)

    @classmethod
    def bound_to(cls, settings: Settings, *, kept: "EncoderCache | None" = None) -> Self:
        """The resource of these settings.

        Args:
            kept: encoders of this process that outlive a run; whoever gives it closes it. By default a run
                loads its own, and frees them at its end.

        Raises:
            SettingsError: a device that is none of `auto`, `cpu` and `cuda`.
        """
        if settings.device not in _DEVICES:
            raise SettingsError(
                f"EMBEDDINGS_DEVICE is {settings.device!r}; in Dagster it can be {', '.join(_DEVICES)}.",
                remedy="to choose one of several GPUs: export CUDA_VISIBLE_DEVICES=1 EMBEDDINGS_DEVICE=cuda",
            )
        variables = {"boundary": Boundary.of(settings), "kept": kept}
        defaults = {name: getattr(settings, name) for name in ("device", "precision", "weights")}
        return cast("Callable[[], Self]", _bound(cls, variables, defaults))()

    def embed(
        self, model: str, width: str, dataset: str, split: str, paths: DataPaths, log: dg.DagsterLogManager
    ) -> "SplitReport":
        """Embed one prepared split (see `extract_split` for what is raised).

        Args:
            width: `contract` or `native`.
        """
        from embeddings_assets.extraction.report import ExtractionOptions
        from embeddings_assets.graph.running import embed_split
        from embeddings_assets.pipeline import EncoderChoice, SplitRequest

        boundary = _boundary_of(self)
        choice = EncoderChoice(
            weights=boundary.weights_of(self.weights),
            fetch=self.weights == boundary.weights,
            precision=self.precision,
            width=width,
            device=self.device,
        )
        options = ExtractionOptions(
            batch_size=self.batch_size,
            workers=self.workers,
            shard_rows=self.shard_rows or ExtractionOptions.shard_rows,
            max_bad_share=self.max_bad_share,
            strict=self.strict,
            replace=self.replace,
        )
        request = SplitRequest(model, dataset, split, paths, choice, options)
        return embed_split(request, self._encoders(), log)

    def _encoders(self) -> "EncoderCache":
        from embeddings_assets.pipeline import EncoderCache

        if self.kept is not None:
            return self.kept
        self._cache = self._cache or EncoderCache()
        return self._cache

    @contextlib.contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[Self, None, None]:
        try:
            yield self
        finally:
            if self._cache is not None:
                self._cache.close()


def _bound(
    cls: type[dg.ConfigurableResource], variables: Mapping[str, Any], defaults: Mapping[str, Any]
) -> type:
    """A subclass with class variables and defaults of its own.

    Dagster rebuilds a resource for each run from the run's configuration and the defaults of its class;
    values given to an instance are lost as soon as a run configures another field.
    """
    fields = {name: cls.model_fields[name] for name in defaults}
    return type(
        cls.__name__,
        (cls,),
        {
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
            "__annotations__": {name: field.annotation for name, field in fields.items()},
            **{
                name: Field(default=defaults[name], description=field.description)
                for name, field in fields.items()
            },
            **variables,
        },
    )


def _boundary_of(resource: DataResource | GpuResource) -> Boundary:
    if resource.boundary is None:
        raise SettingsError(
            f"{type(resource).__name__} is not bound to a data root.",
            remedy=f"make it with {type(resource).__name__}.bound_to(settings)",
        )
    return resource.boundary
