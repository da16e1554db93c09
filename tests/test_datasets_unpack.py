"""Archives that try to write elsewhere, fill the disk or break: refused, and nothing outside is touched."""

import contextlib
import gzip
import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embeddings_assets.errors import RawDataError
from embeddings_assets.io import unpack as unpacking
from embeddings_assets.io.unpack import unpack

MOST = 1_000_000


def member(
    name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", content: bytes = b"content"
) -> Callable:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type = kind
        info.linkname = link
        info.size = len(content) if kind == tarfile.REGTYPE else 0
        tar.addfile(info, io.BytesIO(content))

    return add


def write(path: Path, *members: Callable, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for add in members:
            add(tar)
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "inside" / "target"
    folder.mkdir(parents=True)
    (tmp_path / "inside" / "secret.txt").write_text("secret")
    return folder


def outside(target: Path) -> dict[str, str]:
    """Everything beside the target, with its content."""
    return {
        str(path): path.read_text() if path.is_file() else ""
        for path in target.parent.parent.rglob("*")
        if target not in path.parents and path.suffix != ".tgz"
    }


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2"])
def test_an_archive_comes_out_as_it_went_in(tmp_path: Path, target: Path, mode: str) -> None:
    """Also with the dataset's folder stripped, members beside it, links inside, and compressed or not."""
    archive = write(
        tmp_path / "a.tgz",
        member("beside.txt"),
        member("set", tarfile.DIRTYPE),
        member("set/images/1.jpg", content=b"one"),
        member("./set/images/2.jpg", content=b"two"),
        member("set/images/link.jpg", tarfile.SYMTYPE, link="1.jpg"),
        member("set/hard.jpg", tarfile.LNKTYPE, link="set/images/1.jpg"),
        mode=mode,
    )
    assert unpack(archive, target, strip="set", most_bytes=MOST) == len(b"content" + b"one" + b"two")
    found = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert found == {
        "beside.txt": b"content",
        "images/1.jpg": b"one",
        "images/2.jpg": b"two",
        "images/link.jpg": b"one",
        "hard.jpg": b"one",
    }


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([member("../evil.txt")], "a path that leaves its folder"),
        ([member("a/../../evil.txt")], "a path that leaves its folder"),
        ([member("/evil.txt")], "an absolute path"),
        ([member("link", tarfile.SYMTYPE, link="../secret.txt")], "a path that leaves its folder"),
        ([member("link", tarfile.SYMTYPE, link="/etc/passwd")], "an absolute path"),
        ([member("a/b", tarfile.SYMTYPE, link="../..")], "a path that leaves its folder"),
        ([member("link", tarfile.SYMTYPE, link="a"), member("link/evil.txt")], "its way leads over a link"),
        ([member("link", tarfile.SYMTYPE, link="a"), member("link")], "something else of that name"),
        ([member("hard", tarfile.LNKTYPE, link="../secret.txt")], "a path that leaves its folder"),
        ([member("hard", tarfile.LNKTYPE, link="/etc/passwd")], "an absolute path"),
        ([member("hard", tarfile.LNKTYPE, link="nothing")], "no file that came before"),
        ([member("dev", tarfile.CHRTYPE)], "a device or pipe"),
        ([member("dev", tarfile.BLKTYPE)], "a device or pipe"),
        ([member("pipe", tarfile.FIFOTYPE)], "a device or pipe"),
        ([member("f"), member("f/g")], "something else of that name|cannot be placed"),
        ([member("f/g"), member("f")], "something else of that name"),
        ([member("n" * 300)], "cannot be placed"),
        ([member("n" * 300 + "/a")], "cannot be placed"),
        ([member("link", tarfile.SYMTYPE, link="")], "cannot be placed"),
        ([member("link", tarfile.SYMTYPE, link="a" * 5000)], "cannot be placed"),
        ([member("/".join("a" * 1500))], "a path of more than 32 folders"),
        ([member("set", tarfile.SYMTYPE, link="/etc")], "an absolute path"),
        ([member("set", tarfile.SYMTYPE, link="other")], "the place of the dataset's folder"),
        ([member("set", tarfile.LNKTYPE, link="good.txt")], "the place of the dataset's folder"),
        ([member(".")], "the place of the dataset's folder"),
        ([member("set", tarfile.CHRTYPE)], "a device or pipe"),
        ([member("big", content=b"\0" * (MOST + 1))], "more than 1,000,000 bytes come out of it"),
        ([member(f"{n}", content=b"\0" * 300_000) for n in range(4)], "more than 1,000,000 bytes"),
    ],
)
def test_what_an_archive_may_not_hold(
    tmp_path: Path, target: Path, members: list[Callable], why: str
) -> None:
    archive = write(tmp_path / "evil.tgz", member("good.txt"), *members)
    before = outside(target)
    with pytest.raises(RawDataError, match=why) as refusal:
        unpack(archive, target, strip="set", most_bytes=MOST)
    assert str(archive) in str(refusal.value)
    assert "at member" in str(refusal.value)
    assert outside(target) == before


