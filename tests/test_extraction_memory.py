"""Memory of a run: what is reported is the most of the whole run, and it does not grow with the split."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from image_tree import DATASET, write_tree
from stub_encoder import StubEncoder

from embeddings_assets.extraction.engine import extract_split
from embeddings_assets.extraction.memory import peak_bytes
from embeddings_assets.extraction.report import ExtractionOptions
from embeddings_assets.store.manifest import Manifest, open_manifest
from embeddings_assets.store.schema import CARRIED_COLUMNS, ROWS_PER_GROUP

MIB = 2**20
TAKEN = 400 * MIB


class _Heavy(Manifest):
    """Reading the columns that a commit carries over takes much memory for a moment."""

    def slice(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        if columns == CARRIED_COLUMNS:
            assert len(b"\1" * TAKEN) == TAKEN
        return super().slice(start, stop, columns)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks cannot be reset")
def test_the_peak_is_that_of_the_whole_run(tmp_path: Path) -> None:
    paths = write_tree(tmp_path, per_class=4)
    opened = open_manifest(paths, DATASET, "train")
    report = extract_split(
        _Heavy(opened.path, opened.footer, opened.paths),
        StubEncoder(),
        target=paths.embeddings_split("CLIP", DATASET, "train"),
        staging_root=paths.staging,
        options=ExtractionOptions(workers=1),
    )
    assert report.peak_bytes > peak_bytes() > TAKEN, "with the decoding process"


_COMMIT = """
import sys
from pathlib import Path
import numpy as np
import pyarrow as pa
from image_tree import DATASET
from stub_encoder import StubEncoder
from embeddings_assets.extraction.commit import assemble_shards, split_footer
from embeddings_assets.extraction.memory import peak_bytes, reset_peak
from embeddings_assets.extraction.planning import ShardPlan
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.manifest import write_manifest
from embeddings_assets.store.schema import LEDGER_SCHEMA, MANIFEST_SCHEMA
from embeddings_assets.store.shards import Shard, write_shard
from embeddings_assets.store.staging import swap_into_place

root, rows = Path(sys.argv[1]), int(sys.argv[2])
digests = pa.array([f"{row:064x}" for row in range(rows)])
columns = {
    field.name: digests if pa.types.is_string(field.type) else pa.array([0] * rows, field.type)
    for field in MANIFEST_SCHEMA
}
manifest = write_manifest(
    DataPaths.from_root(root), DATASET, "train", pa.table(columns, schema=MANIFEST_SCHEMA),
    LEDGER_SCHEMA.empty_table(), options={}, raw_folder=None,
)
shards = ShardPlan.create(root, manifest, "", 1024)
shards.folder.mkdir()
random = np.random.default_rng(0)
for index in range(shards.count):
    start, stop = shards.range(index)
    vectors = random.standard_normal((stop - start, 256), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = pa.table([[digests[start]], ["file"], ["corrupt"], [""]], schema=LEDGER_SCHEMA)
    shard = Shard(np.arange(start + 1, stop), digests[start + 1 : stop], vectors[1:], bad)
    write_shard(shards.path(index), shard)
del columns, digests
footer = split_footer(manifest, StubEncoder(width=256).footer())
pa.set_cpu_count(2)
pa.default_memory_pool().release_unused()
reset_peak()
before = peak_bytes()
swap_into_place(
    assemble_shards(manifest, shards, footer, root), root / "CLIP" / DATASET / "train", root
)
print(peak_bytes() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks cannot be reset")
def test_a_commit_takes_no_more_memory_for_more_rows(tmp_path: Path) -> None:
    taken = []
    for groups in (1, 4):
        folder = tmp_path / str(groups)
        folder.mkdir()
        command = [sys.executable, "-c", _COMMIT, str(folder), str(groups * ROWS_PER_GROUP)]
        shown = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent
        ).stdout
        taken.append(int(shown))
    of_a_group = ROWS_PER_GROUP * 256 * 4
    assert taken[1] - taken[0] < 1.5 * of_a_group
    assert max(taken) < 7 * of_a_group
