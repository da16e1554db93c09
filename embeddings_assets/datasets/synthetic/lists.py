"""Synthetic CUB, Aircraft and NABirds: the three official layouts whose lists are text."""

import uuid
from pathlib import Path

from embeddings_assets.datasets.synthetic import names as synthetic_names
from embeddings_assets.datasets.synthetic.plan import Plan, extended, middle_box, write_lines

_AIRCRAFT_LEVELS = (
    ("variant", "variants.txt"),
    ("family", "families.txt"),
    ("manufacturer", "manufacturers.txt"),
)
_AIRCRAFT_LISTS = {
    "train": ("train",),
    "val": ("validation",),
    "trainval": ("train", "validation"),
    "test": ("test",),
}
_UPPER_CASE_EVERY = 11


def write_cub(folder: Path, plan: Plan) -> None:
    """images.txt, labels, split, classes and boxes by image number."""
    classes = [
        f"{number:03d}.{name}"
        for number, name in enumerate(
            extended(synthetic_names.CUB, plan.classes, "Synthetic_Bird_{0}"), start=1
        )
    ]
    images, labels, flags, boxes = [], [], [], []
    for number, (label, split) in enumerate(plan.slots(), start=1):
        class_folder = classes[label]
        # Folder and file differ in case, as in the real set: Black_footed_... holds Black_Footed_...
        name = class_folder.partition(".")[2].title()
        path = f"{class_folder}/{name}_{number:04d}_{700_000 + number}.jpg"
        x, y, width, height = middle_box(plan.draw(folder / "images" / path, label, number))
        images.append(f"{number} {path}")
        labels.append(f"{number} {label + 1}")
        flags.append(f"{number} {int(split == 'train')}")
        boxes.append(f"{number} {x}.0 {y}.0 {width}.0 {height}.0")
    write_lines(folder / "images.txt", images)
    write_lines(folder / "image_class_labels.txt", labels)
    write_lines(folder / "train_test_split.txt", flags)
    write_lines(folder / "bounding_boxes.txt", boxes)
    write_lines(folder / "classes.txt", [f"{number} {name}" for number, name in enumerate(classes, start=1)])


def write_nabirds(folder: Path, plan: Plan) -> None:
    """The same lists by UUID, with the tree of classes; some files end in .JPG."""
    leaves = list(synthetic_names.NABIRDS[: plan.classes])
    leaves += [(1011 + extra, f"Synthetic Bird {extra + 1}") for extra in range(plan.classes - len(leaves))]
    species = {leaf: number for number, (leaf, _) in enumerate(leaves, start=1)}
    rng = plan.rng("uuid")
    entries = sorted((str(uuid.UUID(int=rng.getrandbits(128), version=4)), slot) for slot in plan.slots())
    images, labels, flags, sizes, boxes, photographers = [], [], [], [], [], []
    for index, (image_id, (label, split)) in enumerate(entries):
        leaf = leaves[label][0]
        suffix = "JPG" if index % _UPPER_CASE_EVERY == 4 else "jpg"
        path = f"{leaf:04d}/{image_id.replace('-', '')}.{suffix}"
        size = plan.draw(folder / "images" / path, label, index)
        images.append(f"{image_id} {path}")
        labels.append(f"{image_id} {leaf}")
        flags.append(f"{image_id} {int(split == 'train')}")
        sizes.append(f"{image_id} {size[0]} {size[1]}")
        boxes.append(f"{image_id} {' '.join(map(str, middle_box(size)))}")
        photographers.append(f"{image_id} Nobody")
    write_lines(folder / "images.txt", images)
    write_lines(folder / "image_class_labels.txt", labels)
    write_lines(folder / "train_test_split.txt", flags)
    write_lines(folder / "sizes.txt", sizes)
    write_lines(folder / "bounding_boxes.txt", boxes)
    write_lines(folder / "photographers.txt", photographers)
    nodes = [(0, "Birds"), *((species[leaf], name.partition(" (")[0]) for leaf, name in leaves), *leaves]
    write_lines(folder / "classes.txt", [f"{node} {name}" for node, name in nodes])
    tree = [f"{number} 0" for number in species.values()] + [f"{leaf} {species[leaf]}" for leaf, _ in leaves]
    write_lines(folder / "hierarchy.txt", tree)


def write_aircraft(folder: Path, plan: Plan) -> None:
    """The lists of every level and split below data/, and images with the banner at their foot."""
    data = folder / "data"
    table = list(synthetic_names.AIRCRAFT[: plan.classes])
    for extra in range(len(table), plan.classes):
        table.append((f"Synthetic {extra + 1:03d}", f"Synthetic {extra + 1:03d}", "Synthetic"))
    slots = plan.slots()
    image_ids = [f"{number:07d}" for number in plan.rng("ids").sample(range(10_000, 3_000_000), len(slots))]
    boxes = []
    for index, (image_id, (label, _)) in enumerate(zip(image_ids, slots, strict=True)):
        size = plan.draw(data / "images" / f"{image_id}.jpg", label, index)
        x, y, width, height = middle_box(size)
        boxes.append(f"{image_id} {x} {y} {x + width - 1} {y + height - 1}")
    write_lines(data / "images_box.txt", boxes)
    for column, (kind, names_file) in enumerate(_AIRCRAFT_LEVELS):
        write_lines(data / names_file, sorted({row[column] for row in table}))
        for name, splits in _AIRCRAFT_LISTS.items():
            chosen = [
                (image_id, table[label][column])
                for image_id, (label, split) in zip(image_ids, slots, strict=True)
                if split in splits
            ]
            write_lines(data / f"images_{kind}_{name}.txt", [f"{image} {value}" for image, value in chosen])
            if name != "trainval":
                write_lines(data / f"images_{name}.txt", [image for image, _ in chosen])