@pytest.mark.parametrize("names", ["0 1 2 3", "0/a/b 1/a"], ids=["files", "folders"])
def test_more_members_than_any_dataset_has(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    """Folders that no member stands for are counted too."""
    monkeypatch.setattr(unpacking, "MOST_ENTRIES", 3)
    archive = write(tmp_path / "many.tgz", *(member(name, content=b"") for name in names.split()))
    with pytest.raises(RawDataError, match="more than 3 members and folders"):
        unpack(archive, target, most_bytes=MOST)
    assert len(list(target.rglob("*"))) <= 3


def test_a_small_archive_that_claims_a_huge_file(tmp_path: Path, target: Path) -> None:
    """A sparse member: the holes are in the header only."""
    info = tarfile.TarInfo("huge")
    info.size = 10**15
    archive = tmp_path / "bomb.tgz"
    archive.write_bytes(gzip.compress(info.tobuf() + b"\0" * 10_240))
    with pytest.raises(RawDataError, match="bytes come out of it"):
        unpack(archive, target, most_bytes=MOST)
    assert not any(target.iterdir())


def header(kind: bytes, content: bytes, *, claims: int | None = None) -> bytes:
    """An extended header before a member."""
    info = tarfile.TarInfo("extended")
    info.type = kind
    info.size = len(content) if claims is None else claims
    return info.tobuf(tarfile.GNU_FORMAT) + content + b"\0" * (-len(content) % 512)


def comment(size: int, keyword: str = "comment") -> bytes:
    text = f" {keyword}=".encode() + b"x" * size + b"\n"
    length = len(text) + len(str(len(text) + 8))
    return f"{length}".encode() + text


def archive_of(path: Path, *blocks: bytes) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for block in (*blocks, b"\0" * 10_240):
            stream.write(block)
    return path


EMPTY = tarfile.TarInfo("empty").tobuf()


@pytest.mark.parametrize(
    "blocks",
    [
        [header(tarfile.XHDTYPE, b"", claims=10**12)],
        [header(tarfile.XHDTYPE, comment(3 * 2**20)), EMPTY] * 2,
        [*[header(tarfile.XHDTYPE, comment(2**19))] * 3, EMPTY],
        [*[header(tarfile.XHDTYPE, comment(8))] * 1000, EMPTY],
        [header(tarfile.GNUTYPE_LONGNAME, b"", claims=10**12)],
        [header(tarfile.GNUTYPE_LONGLINK, b"n" * 3 * 2**20), EMPTY],
    ],
    ids=["claimed", "long", "many before a member", "a long chain", "claimed name", "long link"],
)
def test_an_extended_header_that_would_fill_the_memory(
    tmp_path: Path, target: Path, blocks: list[bytes]
) -> None:
    archive = archive_of(tmp_path / "header.tgz", *blocks)
    tracemalloc.start()
    try:
        with pytest.raises(RawDataError, match="not a whole tar archive"):
            unpack(archive, target, most_bytes=MOST)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE], ids=["member", "archive"])
