"""Two small pictures of a prepared split: how many images each class has, and what some of them look like.

Drawn with Pillow alone, small enough to be kept in an event log (DESIGN section 5).
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from embeddings_assets.errors import EmbeddingsError
from embeddings_assets.io.images import decode_image
from embeddings_assets.quality.maps import small_png
from embeddings_assets.store.manifest import Crop, Manifest

PAPER, INK = (255, 255, 255), (60, 66, 74)
_FAINT, _BAR = (214, 218, 224), (79, 111, 206)
_SCALE = 2  # drawn larger and scaled down, for smooth edges

_CHART_WIDTH, _CHART_HEIGHT = 420, 180  # pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 10, 12, 22

_COLUMNS, _ROWS = 6, 3
_TILE, _CAPTION, _GAP = 68, 13, 3
CAPTION_FONT = ImageFont.load_default(9)


@dataclass(frozen=True)
class Picture:
    """A PNG of at most `maps.MOST_BYTES`, and what it shows in one sentence."""

    png: bytes
    caption: str


def class_histogram(manifest: Manifest) -> Picture:
    """Images per class, one bar for each class that occurs, in the order of the labels."""
    labels: Counter[int] = Counter()
    for batch in manifest.batches(["label"]):
        labels.update(batch.column(0).to_pylist())
    counts = [labels[label] for label in sorted(labels)]
    each = f"{counts[0]:,} images each"
    if len(set(counts)) > 1:
        each = f"{min(counts):,} to {max(counts):,} images each, median {statistics.median(counts):g}"
    caption = f"{manifest.rows:,} images of {len(counts)} classes, in the order of their labels: {each}."
    return Picture(small_png(_chart(counts)), caption)


def contact_sheet(manifest: Manifest) -> Picture:
    """Up to 18 images spread evenly over the split's classes, cut to squares, each above its class name.

    What is cropped in the manifest is cropped here. An image that no longer decodes is left out.
    """
    labels = (label for batch in manifest.batches(["label"]) for label in batch.column(0).to_pylist())
    rows = spread_over_classes(labels, _COLUMNS * _ROWS)
    tiles = []
    for position in rows:
        row = manifest.slice(position, position + 1, ["image_path", "class_name", "sha256"]).to_pylist()[0]
        (crop,) = manifest.crops(position, position + 1)
        try:
            tile = square_tile(manifest.resolve(row["image_path"]), row["sha256"], crop, _TILE)
            tiles.append((tile, row["class_name"]))
        except EmbeddingsError:
            continue
    left_out = f", {len(rows) - len(tiles)} more cannot be read" if len(tiles) < len(rows) else ""
    return Picture(small_png(_sheet(tiles)), f"{len(tiles)} of {manifest.rows:,} images{left_out}.")


def spread_over_classes(labels: Iterable[int], most: int) -> list[int]:
    """Rows of the first images of evenly chosen classes; several of a class where there are few classes.

    Args:
        labels: one per row; read once, and never held.
        most: how many rows at the most.
    """
    by_label: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        places = by_label.setdefault(label, [])
        if len(places) < most:
            places.append(position)
    known = sorted(by_label)
    chosen = [known[index * len(known) // most] for index in range(most)] if len(known) >= most else known
    rows: list[int] = []
    for turn in range(most):
        rows += [by_label[label][turn] for label in chosen if turn < len(by_label[label])]
        if len(rows) >= most:
            break
    return rows[:most]


def square_tile(path: Path, sha256: str, crop: Crop | None, side: int) -> Image.Image:
    """The middle of an image, or of the part of it that is used, on white where it is transparent.

    Raises:
        ImageError: the file cannot be read any more, or has another content.
    """
    with decode_image(path, sha256=sha256) as image:
        part = image if crop is None else image.crop(crop)
        if part.has_transparency_data:
            layer = part.convert("RGBA")
            part = Image.alpha_composite(Image.new("RGBA", layer.size, (*PAPER, 255)), layer)
        return ImageOps.fit(part.convert("RGB"), (side, side))


def shortened(text: str, canvas: ImageDraw.ImageDraw, width: int) -> str:
    """The text, or as much of its beginning as is `width` pixels long in the font of the captions."""
    if canvas.textlength(text, font=CAPTION_FONT) <= width:
        return text
    while text and canvas.textlength(f"{text}...", font=CAPTION_FONT) > width:
        text = text[:-1]
    return f"{text.rstrip()}..."


def _chart(counts: Sequence[int]) -> Image.Image:
    width, height = _CHART_WIDTH * _SCALE, _CHART_HEIGHT * _SCALE
    left, top = _LEFT * _SCALE, _TOP * _SCALE
    right, bottom = width - _RIGHT * _SCALE, height - _BOTTOM * _SCALE
    picture = Image.new("RGB", (width, height), PAPER)
    canvas = ImageDraw.Draw(picture)
    highest = _round_up(max(counts))
    for value in (0, highest // 2, highest) if highest > 1 else (0, 1):
        y = bottom - (bottom - top) * value / highest
        canvas.line((left, y, right, y), fill=_FAINT, width=_SCALE)
        canvas.text((left - 5 * _SCALE, y), f"{value:,}", fill=INK, anchor="rm", font=_font(11))
    step = (right - left) / len(counts)
    gap = min(step * 0.2, 4 * _SCALE)
    for index, count in enumerate(counts):
        x, y = left + index * step, bottom - (bottom - top) * count / highest
        canvas.rectangle((x + gap / 2, y, max(x + step - gap / 2 - 1, x + gap / 2), bottom), fill=_BAR)
    middle = bottom - (bottom - top) * statistics.median(counts) / highest
    for x in range(left, right, 8 * _SCALE):
        canvas.line((x, middle, min(x + 4 * _SCALE, right), middle), fill=INK, width=_SCALE)
    for text, x, anchor in (("1", left, "la"), (f"{len(counts)} classes", right, "ra")):
        canvas.text((x, bottom + 5 * _SCALE), text, fill=INK, anchor=anchor, font=_font(11))
    return picture.resize((_CHART_WIDTH, _CHART_HEIGHT), Image.Resampling.LANCZOS)


def _round_up(value: int) -> int:
    """The least even number of one or two leading digits that is not below `value`; 1 for 1."""
    if value < 2:
        return 1
    unit = 10 ** max(0, len(str(value)) - 2)
    steps = -(-value // unit)
    return (steps + steps % 2) * unit


def _sheet(tiles: Sequence[tuple[Image.Image, str]]) -> Image.Image:
    rows = max(1, -(-len(tiles) // _COLUMNS))
    width, height = _TILE + _GAP, _TILE + _CAPTION + _GAP
    picture = Image.new("RGB", (_COLUMNS * width - _GAP, rows * height - _GAP), PAPER)
    canvas = ImageDraw.Draw(picture)
    for index, (tile, name) in enumerate(tiles):
        x, y = index % _COLUMNS * width, index // _COLUMNS * height
        picture.paste(tile, (x, y))
        canvas.text((x, y + _TILE + 1), shortened(name, canvas, _TILE), fill=INK, font=CAPTION_FONT)
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _SCALE)
