"""A small picture of a split: its vectors in two dimensions, coloured by class.

Drawn with Pillow alone, small enough to be kept in an event log (DESIGN section 5).
"""

import colorsys
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from embeddings_assets.errors import StoreError
from embeddings_assets.store.reading import require_parts, vectors_of

# 36 KiB are 48 KiB in base64: below the 50 KB that an event row and every query of it can carry.
MOST_BYTES = 36 * 1024
MOST_POINTS = 2000
_MOST_GROUPS = 8  # row groups read for a sample: 8 x 50 MB at the most, one at a time

_WIDTH, _HEIGHT, _MARGIN = 420, 300, 10  # pixels
_OVERSAMPLING = 3
_PAPER, _FRAME = (255, 255, 255), (214, 218, 224)


@dataclass(frozen=True)
class VectorMap:
    """A picture and what it shows.

    Attributes:
        png: the picture, at most `MOST_BYTES` long.
        points: vectors drawn; classes: distinct labels among them.
        explained: share of the vectors' variance that the two axes hold, 0 to 1.
    """

    png: bytes
    points: int
    classes: int
    explained: float


def sample_rows(folder: Path, most: int = MOST_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Vectors, float32 [n, width], and labels, int32 [n], of `sample_table`; raises as that does."""
    table = sample_table(folder, ["label", "embedding"], most)
    return vectors_of(table.column("embedding").combine_chunks()), table.column("label").to_numpy()


def sample_table(folder: Path, columns: Sequence[str], most: int = MOST_POINTS) -> pa.Table:
    """At most `most` rows spread over a split, in row order; at least one.

    Memory and time do not grow with the split: of many row groups, an even choice is read.

    Raises:
        StoreError: there is no split at `folder`, it cannot be read, or it has no such columns.
    """
    files = require_parts(folder)
    remedy = f'embeddings-assets verify "{folder}"'
    try:
        groups = [(path, group) for path in files for group in range(pq.read_metadata(path).num_row_groups)]
        tables = list(_sampled(_evenly(groups, _MOST_GROUPS), columns, most))
        table = pa.concat_tables(tables).combine_chunks() if tables else None
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{folder}: cannot be read ({error}).", remedy=remedy) from error
    if table is None or not table.num_rows:
        raise StoreError(f"{folder}: no rows.", remedy=remedy)
    if table.column_names != list(columns):
        raise StoreError(
            f"{folder}: columns {list(columns)} wanted, only {table.column_names} found.", remedy=remedy
        )
    return table


def principal_axes(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Coordinates on the two axes of largest variance, float64 [n, 2], and the share they explain.

    The sign of each axis is fixed, so that equal vectors give equal coordinates.
    """
    import scipy.linalg

    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    scatter = centred.T @ centred
    width = len(scatter)
    # Two of its eigenvectors cost a tenth of what all of them do.
    variances, axes = scipy.linalg.eigh(scatter, subset_by_index=[max(0, width - 2), width - 1])
    chosen = axes[:, ::-1]
    if chosen.shape[1] < 2:
        chosen = np.pad(chosen, ((0, 0), (0, 1)))
    largest = np.abs(chosen).argmax(axis=0)
    chosen = chosen * np.where(chosen[largest, [0, 1]] < 0, -1, 1)
    total = float(np.trace(scatter))
    return centred @ chosen, float(variances.sum()) / total if total > 0 else 0.0


def draw_map(vectors: np.ndarray, labels: np.ndarray) -> VectorMap:
    """Draw finite vectors, float32 [n, width], as dots whose colour is their label, int [n]."""
    points, explained = principal_axes(vectors)
    classes, ranks = np.unique(labels, return_inverse=True)
    picture = Image.new("RGB", (_WIDTH * _OVERSAMPLING, _HEIGHT * _OVERSAMPLING), _PAPER)
    canvas = ImageDraw.Draw(picture)
    canvas.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=_FRAME, width=_OVERSAMPLING)
    radius = _OVERSAMPLING * (4.0 if len(points) <= 400 else 2.5)
    for (x, y), rank in zip(_on_canvas(points, picture.size), ranks, strict=True):
        canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(rank, len(classes)))
    picture = picture.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
    return VectorMap(small_png(picture), len(points), len(classes), explained)


def _evenly(items: list[tuple[Path, int]], most: int) -> list[tuple[Path, int]]:
    if len(items) <= most:
        return items
    return [items[int(position)] for position in np.linspace(0, len(items) - 1, most)]


def _sampled(groups: list[tuple[Path, int]], columns: Sequence[str], most: int) -> Iterator[pa.Table]:
    sizes = [pq.read_metadata(path).row_group(group).num_rows for path, group in groups]
    total = sum(sizes)
    for (path, group), size in zip(groups, sizes, strict=True):
        wanted = size if total <= most else max(1, most * size // total)
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read_row_group(group, columns=list(columns))
        # What comes back is in the file's order, without the columns that it does not have.
        table = table.select([name for name in columns if name in table.column_names])
        yield table.take(pa.array(np.linspace(0, size - 1, wanted).astype(np.int64)))


def _on_canvas(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Points scaled into the canvas, with one scale for both axes and the second axis upwards."""
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.asarray(size) - 2.0 * _MARGIN * _OVERSAMPLING
    extent = np.where(high > low, high - low, 1.0)
    scale = float((room / extent).min())
    centred = (points - (low + high) / 2) * scale * np.asarray([1.0, -1.0])
    return centred + np.asarray(size) / 2


def _colour(rank: int, classes: int) -> tuple[int, int, int]:
    hue = rank / max(classes, 1)
    value = (0.85, 0.62)[rank % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def small_png(picture: Image.Image) -> bytes:
    """The picture with as many colours as fit into `MOST_BYTES`."""
    return first_small(picture.quantize(colours, kmeans=1) for colours in (128, 64, 32, 16, 8, 4))


def first_small(pictures: Iterable[Image.Image]) -> bytes:
    """The first of these, as PNG, that fits into `MOST_BYTES`; the last where none does."""
    for picture in pictures:
        stream = io.BytesIO()
        picture.save(stream, "PNG", optimize=True)
        if stream.tell() <= MOST_BYTES:
            break
    return stream.getvalue()
