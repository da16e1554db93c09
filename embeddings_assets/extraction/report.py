"""Options of one extraction and the report of what it did."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from embeddings_assets.errors import SettingsError

Progress = Callable[[int, int], None]
"""Called with the images done and the images of the split."""


@dataclass(frozen=True)
class ExtractionOptions:
    """Mechanics and policy; none of it changes a vector.

    Attributes:
        batch_size: images per forward pass; None chooses by the device and its memory.
        workers: decoding processes; None takes one per core, at most 16.
        shard_rows: images staged together; what a crash can cost.
        max_bad_share: share of a split's images that may be unusable before the split fails.
        strict: fail at the first unusable image.
        devices: more than one share the work, each in a process of its own; by default the encoder's one.
        replace: replace a split that stands and was made with another recipe.

    Raises:
        SettingsError: a value out of its range.
    """

    batch_size: int | None = None
    workers: int | None = None
    shard_rows: int = 1024
    max_bad_share: float = 0.01
    strict: bool = False
    replace: bool = False
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("batch_size", "workers", "shard_rows")}
        for name, value in counts.items():
            optional = value is None and name != "shard_rows"
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            if not optional and (not whole or value < 1):
                raise SettingsError(f"{name} is {value!r}; it is a whole number of at least 1.")
        for name in ("strict", "replace"):
            if not isinstance(getattr(self, name), bool):
                raise SettingsError(f"{name} is {getattr(self, name)!r}; it is True or False.")
        if not isinstance(self.max_bad_share, Real) or not 0 <= self.max_bad_share <= 1:
            raise SettingsError(f"max_bad_share is {self.max_bad_share!r}; it is a share from 0 to 1.")


@dataclass(frozen=True)
class Fidelity:
    """Cosines between the stored vectors of sampled rows and those of the `exact` profile."""

    sample: int
    minimum: float
    mean: float


@dataclass(frozen=True)
class SplitReport:
    """What one extraction did.

    Attributes:
        status: `computed`, or `unchanged` where the split that stood was already right.
        rows: rows of the committed split.
        computed, reused, resumed: rows by origin: embedded now, taken by sha256 from the split that stood,
            taken from staged shards of an earlier run that was cut off. Zero each when unchanged.
        ledger: images without a row, by reason.
        changed_fields: recipe fields in which the replaced split differed.
        seconds: wall time; stage_seconds: its parts `load`, `decode`, `forward`, `write`, in `fast` `compare`
            (with `exact`), and `other` (time the driving thread spent on each, or waited for it).
        bytes, raw_bytes: size on disk, and rows x width x 4.
        sha256: digest of the committed files.
        footer: the committed footer.
        batch_size: images per forward pass at the end (it is halved where memory is short).
        peak_bytes: most host memory held, that of the decoding processes included; peak_device_bytes: of
            a GPU. Zero where unknown.
        fidelity: of a split that was computed in `fast`.
    """

    model: str
    dataset: str
    split: str
    status: str
    rows: int
    width: int
    bytes: int
    sha256: str
    footer: Mapping[str, Any]
    computed: int = 0
    reused: int = 0
    resumed: int = 0
    ledger: Mapping[str, int] = field(default_factory=dict)
    changed_fields: tuple[str, ...] = ()
    seconds: float = 0.0
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    device: str = ""
    batch_size: int = 0
    workers: int = 0
    peak_bytes: int = 0
    peak_device_bytes: int = 0
    fidelity: Fidelity | None = None

    @property
    def raw_bytes(self) -> int:
        return self.rows * self.width * 4

    @property
    def images_per_second(self) -> float:
        """Images embedded per second; 0 where none was. Without loading weights and comparing profiles."""
        apart = sum(self.stage_seconds.get(stage, 0.0) for stage in ("load", "compare"))
        working = self.seconds - apart
        return self.computed / working if self.computed else 0.0

    @property
    def stage_shares(self) -> dict[str, float]:
        """Each stage's share of the wall time, 0 to 1."""
        return {stage: value / self.seconds for stage, value in self.stage_seconds.items() if self.seconds}

    @property
    def bottleneck(self) -> str:
        """The stage that took the most time; empty where nothing was done."""
        return max(self.stage_seconds, key=lambda stage: self.stage_seconds[stage], default="")