def test_headers_are_not_kept(tmp_path: Path, target: Path, kind: bytes) -> None:
    """Each of them is small enough, all of them together are not."""
    size = 900_000
    blocks = (header(kind, comment(size, f"key{number}")) + EMPTY for number in range(40))
    archive = archive_of(tmp_path / "headers.tgz", *blocks)
    tracemalloc.start()
    try:
        unpack(archive, target, most_bytes=MOST)
        assert tracemalloc.get_traced_memory()[1] < 16 * size
    finally:
        tracemalloc.stop()


def test_what_comes_out_of_the_compression_is_bounded(
    tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where none of it would reach the disk."""
    monkeypatch.setattr(unpacking, "_HEADERS_IN_ALL", 2**20)
    archive = archive_of(tmp_path / "a.tgz", *[header(tarfile.XHDTYPE, comment(500_000)) + EMPTY] * 10)
    with pytest.raises(RawDataError, match="refused: more than 1,000,000 bytes come out of it"):
        unpack(archive, target, most_bytes=MOST)


def test_a_file_with_holes(tmp_path: Path, target: Path) -> None:
    """Its size is in the header only, and the list of its parts may be of any length."""
    fields = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "900000", "size": "0"}
    text = b"".join(
        f"{len(f' {name}={value}') + 3} {name}={value}\n".encode() for name, value in fields.items()
    )
    with pytest.raises(RawDataError, match="a file with holes"):
        unpack(archive_of(tmp_path / "a.tgz", header(tarfile.XHDTYPE, text), EMPTY), target, most_bytes=MOST)


def test_a_member_whose_end_is_never_reached(tmp_path: Path, target: Path) -> None:
    """Nothing of it would be unpacked, but to the next member it is 2**80 bytes."""
    huge = header(tarfile.REGTYPE, b"", claims=2**80)
    archive = archive_of(
        tmp_path / "a.tgz", header(tarfile.XHDTYPE, b"25 GNU.sparse.realsize=0\n"), huge, EMPTY
    )
    with pytest.raises(RawDataError, match="not a whole tar archive"):
        unpack(archive, target, most_bytes=MOST)


def test_a_compression_that_takes_the_memory_it_names(tmp_path: Path, target: Path) -> None:
    archive = write(tmp_path / "a.tgz", member("a"), mode="w:xz")
    with pytest.raises(RawDataError, match="not a whole tar archive"):
        unpack(archive, target, most_bytes=MOST)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2"])
def test_a_compression_that_is_damaged(tmp_path: Path, target: Path, mode: str) -> None:
    """A wrong checksum, or what is no bzip2 at all, is an OSError without a number for Python."""
    archive = write(tmp_path / "archive", member("a"), mode=mode)
    content = bytearray(archive.read_bytes())
    content[-8 if mode == "w:gz" else 20] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(RawDataError, match="not a whole tar archive"):
        unpack(archive, target, most_bytes=MOST)


def test_an_archive_that_is_cut_off(tmp_path: Path, target: Path) -> None:
    archive = write(tmp_path / "a.tgz", member("a", content=os.urandom(50_000)), member("b"))
    whole = archive.read_bytes()
    for size in (0, 10, len(whole) // 2):
        archive.write_bytes(whole[:size])
        with pytest.raises(RawDataError, match="not a whole tar archive"):
            unpack(archive, target, most_bytes=MOST)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        st.lists(st.sampled_from(["a", "b", "..", ".", "", "c"]), min_size=1, max_size=4).map("/".join),
        min_size=1,
        max_size=6,
    ),
    kinds=st.lists(
        st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
        min_size=6,
        max_size=6,
    ),
    links=st.lists(st.sampled_from(["a", "b", "a/b", "..", "../..", "/", "a/../.."]), min_size=6, max_size=6),
)
def test_no_archive_gets_out(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], kinds: list[bytes], links: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    target = folder / "inside" / "target"
    target.mkdir(parents=True)
    (folder / "inside" / "secret.txt").write_text("secret")
    parts = zip(names, kinds, links, strict=False)
    archive = write(folder / "any.tgz", *(member(name, kind, link=link) for name, kind, link in parts))
    before = outside(target)
    with contextlib.suppress(RawDataError):
        unpack(archive, target, most_bytes=MOST)
    assert outside(target) == before
    for path in target.rglob("*"):
        assert Path(os.path.realpath(path)).is_relative_to(target.resolve())
