"""The resident process: one for many runs, none for ever; what becomes of a split when either side dies."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from image_tree import CLASSES, DATASET, write_tree

from embeddings_assets.encoders.weights.lock import LOCK_NAME
from embeddings_assets.errors import (
    BadImagesError,
    EmbeddingsError,
    ImageError,
    Reason,
    StoreError,
    WeightsError,
    packed_error,
    unpacked_error,
)
from embeddings_assets.extraction.report import ExtractionOptions
from embeddings_assets.pipeline import EncoderCache, EncoderChoice, SplitRequest
from embeddings_assets.resident import Resident
from embeddings_assets.settings import DataPaths
from embeddings_assets.store.reading import split_sha256

PER_CLASS = 12
ROWS = PER_CLASS * len(CLASSES)
IDLE_SECONDS = 8.0
PATIENCE = 120.0

ASK = """
import json, sys
from pathlib import Path
from embeddings_assets.pipeline import SplitRequest
from embeddings_assets.resident import Resident
request = SplitRequest.from_dict(json.loads(sys.argv[1]))
tell = lambda done, total: print(done, flush=True)
Resident(Path(sys.argv[2]), idle_seconds=8).embed(request, tell)
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> DataPaths:
    return write_tree(tmp_path_factory.mktemp("resident"), per_class=PER_CLASS)


@pytest.fixture(scope="module")
def resident(paths: DataPaths) -> Resident:
    return Resident(paths.raw.parent, idle_seconds=IDLE_SECONDS)


@pytest.fixture
def request_(paths: DataPaths, tmp_path: Path) -> SplitRequest:
    """CLIP on one split, in many small shards, into a folder of its own."""
    return SplitRequest(
        "CLIP",
        DATASET,
        "train",
        DataPaths.from_folders(paths.processed, tmp_path / "embeddings"),
        EncoderChoice(weights="random", device="cpu"),
        ExtractionOptions(shard_rows=4, batch_size=4),
    )


