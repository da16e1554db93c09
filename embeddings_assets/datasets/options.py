"""Options of `prepare` that change what a manifest means: the hold-out and the crop.

They are recorded in every manifest and are part of its fingerprint.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from embeddings_assets.catalog import SPLITS
from embeddings_assets.datasets.layouts.listing import ImageRecord
from embeddings_assets.datasets.splits import HoldOut, needs_hold_out, split_options
from embeddings_assets.errors import SettingsError, StoreError
from embeddings_assets.io.files import disk_errors
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import open_manifest
from embeddings_assets.store.schema import NO_CROP


def manifest_options(records: Sequence[ImageRecord], hold_out: HoldOut, crop: str) -> dict[str, Any]:
    """The options as a manifest records them."""
    return {**split_options(records, hold_out), "crop": crop}


def standing_options(paths: DataPaths, dataset: str) -> tuple[HoldOut | None, str | None]:
    """Hold-out and crop that the dataset's manifests record; None for what none of them says."""
    hold_out, crop = None, None
    for options in _recorded(paths, dataset, SPLITS).values():
        if hold_out is None and isinstance(options.get("hold_out"), dict):
            with contextlib.suppress(TypeError, SettingsError):  # of another version
                hold_out = HoldOut(**options["hold_out"])
        crop = crop or options.get("crop")
    return hold_out, crop


@disk_errors()
def chosen_options(
    paths: DataPaths,
    dataset: str,
    *,
    crop: str | None = None,
    share: float | None = None,
    seed: int | None = None,
) -> tuple[HoldOut, str]:
    """Hold-out and crop of a run: what is given, else as the dataset was prepared, else the defaults.

    Raises:
        SettingsError: a share that is no share.
        StoreError: the manifests cannot be looked at.
    """
    recorded, recorded_crop = standing_options(paths, dataset)
    rule = recorded or HoldOut()
    rule = HoldOut(rule.share if share is None else share, rule.seed if seed is None else seed)
    return rule, crop or recorded_crop or NO_CROP


def check_use(dataset: str, records: Sequence[ImageRecord], on_unused: Callable[[str], None] | None) -> None:
    """Make sure that a hold-out that was asked for is of use; `on_unused` is told instead of an error.

    Raises:
        SettingsError: the dataset publishes its validation split.
    """
    if needs_hold_out(records):
        return
    problem = f"{dataset} has a published validation split; nothing is held out of train."
    if on_unused is None:
        raise SettingsError(problem, remedy="leave out the share and the seed of the hold-out")
    on_unused(problem)


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs between the options of two manifests, as `crop: banner -> none`."""
    return [
        f"{name}: {_shown(before[name])} -> {_shown(after[name])}"
        for name in after
        if name in before and before[name] != after[name]
    ]


def refuse_mixture(paths: DataPaths, dataset: str, wanted: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse to prepare some splits with other options than those that the other splits were prepared with.

    Raises:
        SettingsError: an image could be in two splits, or cropped in one of them only.
    """
    others = [split for split in SPLITS if split not in wanted]
    for split, recorded in _recorded(paths, dataset, others).items():
        differing = [name for name in options if recorded.get(name) != options[name]]
        if differing:
            name = differing[0]
            hold_out = options["hold_out"]
            flags = "" if hold_out is None else f" --hold-out {hold_out['share']} --seed {hold_out['seed']}"
            raise SettingsError(
                f"{dataset}/{split} was prepared with {name} {_shown(recorded.get(name))}, "
                f"{', '.join(wanted)} would be with {_shown(options[name])}.",
                remedy="change all splits at once: embeddings-assets prepare "
                f'--dataset "{dataset}" --crop {options.get("crop", NO_CROP)}{flags}',
            )


def _recorded(paths: DataPaths, dataset: str, splits: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for split in splits:
        try:
            found[split] = open_manifest(paths, dataset, split, alone=True).footer["options"]
        except StoreError:
            continue
    return found


def _shown(value: object) -> str:
    return str(value) if not isinstance(value, dict) else ", ".join(f"{k} {value[k]}" for k in sorted(value))
