"""Synthetic Flowers, Cars and Dogs: the three official layouts whose lists are .mat files.

Field names, shapes and types are those of the published files.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embeddings_assets.datasets.synthetic import names as synthetic_names
from embeddings_assets.datasets.synthetic.plan import Plan, Slot, extended, middle_box, write_lines

# The text at the head of a .mat file: scipy writes the time there, and equal inputs shall give equal bytes.
_MAT_HEADER = b"MATLAB 5.0 MAT-file, Platform: synthetic".ljust(116)

_PNG_NAMED_JPG = "n02105855_2933"
_BOX_FIELDS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def write_flowers(folder: Path, plan: Plan) -> None:
    """jpg/, imagelabels.mat and setid.mat, whose image numbers are unsorted as in the real file."""
    slots = plan.shuffled_slots()
    numbers: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for number, (label, split) in enumerate(slots, start=1):
        plan.draw(folder / "jpg" / f"image_{number:05d}.jpg", label, number)
        numbers[split].append(number)
    rng = plan.rng("sets")
    sets = {split: np.array([rng.sample(of, len(of))], dtype=np.uint16) for split, of in numbers.items()}
    labels = np.array([[slot.label + 1 for slot in slots]], dtype=np.uint8)
    _write_mat(folder / "imagelabels.mat", {"labels": labels})
    _write_mat(
        folder / "setid.mat", {"trnid": sets["train"], "valid": sets["validation"], "tstid": sets["test"]}
    )


def write_cars(folder: Path, plan: Plan) -> None:
    """cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat."""
    class_names = extended(synthetic_names.CARS, plan.classes, "Synthetic Car {0} 2012")
    devkit = folder / "devkit"
    devkit.mkdir()
    _write_mat(devkit / "cars_meta.mat", {"class_names": _cells(class_names, row=True)})
    slots = plan.shuffled_slots()
    for split in ("train", "test"):
        annotated = []
        for number, slot in enumerate((slot for slot in slots if slot.split == split), start=1):
            file = f"{number:05d}.jpg"
            index = number if split == "train" else number + len(slots)
            x, y, width, height = middle_box(plan.draw(folder / f"cars_{split}" / file, slot.label, index))
            annotated.append((x, y, x + width - 1, y + height - 1, slot.label + 1, file))
        labelled = (*_BOX_FIELDS, "class", "fname")
        if split == "train":
            _write_mat(devkit / "cars_train_annos.mat", {"annotations": _structs(labelled, annotated)})
            write_lines(devkit / "train_perfect_preds.txt", [str(row[4]) for row in annotated])
        else:
            plain = _structs((*_BOX_FIELDS, "fname"), [(*row[:4], row[5]) for row in annotated])
            _write_mat(devkit / "cars_test_annos.mat", {"annotations": plain})
            with_labels = folder / "cars_test_annos_withlabels.mat"
            _write_mat(with_labels, {"annotations": _structs(labelled, annotated)})


def write_dogs(folder: Path, plan: Plan) -> None:
    """Images/ and the three lists; one Shetland sheepdog is a PNG named .jpg, as in the real set."""
    classes = extended(synthetic_names.DOGS, plan.classes, "n02990{0}-synthetic_dog_{0}")
    files: list[tuple[str, Slot]] = []
    for index, slot in enumerate(plan.slots()):
        class_folder = classes[slot.label]
        synset = class_folder.partition("-")[0]
        stem = f"{synset}_{100 + index}"
        if _PNG_NAMED_JPG.startswith(synset) and not any(_PNG_NAMED_JPG in file for file, _ in files):
            stem = _PNG_NAMED_JPG
        files.append((f"{class_folder}/{stem}.jpg", slot))
        size = plan.draw(folder / "Images" / files[-1][0], slot.label, index, as_png=stem == _PNG_NAMED_JPG)
        x, y, width, height = middle_box(size)
        edges = {"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height}
        box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges.items())
        boxes = folder / "Annotation" / class_folder
        boxes.mkdir(parents=True, exist_ok=True)
        write_lines(boxes / stem, [f"<annotation><object><bndbox>{box}</bndbox></object></annotation>"])
    for name, splits in (("file", ("train", "test")), ("train", ("train",)), ("test", ("test",))):
        chosen = [(file, slot) for file, slot in files if slot.split in splits]
        content = {
            "file_list": _cells([file for file, _ in chosen]),
            "annotation_list": _cells([file.removesuffix(".jpg") for file, _ in chosen]),
            "labels": np.array([[slot.label + 1] for _, slot in chosen], dtype=np.uint8),
        }
        _write_mat(folder / f"{name}_list.mat", content)


def _cells(texts: Sequence[str], *, row: bool = False) -> np.ndarray[Any, Any]:
    cells = np.empty((1, len(texts)) if row else (len(texts), 1), dtype=object)
    cells.flat[:] = texts
    return cells


def _structs(fields: Sequence[str], rows: Sequence[Sequence[int | str]]) -> np.ndarray[Any, Any]:
    """A (1, n) struct array; whole numbers are stored in the smallest unsigned type, as MATLAB users did."""
    structs = np.empty((1, len(rows)), dtype=[(name, object) for name in fields])
    for position, row in enumerate(rows):
        for name, value in zip(fields, row, strict=True):
            structs[0, position][name] = (
                value if isinstance(value, str) else np.array([[value]], dtype=np.min_scalar_type(value))
            )
    return structs


def _write_mat(path: Path, content: Mapping[str, Any]) -> None:
    # Slow to import, and most imports of this package write no .mat file.
    from scipy.io import savemat

    stream = io.BytesIO()
    savemat(stream, dict(content), do_compression=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_MAT_HEADER + stream.getvalue()[len(_MAT_HEADER) :])
