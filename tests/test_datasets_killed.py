"""`prepare` killed with SIGKILL at any moment: the next run ends with the files of an undisturbed one."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from datasets_killing import ends, seconds_of, ten_kills
from datasets_support import CopyRaw

from embeddings_assets.datasets.processed import prepare_dataset
from embeddings_assets.datasets.seen import SEEN_NAME
from embeddings_assets.datasets.splits import HoldOut
from embeddings_assets.datasets.synthetic.writer import write_synthetic
from embeddings_assets.settings import DataPaths

pytest_plugins = ("datasets_fixtures",)

CUB = "CUB-200-2011"
COPIES = 27
OTHER = HoldOut(share=0.3, seed=7)
PREPARE = (
    "import sys, time; from pathlib import Path\n"
    "from embeddings_assets.datasets.processed import prepare_dataset\n"
    "from embeddings_assets.settings import DataPaths\n"
    "print('started', flush=True)\n"
    f"prepare_dataset('{CUB}', DataPaths.from_root(Path(sys.argv[1])), reread=True)\n"
)


def files_of(paths: DataPaths) -> dict[str, bytes]:
    """Everything below the processed folder, but for the memory of times."""
    return {
        str(path.relative_to(paths.processed)): path.read_bytes()
        for path in sorted(paths.processed.rglob("*"))
        if path.is_file() and path.name != SEEN_NAME
    }


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root whose CUB folder lists enough images to be looked at by processes."""
    root = tmp_path_factory.mktemp("large")
    folder = write_synthetic(root / "raw", CUB, classes=4, train_per_class=6, test_per_class=4)
    lists = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt")
    for name in lists:
        lines = (folder / name).read_text().splitlines()
        more = []
        for copy in range(1, COPIES):
            for line in lines:
                number, _, rest = line.partition(" ")
                if name == "images.txt":
                    source = folder / "images" / rest
                    rest = rest.replace(".jpg", f"_{copy}.jpg")
                    shutil.copyfile(source, folder / "images" / rest)
                more.append(f"{int(number) + copy * len(lines)} {rest}")
        (folder / name).write_text("\n".join([*lines, *more]) + "\n")
    return root


def prepare(root: Path) -> None:
    prepare_dataset(CUB, DataPaths.from_root(root), reread=True)


def test_killed_at_ten_moments(large: Path, tmp_path: Path) -> None:
    roots = []
    for name in ("undisturbed", "killed"):
        roots.append(tmp_path / name)
        roots[-1].mkdir()
        (roots[-1] / "raw").symlink_to(large / "raw")
    undisturbed, killed = map(DataPaths.from_root, roots)
    seconds = seconds_of(prepare, roots[0])
    expected = files_of(undisturbed)
    assert len(expected) == 6
    for _ in ten_kills(seconds, prepare, roots[1]):
        for path, content in files_of(killed).items():
            if ".tmp" not in path:
                assert content == expected[path], "a file that has its name is whole"
        shutil.copytree(roots[1], tmp_path / "next", symlinks=True)
        prepare_dataset(CUB, DataPaths.from_root(tmp_path / "next"))
        assert files_of(DataPaths.from_root(tmp_path / "next")) == expected
        shutil.rmtree(tmp_path / "next")


RENAMES = 7  # a ledger and a manifest for each split, and the memory of times


def prepare_until(root: Path, rename: int, done: bool) -> None:
    """Prepare anew under another option; die just before or just after so many renames."""
    replace, count = Path.replace, 0

    def replace_or_die(path: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if (count, done) == (rename, False):
            os.kill(os.getpid(), signal.SIGKILL)
        moved = replace(path, target)
        if count == rename:
            os.kill(os.getpid(), signal.SIGKILL)
        return moved

    Path.replace = replace_or_die  # type: ignore[method-assign]
    prepare_dataset(CUB, DataPaths.from_root(root), hold_out=OTHER)


def test_killed_at_every_rename_where_other_manifests_stand(copy_raw: CopyRaw, tmp_path: Path) -> None:
    raw = copy_raw(CUB).parent
    standing, wanted = DataPaths.from_root(tmp_path / "standing"), DataPaths.from_root(tmp_path / "wanted")
    for paths, rule in ((standing, HoldOut()), (wanted, OTHER)):
        paths.raw.parent.mkdir()
        paths.raw.symlink_to(raw)
        prepare_dataset(CUB, paths, hold_out=rule)
    before, after = files_of(standing), files_of(wanted)
    for rename, done in itertools.product(range(1, RENAMES + 1), (False, True)):
        killed = DataPaths.from_root(tmp_path / f"killed-{rename}-{done}")
        shutil.copytree(standing.raw.parent, killed.raw.parent, symlinks=True)
        assert not ends(prepare_until, killed.raw.parent, rename, done), "there are fewer renames"
        found = {path: content for path, content in files_of(killed).items() if ".tmp" not in path}
        assert all(content in (before[path], after[path]) for path, content in found.items())
        assert sum(content == after[path] for path, content in found.items()) >= min(rename - 1, len(after))
        prepare_dataset(CUB, killed, hold_out=OTHER)
        assert files_of(killed) == after, (rename, done)
    assert ends(prepare_until, killed.raw.parent, RENAMES + 1, False)


def test_two_at_once_end_with_the_files_of_one(copy_raw: CopyRaw, paths: DataPaths, tmp_path: Path) -> None:
    copy_raw(CUB)
    command = [sys.executable, "-c", PREPARE, str(paths.raw.parent)]
    runs = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [run.wait(timeout=60) for run in runs] == [0, 0, 0]
    alone = DataPaths.from_root(tmp_path / "alone")
    shutil.copytree(paths.raw, alone.raw)
    prepare_dataset(CUB, alone)
    assert files_of(paths) == files_of(alone)