@pytest.fixture(scope="module")
def undisturbed(paths: DataPaths, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of what one run in this process makes."""
    there = DataPaths.from_folders(paths.processed, tmp_path_factory.mktemp("undisturbed"))
    cache = EncoderCache()
    choice = EncoderChoice(weights="random", device="cpu")
    options = ExtractionOptions(shard_rows=4, batch_size=4)
    report = cache.embed(SplitRequest("CLIP", DATASET, "train", there, choice, options))
    cache.close()
    return report.sha256


def served_by(caplog: pytest.LogCaptureFixture) -> list[int]:
    """Process ids of the residents that took up a request."""
    found = [re.search(r"process (\d+) keeps the encoders", line) for line in caplog.messages]
    return [int(match.group(1)) for match in found if match]


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def asking(request: SplitRequest, root: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", ASK, json.dumps(request.as_dict()), str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def first_images(asker: "subprocess.Popen[str]") -> int:
    """Wait until some images, but not all, are embedded."""
    assert asker.stdout is not None
    return next(done for line in asker.stdout if (done := int(line)) > 0)


def embedded(request: SplitRequest) -> Path:
    return request.paths.embeddings_split("CLIP", DATASET, "train")


def test_one_process_serves_many_requests_and_ends_when_none_comes(
    resident: Resident, request_: SplitRequest, undisturbed: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen: list[tuple[int, int]] = []
    first = resident.embed(request_, lambda done, total: seen.append((done, total)))
    assert (first.status, first.rows, first.computed, first.sha256) == ("computed", ROWS, ROWS, undisturbed)
    assert seen[-1] == (ROWS, ROWS)
    assert resident.embed(request_).status == "unchanged"
    other = replace(request_, split="test")
    assert resident.embed(other).status == "computed"
    (process,) = set(served_by(caplog))
    assert process != os.getpid()
    assert "CLIP runs on cpu" in caplog.text
    wait(lambda: not resident.socket.exists())
    assert resident.embed(request_).status == "unchanged", "another is started"
    assert len(set(served_by(caplog))) == 2


def test_a_killed_run_frees_the_process_and_its_split_goes_on_where_it_stopped(
    paths: DataPaths, resident: Resident, request_: SplitRequest, undisturbed: str
) -> None:
    asker = asking(request_, paths.raw.parent)
    done = first_images(asker)
    asker.kill()
    asker.wait()
    report = resident.embed(request_)
    assert report.resumed >= done - request_.options.shard_rows
    assert report.resumed + report.computed == ROWS
    assert report.computed > 0, "it was not given up"
    assert report.sha256 == split_sha256(embedded(request_)) == undisturbed


def test_a_killed_resident_is_an_error_and_the_next_run_goes_on(
    resident: Resident, request_: SplitRequest, undisturbed: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def kill(done: int, total: int) -> None:
        if done:
            os.kill(served_by(caplog)[-1], signal.SIGKILL)

    with pytest.raises(EmbeddingsError, match="that keeps the encoders has ended") as ended:
        resident.embed(request_, kill)
    assert "goes on where it stopped" in str(ended.value)
    assert not embedded(request_).exists()
    report = resident.embed(request_)
    assert report.resumed >= request_.options.shard_rows, "what is told as done is staged"
    assert report.sha256 == undisturbed


def test_a_second_run_waits_for_the_first(
    paths: DataPaths, resident: Resident, request_: SplitRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asker = asking(request_, paths.raw.parent)
    first_images(asker)
    assert resident.embed(replace(request_, split="validation")).status == "computed"
    wait(lambda: asker.poll() is not None)
    assert asker.returncode == 0
    assert resident.embed(request_).status == "unchanged"


def test_errors_cross_as_what_they_are(resident: Resident, request_: SplitRequest, tmp_path: Path) -> None:
    nowhere = replace(request_, choice=replace(request_.choice, weights=tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match="no weights") as refused:
        resident.embed(nowhere)
    assert "weights fetch" in str(refused.value.remedy)
    resident.embed(request_)
    native = replace(request_, model="SigLIPv2", choice=replace(request_.choice, precision="fastest"))
    with pytest.raises(EmbeddingsError, match="fastest"):
        resident.embed(native)


@pytest.mark.parametrize(
    "error",
    [StoreError("a", remedy="b"), BadImagesError("c"), ImageError(Reason.CHANGED, "d"), EmbeddingsError("e")],
)
def test_an_error_is_the_same_at_the_other_end(error: EmbeddingsError) -> None:
    there = unpacked_error(json.loads(json.dumps(packed_error(error))))
    assert str(there) == str(error)
    assert isinstance(there, EmbeddingsError if isinstance(error, ImageError) else type(error))


def test_the_encoder_is_another_when_the_weights_are(tmp_path: Path) -> None:
    lock = tmp_path / LOCK_NAME
    cache = EncoderCache()
    choice = EncoderChoice(weights=tmp_path, device="cpu")
    plans = []
    for seed in (0, 0, 1):
        models = {"CLIP": {"source": "random", "seed": seed}}
        lock.write_text(json.dumps({"schema": 1, "models": models}))
        plans.append(cache.holder("CLIP", choice).plan.source.sha256)
    assert plans[0] == plans[1] != plans[2]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_that_others_can_enter_is_refused(temporary: Path) -> None:
    folder = temporary / f"embeddings-assets-{os.getuid()}"
    folder.mkdir(mode=0o755)
    with pytest.raises(EmbeddingsError, match="only its user can enter"):
        Resident(temporary)
    folder.rmdir()
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    with pytest.raises(EmbeddingsError, match="only its user can enter"):
        Resident(temporary)


def test_what_must_not_be_shared_has_processes_of_its_own(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    one = Resident(temporary / "a").socket
    assert Resident(temporary / "a").socket == one
    others = {Resident(temporary / "b").socket}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    others.add(Resident(temporary / "a").socket)
    assert len({one, *others}) == 3
    assert one.parent.stat().st_mode & 0o777 == 0o700
