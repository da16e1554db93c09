"""What preparing one split comes to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PrepareReport:
    """What `prepare_dataset` did for one split.

    `listed` = `rows` + the sum of `ledger`, which counts reasons. `official` is what the catalog says of the
    official split of that name; where validation is held out of train, that is train and validation together.
    `changed` says whether the fingerprint differs from the manifest that stood before, `options_changed`
    which options do, such as `crop: banner -> none`; `read` is how many image files were opened: those that
    are new or have changed.
    """

    dataset: str
    split: str
    rows: int
    ledger: Mapping[str, int]
    fingerprint: str
    classes: int
    listed: int
    official: int | None
    changed: bool
    read: int
    seconds: float
    options_changed: Sequence[str] = ()
