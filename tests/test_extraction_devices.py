"""One split shared by several devices, here processes on the CPU: the same bytes, whatever happens to one."""

import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoding_processes import started_by
from image_tree import DATASET, write_image, write_tree
from stub_encoder import StubEncoder
from test_extraction_faults import content, folder, images, run

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.errors import BadImagesError, EmbeddingsError, SettingsError, StoreError
from embeddings_assets.extraction import devices, job
from embeddings_assets.pipeline import EncoderChoice, process_all
from embeddings_assets.settings import DataPaths

TWO = ("cpu", "cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    write_tree(root, per_class=60)
    return root


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    shutil.copytree(prepared, tmp_path_factory.mktemp("undisturbed") / "data")
    paths = DataPaths.from_root(tmp_path_factory.getbasetemp() / "undisturbed0" / "data")
    run(paths)
    return content(paths)


@pytest.fixture
def paths(prepared: Path, tmp_path: Path) -> DataPaths:
    shutil.copytree(prepared, tmp_path / "data")
    return DataPaths.from_root(tmp_path / "data")


def device_processes() -> list[int]:
    return started_by(os.getpid(), "device_process")


def test_two_devices_give_the_bytes_of_one(paths: DataPaths, undisturbed: dict[str, bytes]) -> None:
    seen: list[int] = []
    report = run(
        paths, StubEncoder(seconds=0.01), devices=TWO, progress=lambda done, total: seen.append(done)
    )
    assert content(paths) == undisturbed
    assert (report.computed, report.device) == (report.rows, "cpu, cpu")
    assert seen == sorted(seen)
    assert seen[-1] == report.rows
    assert report.stage_seconds["forward"] > 0
    assert not device_processes()
    assert not paths.staging.exists()


def test_a_device_that_dies_is_an_error_and_the_next_run_goes_on(
    paths: DataPaths, undisturbed: dict[str, bytes]
) -> None:
    def kill_one(done: int, total: int) -> None:
        if done >= total // 3:
            for pid in device_processes()[:1]:
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(EmbeddingsError, match="SIGKILL"):
        run(paths, StubEncoder(seconds=0.05), devices=TWO, progress=kill_one)
    assert not device_processes()
    report = run(paths, devices=TWO)
    assert report.resumed > 0
    assert report.resumed + report.computed == report.rows
    assert content(paths) == undisturbed


def test_what_is_staged_counts_for_the_policy(paths: DataPaths) -> None:
    for path in images(paths)[:3]:
        path.unlink()

    def stop_at_the_end(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(paths, devices=TWO, max_bad_share=0.5, progress=stop_at_the_end)
    with pytest.raises(BadImagesError, match="3 images cannot be used so far; at most 0"):
        run(paths, devices=TWO, strict=True)
    assert not folder(paths).exists()


def test_a_device_that_hangs_is_an_error(paths: DataPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "SECONDS_OF_SILENCE", 10.0)
    stopped: list[int] = []

    def stop_one(done: int, total: int) -> None:
        if done >= total // 3 and not stopped:
            stopped.extend(device_processes()[:1])
            os.kill(stopped[0], signal.SIGSTOP)

    with pytest.raises(EmbeddingsError, match="cpu: not heard of for 10 seconds"):
        run(paths, StubEncoder(seconds=0.05), devices=TWO, progress=stop_one)
    assert stopped
    assert not device_processes()


def test_every_batch_shows_in_the_progress(paths: DataPaths) -> None:
    seen: list[int] = []
    report = run(paths, devices=TWO, shard_rows=1000, progress=lambda done, total: seen.append(done))
    assert len(set(seen)) > report.rows // 8


def test_warnings_of_a_device_are_told_once(paths: DataPaths, caplog: pytest.LogCaptureFixture) -> None:
    """What a device has learned about its memory in one request it knows in the next."""
    report = run(paths, StubEncoder(most_images=4), devices=TWO)
    assert report.batch_size == 4
    told = [text for text in caplog.messages if "cpu: memory is short for 8 images" in text]
    assert 1 <= len(told) <= 2


class WatchedEncoder(StubEncoder):
    """Writes one byte to its log whenever a device process looks up which vectors stand."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        look_up = job.StandingVectors

        def watched(*arguments: Any, **options: Any) -> Any:
            with self.standing_log.open("ab") as stream:
                stream.write(b".")
            return look_up(*arguments, **options)

        job.StandingVectors = watched  # type: ignore[assignment,misc]


def test_a_device_looks_up_once_what_stands(paths: DataPaths, tmp_path: Path) -> None:
    run(paths)
    write_image(images(paths)[100], seed=4711)
    prepare_dataset(DATASET, paths)
    encoder = WatchedEncoder()
    encoder.standing_log = tmp_path / "log"  # type: ignore[attr-defined]
    report = run(paths, encoder, devices=TWO)
    assert (report.computed, report.reused) == (1, report.rows - 1)
    assert encoder.standing_log.stat().st_size == len(TWO)  # type: ignore[attr-defined]


class FullDiskEncoder(StubEncoder):
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, resource.RLIM_INFINITY))
        return super().encode(pixels)


def test_a_disk_that_is_full_is_named_by_a_device(paths: DataPaths) -> None:
    with pytest.raises(StoreError, match=r"shard-0"):
        run(paths, FullDiskEncoder(), devices=TWO)


def test_bad_images_are_counted_over_all_devices(paths: DataPaths) -> None:
    for path in (images(paths)[3], images(paths)[100]):
        path.unlink()
    with pytest.raises(BadImagesError, match="2 images cannot be used"):
        run(paths, devices=TWO)
    report = run(paths, devices=TWO, max_bad_share=0.05)
    assert report.ledger == {"missing": 2}


def test_what_stops_a_device_is_told(paths: DataPaths) -> None:
    with pytest.raises(EmbeddingsError, match="single image"):
        run(paths, StubEncoder(most_images=0), devices=TWO)


def test_a_change_is_embedded_by_whoever_is_free(paths: DataPaths, undisturbed: dict[str, bytes]) -> None:
    run(paths)
    assert run(paths, devices=TWO).status == "unchanged"
    assert content(paths) == undisturbed


def test_a_real_encoder_on_two_devices(paths: DataPaths, tmp_path: Path) -> None:
    """Through the face that everybody uses."""
    split = ["validation"]
    results = []
    for number, device in enumerate(("cpu", "cpu,cpu")):
        mine = DataPaths.from_folders(paths.processed, tmp_path / str(number))
        choice = EncoderChoice(weights="random", device=device)
        (outcome,) = process_all(["CLIP"], [DATASET], split, mine, choice)
        assert outcome.error is None
        where = mine.embeddings_split("CLIP", DATASET, "validation")
        results.append({path.name: path.read_bytes() for path in where.iterdir()})
    assert results[0] == results[1]


def test_a_device_of_another_name_is_refused(paths: DataPaths) -> None:
    with pytest.raises(SettingsError, match="tpu"):
        EncoderChoice(weights="random", device="cpu,tpu").plan("CLIP")
    assert folder(paths).parent.parent.name == "CLIP"
