"""Small raw datasets in the official layouts, with drawn images, for the demo and the tests.

A folder that this module wrote carries a marker file; no other folder is ever written into or deleted.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from embeddings_assets.catalog import get_dataset
from embeddings_assets.datasets.synthetic.lists import write_aircraft, write_cub, write_nabirds
from embeddings_assets.datasets.synthetic.mats import write_cars, write_dogs, write_flowers
from embeddings_assets.datasets.synthetic.plan import Plan
from embeddings_assets.errors import RawDataError, SettingsError

MARKER = "SYNTHETIC.txt"

_WRITERS: Mapping[str, Callable[[Path, Plan], None]] = {
    "aircraft": write_aircraft,
    "cars": write_cars,
    "cub": write_cub,
    "dogs": write_dogs,
    "flowers": write_flowers,
    "nabirds": write_nabirds,
}

SYNTHETIC_LAYOUTS = frozenset(_WRITERS)

# Flowers has 102 names, and a validation image can be held out only where train has two.
_CLASSES = range(1, 103)
_LEAST_TRAIN = 2


def write_synthetic(
    raw_root: Path,
    dataset: str,
    *,
    classes: int = 8,
    train_per_class: int = 25,
    test_per_class: int = 3,
    seed: int = 0,
) -> Path:
    """Write `<raw_root>/<official folder>` and return it; the same arguments give the same bytes.

    A dataset that publishes a validation split gets `test_per_class` images per class in each of its three
    splits. A folder written before with the same arguments is left as it is; with others it is replaced. The
    folder appears whole, by one rename.

    Raises:
        RawDataError: the folder exists and was not written by this function.
        SettingsError: a count out of range.
    """
    spec = get_dataset(dataset)
    if spec.layout not in _WRITERS:
        raise SettingsError(f"{spec.name}: no synthetic form of the layout {spec.layout!r}.")
    if classes not in _CLASSES or train_per_class < _LEAST_TRAIN or test_per_class < 1:
        raise SettingsError(
            f"A synthetic dataset has 1 to {_CLASSES[-1]} classes, train images from {_LEAST_TRAIN} and test "
            f"images from 1; found {classes}, {train_per_class} and {test_per_class}."
        )
    plan = Plan(
        dataset=spec.name,
        classes=classes,
        train_per_class=train_per_class,
        test_per_class=test_per_class,
        seed=seed,
        official_validation=spec.has_official_validation,
        banner=spec.layout == "aircraft",
    )
    folder = raw_root / spec.raw_folder
    if folder.exists():
        if not is_synthetic(folder):
            raise RawDataError(
                f"{folder}: exists and has no {MARKER}; expected no folder, or a synthetic one.",
                remedy="choose another raw folder for synthetic data, or move this one away",
            )
        if (folder / MARKER).read_text() == _marker_text(plan, folder):
            return folder
    staging = raw_root / f".{spec.raw_folder}.writing"
    _delete(staging)
    staging.mkdir(parents=True)
    _WRITERS[spec.layout](staging, plan)
    (staging / MARKER).write_text(_marker_text(plan, staging))
    remove_synthetic(raw_root, spec.name)
    staging.rename(folder)
    return folder


def remove_synthetic(raw_root: Path, dataset: str) -> bool:
    """Delete a folder that `write_synthetic` wrote; False, and nothing deleted, for any other or none."""
    folder = raw_root / get_dataset(dataset).raw_folder
    if not is_synthetic(folder):
        return False
    # Out of sight first: a deletion that is cut off leaves no half dataset without its marker.
    condemned = raw_root / f".{folder.name}.deleting"
    _delete(condemned)
    folder.rename(condemned)
    _delete(condemned)
    return True


def is_synthetic(folder: Path) -> bool:
    """Whether `write_synthetic` wrote a folder."""
    return not folder.is_symlink() and (folder / MARKER).is_file()


def _marker_text(plan: Plan, folder: Path) -> str:
    files = sum(path.is_file() for path in folder.rglob("*") if path.name != MARKER)
    return (
        "Drawn images in the official layout of a dataset; not the dataset itself.\n"
        f"dataset: {plan.dataset}\nclasses: {plan.classes}\ntrain images per class: {plan.train_per_class}\n"
        f"test images per class: {plan.test_per_class}\nseed: {plan.seed}\nfiles: {files}\n"
    )


def _delete(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
