"""`embeddings-assets prepare` as a user repeats it: what it loads, keeps, and says has changed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from datasets_support import CopyRaw

from embeddings_assets.cli.doctor import examine
from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.splits import HoldOut
from embeddings_assets.errors import SettingsError
from embeddings_assets.settings import DataPaths, Settings
from embeddings_assets.store.manifest import open_manifest

pytest_plugins = ("datasets_fixtures",)

AIRCRAFT, CUB = "FGVC-Aircraft", "CUB-200-2011"
LONG_AGO = 1_600_000_000
COMMAND = [sys.executable, "-m", "embeddings_assets.cli.main"]


def prepare(
    root: Path, *options: str, dataset: str = AIRCRAFT, command: list[str] = COMMAND
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, "prepare", "--dataset", dataset, *options],
        env={"EMBEDDINGS_DATA": str(root), "PATH": "", "COLUMNS": "200"},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )


def options_of(paths: DataPaths, dataset: str, split: str = "test") -> object:
    return open_manifest(paths, dataset, split).footer["options"]


def test_a_run_with_nothing_to_do_loads_little(copy_raw: CopyRaw, paths: DataPaths) -> None:
    for path in (copy_raw(CUB), *copy_raw(AIRCRAFT).rglob("*"), *paths.raw_folder(CUB).rglob("*")):
        os.utime(path, (LONG_AGO, LONG_AGO))
    os.utime(paths.raw_folder(AIRCRAFT), (LONG_AGO, LONG_AGO))
    listing = (
        "import sys\nfrom embeddings_assets.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print('LOADED', *sys.modules)\n"
    )
    command = [sys.executable, "-c", listing]
    for heavy in (
        {"torch", "dagster"},
        {"torch", "dagster", "pandas", "scipy", "requests", "pyarrow.compute"},
    ):
        shown = prepare(paths.raw.parent, dataset=CUB, command=command)
        assert shown.returncode == 0, shown.stderr
        loaded = set(shown.stdout.split("LOADED")[1].split())
        assert not loaded & heavy
        rooms = {name.split(".")[1] for name in loaded if name.startswith("embeddings_assets.")}
        assert not rooms & {"extraction", "encoders", "pipeline", "graph"}
    assert shown.stdout.count("unchanged") == 3


def test_a_plain_run_keeps_what_the_dataset_was_prepared_with(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(AIRCRAFT)
    root = paths.raw.parent
    first = prepare(root, "--crop", "banner")
    assert first.returncode == 0, first.stderr
    assert "->" not in first.stdout
    again = prepare(root)
    assert again.stdout.count("unchanged") == 3
    assert options_of(paths, AIRCRAFT) == {"hold_out": None, "crop": "banner"}
    back = prepare(root, "--crop", "none")
    assert f"{AIRCRAFT}: crop: banner -> none" in back.stdout
    assert options_of(paths, AIRCRAFT) == {"hold_out": None, "crop": "none"}
    assert "->" not in prepare(root, "--crop", "none").stdout


def test_each_part_of_the_hold_out_is_kept_by_itself(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    root = paths.raw.parent
    prepare(root, "--hold-out", "0.3", dataset=CUB)
    changed = prepare(root, "--seed", "4", dataset=CUB)
    assert f"{CUB}: hold_out: seed 0, share 0.3 -> seed 4, share 0.3" in changed.stdout
    assert options_of(paths, CUB) == {"hold_out": {"share": 0.3, "seed": 4}, "crop": "none"}
    refused = prepare(root, "--hold-out", "1.5", dataset=CUB)
    assert refused.returncode == 1
    assert "hold-out share is 1.5" in refused.stderr


def test_a_hold_out_without_use_is_not_dropped_silently(copy_raw: CopyRaw, paths: DataPaths) -> None:
    for dataset in (CUB, AIRCRAFT):
        copy_raw(dataset)
    for path in paths.raw.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    root = paths.raw.parent
    for share in ("0.3", "0.1"):  # what is recorded of other datasets by default, too
        refused = prepare(root, "--hold-out", share)
        assert refused.returncode == 1
        assert f"{AIRCRAFT} has a published validation split" in refused.stderr
        assert prepare(root).returncode == 0, "with nothing to do for the second share"
    every = prepare(root, "--seed", "3", dataset="all")
    assert f"{AIRCRAFT} has a published validation split; nothing is held out of train.\n" in every.stderr
    assert options_of(paths, CUB) == {"hold_out": {"share": 0.1, "seed": 3}, "crop": "none"}
    with pytest.raises(SettingsError, match="published validation"):
        prepare_dataset(AIRCRAFT, paths, hold_out=HoldOut(0.2))


def test_preparing_in_python_keeps_them_too(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    first = prepare_dataset(CUB, paths, hold_out=HoldOut(0.4, 2), crop="bounding_box")
    assert not any(report.options_changed for report in first)
    again = prepare_dataset(CUB, paths)
    assert [report.changed for report in again] == [False] * 3
    back = prepare_dataset(CUB, paths, crop="none")
    assert {change for report in back for change in report.options_changed} == {"crop: bounding_box -> none"}
    assert options_of(paths, CUB) == {"hold_out": {"share": 0.4, "seed": 2}, "crop": "none"}


def test_the_doctors_command_keeps_the_options(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(AIRCRAFT)
    prepare_dataset(AIRCRAFT, paths, crop="banner")
    manifest = paths.processed_split(AIRCRAFT, "train") / "manifest.parquet"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    root = paths.raw.parent
    (line,) = (line for line in examine(Settings(data_root=root)) if line.item == AIRCRAFT)
    assert line.state == "wrong"
    program, *arguments = shlex.split(line.remedy)
    assert program == "embeddings-assets"
    mended = subprocess.run(
        [*COMMAND, *arguments], env={"EMBEDDINGS_DATA": str(root), "PATH": ""}, check=False
    )
    assert mended.returncode == 0
    assert options_of(paths, AIRCRAFT, "train") == {"hold_out": None, "crop": "banner"}


def test_manifests_elsewhere_are_made_of_the_data_roots_raw_folder(
    copy_raw: CopyRaw, paths: DataPaths, tmp_path: Path
) -> None:
    folder = copy_raw(CUB)
    out = DataPaths.from_root(tmp_path / "out")
    made = prepare(paths.raw.parent, "--data-dir", str(out.processed), dataset=CUB)
    assert made.returncode == 0, made.stderr
    manifest = open_manifest(out, CUB, "test")
    row = manifest.slice(0, 1).to_pylist()[0]
    assert manifest.resolve(row["image_path"]).read_bytes(), "found without the data root"
    assert manifest.footer["raw_folder"] == str(folder)
    assert not paths.processed.exists()


def test_raw_data_beside_the_named_manifests_comes_first(
    copy_raw: CopyRaw, paths: DataPaths, tmp_path: Path
) -> None:
    copy_raw(CUB)
    empty = tmp_path / "empty"
    empty.mkdir()
    made = prepare(empty, "--data_dir", str(paths.processed), dataset=CUB)
    assert made.returncode == 0, made.stderr
    assert open_manifest(paths, CUB, "test").footer["raw_folder"] is None
    settings = Settings(data_root=empty)
    assert settings.paths_with(paths.processed, None).raw == paths.raw
    assert settings.paths_with(tmp_path / "nowhere" / "processed", None).raw == empty / "raw"
    assert settings.paths_with(None, tmp_path).raw == empty / "raw"


HOLD = """import select, sys
from pathlib import Path
from embeddings_assets.io.locks import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    select.select([sys.stdin], [], [], 30)
"""


def test_waiting_for_another_process_is_said(copy_raw: CopyRaw, paths: DataPaths) -> None:
    copy_raw(CUB)
    place = paths.processed / CUB
    place.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with subprocess.Popen(
            [*COMMAND, "prepare", "--dataset", CUB],
            env={"EMBEDDINGS_DATA": str(paths.raw.parent), "PATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as waiting:
            assert waiting.stderr is not None
            said = waiting.stderr.readline()
            holder.stdin.close()
            shown, _ = waiting.communicate(timeout=60)
    assert said == f"{CUB}: waiting for another process that prepares it\n"
    assert waiting.returncode == 0
    assert shown.count("written") == 3


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("--crop", "as prepared before, else none"),
        ("--hold-out", r"as prepared before, else 0\.1"),
        ("--seed", "as prepared before, else 0"),
        ("--raw-dir", "raw beside --data-dir if it is there, else data/raw"),
        ("--data-dir", "data/processed"),
    ],
)
def test_the_help_names_the_defaults(tmp_path: Path, option: str, default: str) -> None:
    shown = prepare(tmp_path, "--help").stdout
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", shown).split())
    assert re.search(rf"{option}\b.*Default: {default}\.", text)


@pytest.mark.parametrize("as_tree", [False, True], ids=["raw folder", "class tree"])
def test_a_data_root_under_another_name_is_the_same(
    copy_raw: CopyRaw, paths: DataPaths, monkeypatch: pytest.MonkeyPatch, as_tree: bool
) -> None:
    """Dagster names it absolutely, the command line as it is in the environment."""
    image = next(copy_raw(CUB).rglob("*.jpg"))
    for split in ("train", "test") if as_tree else ():
        for number in range(3):
            place = paths.processed_split(CUB, split) / "class" / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, place)
    if as_tree:
        shutil.rmtree(paths.raw)
    for path in paths.raw.parent.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    prepare_dataset(CUB, paths)
    before = {path: path.stat().st_ino for path in paths.processed.rglob("*.parquet")}
    assert len(before) == 7
    monkeypatch.chdir(paths.raw.parent.parent)
    prepare_dataset(CUB, DataPaths.from_root(Path("data")))
    assert {path: path.stat().st_ino for path in paths.processed.rglob("*.parquet")} == before
