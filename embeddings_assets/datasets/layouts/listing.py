"""What a dataset's own lists say: one record per listed image, before any image is looked at.

Every layout module gives a `Listing`; `processed.py` turns it into manifests.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from embeddings_assets.errors import RawDataError

Box = tuple[int, int, int, int]
"""Left, top, right and bottom edge in pixels from 0, the last two exclusive; may stick out of the image."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One listed image.

    `path` is POSIX, relative to the listing's folder. `label` is 0-based in the dataset's official class
    order, `class_id` the class as the raw lists write it. `official_split` is `train`, `validation` or
    `test` as the dataset publishes it, before any hold-out.
    """

    image_id: str
    path: str
    label: int
    class_name: str
    class_id: str
    official_split: str


@dataclass(frozen=True)
class Listing:
    """All images of a dataset in its official order, and the display names of its classes by label.

    `lists` are the files that this was read from, or the folders, where the tree itself is the list.

    Raises:
        RawDataError: no image, an image id or path listed twice, or a label without a class name.
    """

    folder: Path
    records: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    lists: tuple[Path, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if not self.records:
            raise RawDataError(f"{self.folder}: its lists name no image.")
        self._refuse_repeated("image id", (record.image_id for record in self.records))
        self._refuse_repeated("image path", (record.path for record in self.records))
        for record in self.records:
            if not 0 <= record.label < len(self.class_names):
                raise RawDataError(
                    f"{self.folder}: image {record.image_id} has label {record.label}; "
                    f"expected 0 to {len(self.class_names) - 1}."
                )

    def _refuse_repeated(self, what: str, values: Iterable[str]) -> None:
        seen: set[str] = set()
        for value in values:
            if value in seen:
                raise RawDataError(f"{self.folder}: {what} {value!r} is listed twice; expected once.")
            seen.add(value)
