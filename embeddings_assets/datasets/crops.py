"""Which part of each image is used: all of it unless a crop is asked for by name.

`banner` cuts off the copyright line at the foot of every FGVC-Aircraft photograph, 20 pixels high, as the
dataset's README asks. `bounding_box` keeps what is inside the box that the dataset publishes for the image.
"""

from collections.abc import Callable, Mapping

from embeddings_assets.datasets.layouts.listing import ImageRecord, Listing
from embeddings_assets.datasets.sources import Source
from embeddings_assets.errors import ImageError, Reason, SettingsError
from embeddings_assets.io.images import ImageFacts
from embeddings_assets.store.manifest import Crop
from embeddings_assets.store.schema import BANNER, BOUNDING_BOX, NO_CROP

CROPS = (NO_CROP, BANNER, BOUNDING_BOX)

_BANNER_ROWS: Mapping[str, int] = {"FGVC-Aircraft": 20}  # in pixels

Cropper = Callable[[ImageRecord, ImageFacts], Crop]
"""Gives the part of an image that is used; raises ImageError (`uncroppable`) where there is none."""


def cropper(crop: str, source: Source, listing: Listing) -> Cropper | None:
    """How a crop is made for the images of a listing; None if all of every image is used.

    Raises:
        SettingsError: no such crop, or none for this dataset.
        RawDataError: the dataset's boxes cannot be read.
    """
    if crop not in CROPS:
        raise SettingsError(f"The crop is {crop!r}; it can be {', '.join(CROPS)}.")
    if crop == NO_CROP:
        return None
    if crop == BANNER:
        rows = _BANNER_ROWS.get(source.dataset)
        if rows is None:
            raise _no_such_crop(source.dataset, "no banner to cut off; FGVC-Aircraft has one")
        return lambda record, facts: _inside((0, 0, facts.width, facts.height - rows), facts)
    boxes = source.read_boxes(listing.folder)
    if boxes is None:
        raise _no_such_crop(source.dataset, "no bounding boxes")

    def crop_to_box(record: ImageRecord, facts: ImageFacts) -> Crop:
        if record.image_id not in boxes:
            raise ImageError(Reason.UNCROPPABLE, "the dataset has no bounding box for it")
        return _inside(boxes[record.image_id], facts)

    return crop_to_box


def _inside(box: Crop, facts: ImageFacts) -> Crop:
    left, top = max(0, box[0]), max(0, box[1])
    right, bottom = min(facts.width, box[2]), min(facts.height, box[3])
    if left >= right or top >= bottom:
        raise ImageError(Reason.UNCROPPABLE, f"{box} leaves nothing of {facts.width} x {facts.height} pixels")
    return left, top, right, bottom


def _no_such_crop(dataset: str, why: str) -> SettingsError:
    return SettingsError(
        f"{dataset} has {why}.", remedy=f'embeddings-assets prepare --dataset "{dataset}" --crop {NO_CROP}'
    )
