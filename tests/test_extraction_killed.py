"""kill -9 at any instant of a run: the old split or the new one, and at most one shard is computed twice."""

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from forked_runs import ForkedRuns
from image_tree import CLASSES, write_image, write_tree
from stub_encoder import StubEncoder
from test_extraction_faults import BATCH, DATASET, ROWS, SHARD, content, folder, images, run, wait_for

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.settings import DataPaths

KEPT = 9  # every ninth image stays where a split stands: every shard reuses some vectors and computes others


@dataclass(frozen=True)
class Start:
    """A data root before a run, what stands in it, and what an undisturbed run makes of it."""

    root: Path
    before: dict[str, bytes]
    after: dict[str, bytes]
    to_embed: int

    def copied(self, where: Path, *, with_images: bool = True) -> DataPaths:
        """By links: nothing writes into a file that is there."""
        without = None if with_images else shutil.ignore_patterns("*.jpg")
        shutil.copytree(self.root, where, copy_function=os.link, ignore=without)
        return DataPaths.from_root(where)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders() as kept:
        yield kept


@pytest.fixture(scope="module")
def forked() -> Iterator[ForkedRuns]:
    with ForkedRuns() as runs:
        yield runs


@pytest.fixture(scope="module", params=["nothing stands", "a split stands"])
def start(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, decoders: Decoders
) -> Start:
    place = tmp_path_factory.mktemp("start")
    paths = write_tree(place / "root", per_class=ROWS // len(CLASSES))
    before: dict[str, bytes] = {}
    to_embed = ROWS
    if request.param == "a split stands":
        run(paths, decoders=decoders)
        before = content(paths)
        changed = [path for row, path in enumerate(images(paths)) if row % KEPT]
        for number, path in enumerate(changed):
            write_image(path, seed=10_000 + number)
        prepare_dataset(DATASET, paths)
        to_embed = len(changed)
    undisturbed = Start(place / "root", before, {}, 0).copied(place / "undisturbed")
    assert run(undisturbed, decoders=decoders).computed == to_embed
    return Start(place / "root", before, content(undisturbed), to_embed)


def visible(paths: DataPaths) -> dict[str, bytes]:
    return content(paths) if folder(paths).exists() else {}


@pytest.mark.parametrize("seed", range(10))
def test_killed_while_it_embeds(
    seed: int, start: Start, forked: ForkedRuns, decoders: Decoders, tmp_path: Path
) -> None:
    """Ten instants for each start; the encoder stalls soon after, so that none of them comes too late."""
    paths = start.copied(tmp_path / "data")
    log = tmp_path / "log"
    log.touch()
    dice = random.Random(seed)
    count = dice.randrange(1, start.to_embed - 5 * BATCH)
    pid = forked.start(tmp_path / "data", log, stall_at=count + 3 * BATCH)
    wait_for(lambda: log.stat().st_size >= count)
    time.sleep(dice.uniform(0.0, 0.05))
    os.kill(pid, signal.SIGKILL)
    assert forked.exit_code() == -signal.SIGKILL
    assert 0 < log.stat().st_size < start.to_embed
    assert visible(paths) == start.before
    run(paths, StubEncoder(log=log), decoders=decoders)
    assert content(paths) == start.after
    assert log.stat().st_size <= start.to_embed + SHARD, "more than one shard was computed twice"
    assert not paths.staging.exists()


def test_killed_at_every_step_of_the_commit(start: Start, forked: ForkedRuns, tmp_path: Path) -> None:
    """From the first folder that the commit makes to the last one that it removes."""
    log = tmp_path / "log"
    log.touch()
    start.copied(tmp_path / "embedded")
    forked.start(tmp_path / "embedded", log, kill_at=1)
    assert forked.exit_code() == -signal.SIGKILL
    assert log.stat().st_size == start.to_embed
    embedded = replace(start, root=tmp_path / "embedded")
    # Only a split that stands has to be exchanged.
    for can_exchange in (True, False) if start.before else (True,):
        seen = []
        for step in range(2, 200):
            root = tmp_path / "killed"
            paths = embedded.copied(root, with_images=False)
            forked.start(root, log, kill_at=step, can_exchange=can_exchange)
            if forked.exit_code() != -signal.SIGKILL:
                break
            seen.append(visible(paths))
            if can_exchange or seen[-1]:
                assert seen[-1] in (start.before, start.after)
            else:
                assert set_aside(paths) == start.before
            run(paths, StubEncoder(log=log))
            assert content(paths) == start.after
            assert not paths.staging.exists(), f"step {step}"
            shutil.rmtree(root)
        assert visible(paths) == start.after
        shutil.rmtree(root)
        assert len(seen) > 20
        assert start.before in seen
        assert start.after in seen
    assert log.stat().st_size == start.to_embed, "something was computed again"


def set_aside(paths: DataPaths) -> dict[str, bytes]:
    """The split that stood, where it waits to be replaced on a file system that cannot exchange folders."""
    (replaced,) = paths.staging.rglob("replaced")
    return {path.name: path.read_bytes() for path in sorted(replaced.iterdir())}
