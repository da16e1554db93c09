"""How the vectors of a split lie to each other: how alike they are on average, and who is next to whom.

Drawn with Pillow alone, small enough to be kept in an event log (DESIGN section 5).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw

from embeddings_assets.errors import EmbeddingsError, ImageError, Reason
from embeddings_assets.quality.maps import first_small, sample_table
from embeddings_assets.quality.pictures import (
    CAPTION_FONT,
    INK,
    PAPER,
    Picture,
    shortened,
    spread_over_classes,
    square_tile,
)
from embeddings_assets.store.manifest import Crop, Manifest
from embeddings_assets.store.reading import vectors_of
from embeddings_assets.store.schema import CROP_COLUMNS, NO_CROP

_QUERIES, _NEIGHBOURS = 5, 4
_COLUMNS = ("image_id", "image_path", "label", "class_name", "sha256", "embedding")

_ROWS_AT_ONCE = 256  # against 2,000 rows 4 MB of cosines
_DECIMALS = 9  # the cosines of equal vectors differ by less, on every machine

_SIDE, _FRAME, _LINE = 56, 2, 11  # pixels
_CELL = _SIDE + 2 * _FRAME
_DASH = _CELL // 15  # of an odd number of dashes and gaps the first and the last are dashes
_ACROSS, _DOWN, _AFTER_QUERY = 14, 8, 10
_SAME, _OTHER = (22, 140, 74), (208, 42, 42)
_FAINT, _GREY = (122, 128, 136), (226, 229, 233)
_KEPT, _NEAR = (PAPER, INK, _SAME, _OTHER, _FAINT, _GREY), 8


@dataclass(frozen=True)
class _Tile:
    """An image above its class and a note; `same`: whether that is the query's class, None for the query."""

    image: Image.Image
    class_name: str
    note: str
    same: bool | None = None


def mean_pairwise_cosine(vectors: np.ndarray) -> float:
    """The mean cosine of all pairs of different rows, exact up to float64 rounding, in one pass over them.

    Args:
        vectors: unit vectors, float32 [n, width].

    Returns:
        -1 / (n - 1) to 1; 1.0 where there is no pair, as for rows that are all the same.
    """
    rows, width = vectors.shape
    if rows < 2:
        return 1.0
    total, squares = np.zeros(width), 0.0
    for start in range(0, rows, _ROWS_AT_ONCE):
        block = vectors[start : start + _ROWS_AT_ONCE].astype(np.float64)
        total += block.sum(axis=0)
        squares += float(np.vdot(block, block))
    return (float(total @ total) - squares) / (rows * (rows - 1))


def neighbour_sheet(folder: Path, manifest: Manifest) -> Picture:
    """A few images spread over the split's classes, each with its nearest neighbours by cosine beside it.

    Neighbours come from an even sample of the rows (`maps.sample_table`), equally near ones in row order.
    Those of the image's class have a solid green frame, others a dashed red one. In place of an image that
    can no longer be read is a grey tile that says why.

    Args:
        folder: a committed split.
        manifest: the one it was made from; gives the files, and the part of each image that is used.

    Raises:
        StoreError: there is no split at `folder`, or it cannot be read.
    """
    table = sample_table(folder, _COLUMNS)
    vectors = vectors_of(table.column("embedding").combine_chunks()).astype(np.float64)
    labels = table.column("label").to_numpy()
    queries = _queries(labels)
    nearest, cosines = _nearest(vectors, queries, _NEIGHBOURS)
    shown = np.unique(np.concatenate([queries, nearest.ravel()]))
    rows = dict(zip(shown.tolist(), table.drop_columns("embedding").take(shown).to_pylist(), strict=True))
    images, unread = _images(manifest, rows)
    same = labels[nearest] == labels[queries, None]

    lines = []
    for number, query in enumerate(queries.tolist()):
        line = [_Tile(images[query], rows[query]["class_name"], "query")]
        for place, cosine, match in zip(nearest[number], cosines[number], same[number], strict=True):
            note = f"{cosine:z.2f} {'same' if match else 'other'}"
            line.append(_Tile(images[place], rows[place]["class_name"], note, bool(match)))
        lines.append(line)
    caption = _caption(same, vectors, labels, manifest.rows)
    if unread:
        caption += f"; {unread} of the images shown cannot be read"
    return Picture(first_small(_fewer_colours(_sheet(lines))), f"{caption}.")


def _queries(labels: np.ndarray) -> np.ndarray:
    """Rows to show, int64, from classes that have other rows too where there are enough of those."""
    _, ranks, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(counts[ranks] > 1)
    if len(rows) < _QUERIES:
        rows = np.arange(len(labels))
    return rows[spread_over_classes(labels[rows].tolist(), _QUERIES)]


