"""How near the vectors of the `fast` profile are to those of `exact`, on a sample of a split."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from embeddings_assets.encoders.encoder import Encoder
from embeddings_assets.extraction.decoding import Decoders, ImageTask
from embeddings_assets.extraction.report import Fidelity
from embeddings_assets.store.manifest import Crop, Manifest
from embeddings_assets.store.parquet import open_parquet
from embeddings_assets.store.reading import part_files, vectors_of
from embeddings_assets.store.schema import CROP_COLUMNS, NO_CROP
from embeddings_assets.workers.process import default_workers

log = logging.getLogger(__name__)

SAMPLE = 32  # of a split; of one in which little was computed, fewer: the sample must not take longer
LEAST_SAMPLE = 8
_ROWS_PER_SAMPLED_ROW = 64
LEAST_COSINE = 0.9995  # what the profile promises on every row
_BATCH = 8
_IDENTITY = ("image_id", "image_path", "sha256")


def measure_fidelity(
    manifest: Manifest,
    folder: Path,
    exact: Encoder,
    computed: int,
    decoders: Decoders,
    workers: int | None = None,
) -> Fidelity | None:
    """Embed a sample again and compare; logs a warning where the profile's promise is broken.

    The sample depends on the manifest and on the number of rows alone. An image that has changed or vanished
    since it was embedded is left out, with a warning.

    Args:
        folder: the files of the split, made from `manifest` in another profile.
        exact: the same model with the same weights, in `exact`.
        computed: how many rows were computed for this commit.
        workers: decoding processes; None takes one per core, at most a batch's eight.

    Returns:
        None where no image of the sample is left to compare.

    Raises:
        EmbeddingsError: a file holds its decoder up, or the machine cannot read it now.
        MemoryError: there is too little for a batch of eight.
    """
    split = f"{exact.plan.spec.name} {manifest.dataset}/{manifest.split}"
    rows = sum(pq.read_metadata(path).num_rows for path in part_files(folder))
    count = min(SAMPLE, rows, max(LEAST_SAMPLE, computed // _ROWS_PER_SAMPLED_ROW))
    seed = int(manifest.fingerprint[-16:], 16)
    chosen = np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))
    sample = list(_stored_rows(folder, chosen))
    crops = _crops(manifest, [image_id for image_id, *_ in sample])
    tasks = [
        ImageTask(number, manifest.resolve(image_path), sha256, crops.get(image_id))
        for number, (image_id, image_path, sha256, _) in enumerate(sample)
    ]
    batches = ((0, tasks[first : first + _BATCH]) for first in range(0, len(tasks), _BATCH))
    reference, fast = [], []
    decoded = decoders.batches(
        batches, exact.plan.to_pixels(), min(_BATCH, workers or default_workers(_BATCH))
    )
    with contextlib.closing(decoded):
        for batch in decoded:
            for number, error in batch.failures:
                log.warning("%s: not compared with exact: %s", tasks[number].path, error)
            if batch.pixels is not None:
                reference.append(exact.encode(batch.pixels).astype(np.float64))
                fast += [sample[number][-1] for number in batch.positions]
    if not fast:
        log.warning("%s: nothing of it is compared with exact", split)
        return None
    cosines = np.sum(np.concatenate(reference) * np.stack(fast), axis=1)
    found = Fidelity(sample=len(cosines), minimum=float(cosines.min()), mean=float(cosines.mean()))
    if found.minimum < LEAST_COSINE:
        log.warning(
            "%s: the fast vectors are further from exact than %g: cosine %.5f at least, %.5f on average, "
            "over %d sampled rows; use --precision exact",
            *(split, LEAST_COSINE, found.minimum, found.mean, found.sample),
        )
    return found


def _stored_rows(
    folder: Path, wanted: npt.NDArray[np.int64]
) -> Iterator[tuple[str, str, str, npt.NDArray[np.float32]]]:
    """Image id, path, sha256 and vector of rows by ascending number; reads the row groups that hold them."""
    first = 0
    for path in part_files(folder):
        with open_parquet(path) as file:
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                inside = wanted[(wanted >= first) & (wanted < last)] - first
                first = last
                if len(inside):
                    rows = file.read_row_group(group, columns=[*_IDENTITY, "embedding"]).take(inside)
                    vectors = vectors_of(rows.column("embedding").combine_chunks())
                    names = (rows.column(name).to_pylist() for name in _IDENTITY)
                    yield from zip(*names, vectors, strict=True)


def _crops(manifest: Manifest, image_ids: Sequence[str]) -> dict[str, Crop]:
    """The part that is used of each image; of none where all of it is."""
    if manifest.crop == NO_CROP:
        return {}
    wanted = pa.array(image_ids, pa.string())
    return {
        image_id: tuple(crop)
        for batch in manifest.batches(["image_id", *CROP_COLUMNS])
        for image_id, *crop in zip(
            *(column.to_pylist() for column in batch.filter(pc.is_in(batch.column(0), wanted)).columns),
            strict=True,
        )
    }
