"""The benchmarks run; what they measure is not for tests."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_support import CLIP, PROCESSED, Graph
from PIL import Image

from embeddings_assets.encoders.encoder import plan_encoder
from embeddings_assets.encoders.family import family_of

pytest_plugins = ("datasets_fixtures", "graph_fixtures")

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ABSENT = ("dagster", "dagster_webserver", "typer", "rich")
CLIP_RIVALS = {
    "serial loop",
    "DataLoader",
    "transformers processor",
    "open_clip + DataLoader",
    "sentence-transformers",
}

# As where the package is only on the path.
NOT_INSTALLED = """
import importlib.metadata
version = importlib.metadata.version
def of_others(name):
    if name == "embeddings-assets":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = of_others
"""


@pytest.fixture
def without_faces(tmp_path: Path) -> dict[str, str]:
    """An environment where Dagster and what the command line needs cannot be imported, nor the hub asked."""
    folder = tmp_path / "absent"
    folder.mkdir()
    for name in ABSENT:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError({name!r}, name={name!r})\n")
    return {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}


def test_prepare_is_measured_against_the_ceiling(synthetic_raw: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "prepare.py"), "--images", str(synthetic_raw)]
    shown = subprocess.run(
        [*command, "--count", "40", "--rounds", "1"], capture_output=True, text=True, check=True
    )
    first, *_, last = shown.stdout.splitlines()
    assert first.startswith("40 JPEG files")
    measured = json.loads(last)["rounds"][0]
    assert measured.keys() == {
        *("ceiling", "prepare", "share", "second_share"),
        *("command", "second_command", "second_command_share"),
    }
    assert min(measured.values()) > 0


def test_the_engine_is_measured_against_ceilings_and_rivals_without_dagster(
    tmp_path: Path, without_faces: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    images = importlib.import_module("images").drawn(tmp_path / "drawn", 8)
    result = tmp_path / "bench.json"
    command = [sys.executable, str(BENCHMARKS / "engine.py"), "--images", str(images)]
    command += ["--models", "CLIP", "--precisions", "fast", "--count", "16"]
    command += ["--rounds", "1", "--rival-count", "4"]
    command += ["--ceiling-seconds", "0.2", "--load-rows", "300", "--device", "cpu", "--json", str(result)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=without_faces).stdout
    for text in (
        "of-lower",
        "ours/rival",
        "size/raw",
        "resume",
        "sentence-transformers",
        "Loading 300 x 768",
    ):
        assert text in shown
    written = json.loads(result.read_text())
    assert written["machine"]["command"].endswith(str(result))
    (found,) = written["results"]
    check_speed(found)
    check_costs(found)
    assert written["loading"]["shape"] == [300, 768]
    assert 0 < written["loading"]["size_vs_raw"] < 1.1


GPU_STEPS = ["parity", "throughput", "rivals", "memory", "resume", "start", "variants"]


def test_the_gpu_benchmark_runs_every_step_on_a_cpu(tmp_path: Path, without_faces: dict[str, str]) -> None:
    result = tmp_path / "gpu.json"
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--tiny", "--json", str(result)]
    subprocess.run([*command, "--models", "CLIP"], check=True, env=without_faces)
    steps = json.loads(result.read_text())["steps"]
    assert list(steps) == GPU_STEPS
    parity = steps["parity"]["CLIP"]
    assert parity["self_test"]["max_abs"] < 2e-6
    assert 0.999 < parity["fast_against_exact"]["min_cosine"] <= 1
    assert parity["published"].keys() == {"reason"}
    for measured in (steps["throughput"]["CLIP"][profile] for profile in ("exact", "fast")):
        assert {"images_per_second", "peak_device_gb"} == set(measured["bare"]["2"])
        assert measured["end_to_end"]["computed"] == 16
    assert set(steps["rivals"]["CLIP"]["rivals"]) == CLIP_RIVALS
    assert all(rival["min_cosine"] > 0.99 for rival in steps["rivals"]["CLIP"]["rivals"].values())
    assert (steps["memory"]["too_large"]["used"], steps["memory"]["too_large"]["bound"]) == (1, 2e-6)
    assert steps["memory"]["held_by_another"].keys() == {"reason"}
    resumed = steps["resume"]
    assert (resumed["same_bytes_after_kill"], resumed["same_bytes_twice"]) == (True, True)
    assert (resumed["unchanged"]["status"], resumed["one_per_cent"]["computed"]) == ("unchanged", 1)
    assert 0 < resumed["resumed"] < 16
    assert steps["start"]["CLIP"]["until_first_batch"] > steps["start"]["CLIP"]["load"] > 0
    assert {"bfloat16", "float16", "channels-last", "torch.compile"} < set(steps["variants"]["CLIP"])


def gpu_benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # which it sets
    return importlib.import_module("gpu")


def test_what_a_step_found_is_kept_when_its_time_is_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = gpu_benchmark(monkeypatch)
    work = tmp_path / "work"
    code = "import sys, time; open(sys.argv[1], 'w').write('{\"CLIP\": 1}'); time.sleep(600)"
    found = gpu.run_in_a_process([sys.executable, "-c", code, str(work / "result.json")], work, 6.0)
    assert (found["CLIP"], "error" in found) == (1, True)
    assert gpu.run_in_a_process(["never"], tmp_path / "none", 1.0) == {"reason": "no time was left"}


def test_a_step_ends_with_the_benchmark_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--tiny"]
    command += ["--step", "parity", "--work", str(tmp_path)]
    step = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert step.stdin is not None
    step.stdin.close()
    assert step.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("wrong", [["--images", "absent"], ["--kit", "absent"], ["--models", "clip"]])
def test_the_gpu_benchmark_refuses_what_is_not_there_before_it_starts(wrong: list[str]) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", *wrong]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--json", str(tmp_path / "gpu.json")]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, "--device cpu --tiny" in ended.stderr) == (1, True)


def check_speed(found: dict[str, Any]) -> None:
    (measured,) = found["rounds"]
    rivals = measured["rivals"]
    assert set(rivals) == set(found["rival_cosines"]) == CLIP_RIVALS
    assert all(rate > 0 for rate in (measured["bare"], found["decode_ceiling"], *rivals.values()))
    # The same weights and images; they resize in their own ways.
    assert all(0.999 < cosine < 1.0001 for cosine in found["rival_cosines"].values())
    ours = measured["end_to_end"]["images_per_second"]
    assert measured["against_fastest"] == ours / max(rivals.values()) == found["medians"]["against_fastest"]


def check_costs(found: dict[str, Any]) -> None:
    run = found["rounds"][0]["end_to_end"]
    assert run["computed"] == 16
    assert set(run["stage_shares"]) == {"load", "decode", "forward", "write", "compare", "other"}
    assert all(0 <= share <= 1 for share in run["stage_shares"].values())
    assert sum(run["stage_shares"].values()) == pytest.approx(1)
    assert 0.5 < run["size_vs_raw"] < 1.5
    assert run["peak_gb"] > 0.1
    assert run["peak_device_gb"] == 0
    assert run["fidelity"] is not None
    assert (found["unchanged"]["status"], found["unchanged"]["computed"]) == ("unchanged", 0)
    assert found["one_percent"]["computed"] == 1
    resume = found["resume"]
    assert 0 < resume["cut_off_at"] < 16
    assert 0 <= resume["computed_again"] <= resume["shard_rows"]
    assert resume["resumed"] + resume["computed"] == 16


def test_the_forward_ceiling_of_a_gpu_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    ceilings = importlib.import_module("ceilings")
    passes: list[int] = []
    waits: list[int] = []

    class Counting(torch.nn.Module):
        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            passes.append(len(batch))
            return batch

    assert ceilings.queued_rate(Counting(), torch.zeros(4, 1), 0.01, lambda: waits.append(len(passes))) > 0
    assert len(passes) > 2
    assert len(waits) == 6  # before and after: warming up, a look at how long it takes, and the measurement


def test_sentence_transformers_embeds_on_our_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rival = importlib.import_module("sentence_clip")
    plan = plan_encoder("CLIP", weights="random", device="cpu")
    encoder = plan.load()
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    model = rival.sentence_clip(family_of(plan.spec).build(plan.source), "cpu")
    theirs = model.encode([Image.fromarray(pixels)], normalize_embeddings=True)
    np.testing.assert_allclose(theirs, encoder.encode(pixels[None]), atol=1e-3)


def test_loading_a_split_is_measured(tmp_path: Path, without_faces: dict[str, str]) -> None:
    result = tmp_path / "loading.json"
    command = [sys.executable, str(BENCHMARKS / "loading.py"), "--rows", "100", "--rounds", "2"]
    command += ["--json", str(result)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=without_faces)
    assert shown.stdout.startswith("Loading 100 x 768")
    written = json.loads(result.read_text())
    hardware, versions = written["machine"]["hardware"], written["machine"]["versions"]
    assert hardware["cores"] >= 1
    assert hardware["memory_gb"] > 0.1
    assert {"avx512_bf16", "amx_bf16"} <= set(hardware["cpu_flags"])
    assert versions["torch"].startswith(torch.__version__.partition("+")[0])
    assert {"torchvision", "transformers", "open_clip_torch", "pyarrow", "embeddings-assets"} <= set(versions)
    assert len(written["loading"]["load_seconds"]) == 2


def test_every_benchmark_but_dagsters_own_can_be_imported_without_dagster_typer_and_rich(
    without_faces: dict[str, str],
) -> None:
    names = ", ".join(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "backfill")
    code = f"{NOT_INSTALLED}import {names}; import sys; print(*sys.modules)"
    env = {**without_faces, "PYTHONPATH": f"{without_faces['PYTHONPATH']}{os.pathsep}{BENCHMARKS}"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert not {*ABSENT} & set(run.stdout.split())


def test_the_time_of_a_backfill_is_accounted_for(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    backfill = importlib.import_module("backfill")
    assert graph.run(PROCESSED, CLIP).success
    found = backfill.account(graph.instance, 1000.0, "COMPLETED_SUCCESS")
    assert (found["materializations"], found["runs"], found["runs_failed"]) == (2, 1, 0)
    assert found["images_embedded"] == 10
    assert sum(found["seconds_of"].values()) == pytest.approx(1000)
    assert found["seconds_of"]["forward"] > 0
    assert 0 < found["share_outside_in_runs"] < found["share_outside"] < 1


def test_memory_is_measured_at_several_sizes(synthetic_raw: Path, tmp_path: Path) -> None:
    result = tmp_path / "memory.json"
    command = [sys.executable, str(BENCHMARKS / "memory.py"), "--images", str(synthetic_raw)]
    command += ["--counts", "10", "20", "--json", str(result)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True)
    *lines, last = shown.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["10", "20"]
    assert "times as much" in last
    sizes = json.loads(result.read_text())["sizes"]
    assert [size["rows"] for size in sizes] == [10, 20]
    assert all(size["peak_bytes"] > 0 for size in sizes)