def _nearest(vectors: np.ndarray, rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The `most` other vectors nearest to each of some, nearest first: their rows and cosines, [rows, k]."""
    count = min(most, len(vectors) - 1)
    places, values = np.empty((len(rows), count), np.int64), np.empty((len(rows), count))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        block = rows[start : start + _ROWS_AT_ONCE]
        each = np.arange(len(block))
        cosines = np.round(vectors[block] @ vectors.T, _DECIMALS)
        cosines[each, block] = -np.inf
        for rank in range(count):
            best = cosines.argmax(axis=1)
            places[start + each, rank], values[start + each, rank] = best, cosines[each, best]
            cosines[each, best] = -np.inf
    return places, values


def _caption(same: np.ndarray, vectors: np.ndarray, labels: np.ndarray, images: int) -> str:
    """What is shown, and how often the nearest of the sampled rows has the class of its row.

    Args:
        same: whether each neighbour shown has its query's class, bool [queries, k].
        vectors: the sampled rows; labels: theirs.
        images: how many the split has.
    """
    sampled = f"{len(labels):,} of {images:,} images"
    queries, count = same.shape
    if not count:
        return f"{sampled}: there is no neighbour to show"
    nearest, _ = _nearest(vectors, np.arange(len(vectors)), 1)
    share = float((labels[nearest[:, 0]] == labels).mean())
    alone = int((np.unique(labels, return_counts=True)[1] == 1).sum())
    found = int(same.sum())
    return (
        f"The {f'{count} nearest neighbours' if count > 1 else 'nearest neighbour'} by cosine of {queries} "
        f"images among {sampled}: {found} of these {same.size} have their image's class (solid green), "
        f"{same.size - found} another (dashed red); of all {len(labels):,}, {share:.1%} have a nearest "
        f"neighbour of their own class{f' ({alone:,} are alone in theirs)' if alone else ''}"
    )


def _images(manifest: Manifest, rows: Mapping[int, Mapping[str, Any]]) -> tuple[dict[int, Image.Image], int]:
    """A square of each row's image, or a grey one, and how many are grey."""
    crops = _crops(manifest, [row["image_id"] for row in rows.values()])
    images, unread = {}, 0
    for place, row in rows.items():
        try:
            if row["image_id"] not in crops:
                raise ImageError(Reason.UNCROPPABLE, "not in the manifest")
            path = manifest.resolve(row["image_path"])
            images[place] = square_tile(path, row["sha256"], crops[row["image_id"]], _SIDE)
        except ImageError as error:
            images[place] = _grey(error.reason)
            unread += 1
        except EmbeddingsError:  # the machine cannot read it now; the vectors are stored all the same
            images[place] = _grey(Reason.UNREADABLE)
            unread += 1
    return images, unread


def _crops(manifest: Manifest, image_ids: Sequence[str]) -> dict[str, Crop | None]:
    """The part that is used of each image, read a batch at a time and no further than the last of them."""
    if manifest.crop == NO_CROP:
        return dict.fromkeys(image_ids)
    wanted = pa.array(image_ids, pa.string())
    found: dict[str, Crop | None] = {}
    for batch in manifest.batches(["image_id", *CROP_COLUMNS]):
        rows = batch.filter(pc.is_in(batch.column("image_id"), wanted))
        edges = zip(*(rows.column(name).to_pylist() for name in CROP_COLUMNS), strict=True)
        found.update(zip(rows.column("image_id").to_pylist(), edges, strict=True))
        if len(found) == len(image_ids):
            break
    return found


def _grey(reason: Reason) -> Image.Image:
    tile = Image.new("RGB", (_SIDE, _SIDE), _GREY)
    text = f"cannot be\nread:\n{reason.value.replace('_', ' ')}"
    ImageDraw.Draw(tile).multiline_text(
        (_SIDE / 2, _SIDE / 2), text, fill=INK, font=CAPTION_FONT, anchor="mm", align="center", spacing=2
    )
    return tile


def _sheet(lines: Sequence[Sequence[_Tile]]) -> Image.Image:
    """One line per query: its tile, a wider gap, and the tiles of its neighbours."""
    wide, high = _CELL + _ACROSS, _CELL + 2 * _LINE + _DOWN
    picture = Image.new("RGB", (len(lines[0]) * wide + _AFTER_QUERY, len(lines) * high), PAPER)
    canvas = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        for column, tile in enumerate(line):
            x, y = column * wide + _AFTER_QUERY * (column > 0), row * high
            picture.paste(tile.image, (x + _FRAME, y + _FRAME))
            if tile.same is not None:
                _frame(canvas, x, y, dashed=not tile.same)
            name = shortened(tile.class_name, canvas, wide - 2 * _FRAME)
            colour = {None: _FAINT, True: _SAME, False: _OTHER}[tile.same]
            for text, below, fill in ((name, 0, INK), (tile.note, _LINE, colour)):
                canvas.text((x + _FRAME, y + _CELL + below), text, fill=fill, font=CAPTION_FONT)
    return picture


def _frame(canvas: ImageDraw.ImageDraw, x: int, y: int, *, dashed: bool) -> None:
    if not dashed:
        canvas.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), outline=_SAME, width=_FRAME)
        return
    far = _CELL - _FRAME
    for start in range(0, _CELL, 2 * _DASH):
        end = start + _DASH - 1
        for near in (0, far):
            canvas.rectangle((x + start, y + near, x + end, y + near + _FRAME - 1), fill=_OTHER)
            canvas.rectangle((x + near, y + start, x + near + _FRAME - 1, y + end), fill=_OTHER)


def _fewer_colours(picture: Image.Image) -> Iterator[Image.Image]:
    """The picture with ever fewer colours, those of the frames and captions always among them."""
    # Found on a quarter of the pixels: as good a choice, in a quarter of the time.
    sample = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.NEAREST)
    kept = np.asarray(_KEPT)
    for colours in (96, 64, 48, 32, 24, 16, 8, 4):
        chosen = np.reshape(sample.quantize(colours, kmeans=1).getpalette() or [], (-1, 3))
        # One that is almost a kept colour would take its pixels: paper that is not quite white.
        far = np.abs(chosen[:, None] - kept).max(axis=2).min(axis=1) > _NEAR
        palette = Image.new("P", (1, 1))
        palette.putpalette(np.concatenate([chosen[far], kept]).astype(np.uint8).tobytes())
        yield picture.quantize(palette=palette, dither=Image.Dither.NONE)
