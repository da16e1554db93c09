"""Fetching weights from real servers on this machine: a plain URL, and an emulation of the hub's protocol."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from embeddings_assets.catalog import ModelSpec, get_model
from embeddings_assets.encoders.weights.fetch import fetch_checkpoint
from embeddings_assets.encoders.weights.find import find_weights
from embeddings_assets.encoders.weights.lock import FetchedEntry, read_lock, write_random_lock
from embeddings_assets.errors import WeightsError

REPOSITORY = Path(__file__).resolve().parent.parent
COMMIT = "c0ffee" * 6 + "c0ff"


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("archive/data.pkl", os.urandom(200_000))
    return content.getvalue()


CHECKPOINT = archive()
SAFETENSORS = (2).to_bytes(8, "little") + b"{}" + bytes(100_000)


class Server(ThreadingHTTPServer):
    """Serves `pages` by path. `cut` ends every answer half-way; `etag` replaces the digest of hub files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}
        self.cut = False
        self.etag: str | None = None
        self.served: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        content = self.server.pages.get(self.path)
        self.server.served.append(f"{self.command} {self.path}")
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{self.server.etag or hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if self.server.cut else content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def franca_at(server: Server, sha256: str | None = None) -> ModelSpec:
    return replace(get_model("Franca"), url=f"{server.address}/franca.pth", sha256=sha256)


def test_a_url_is_fetched_verified_and_recorded(server: Server, tmp_path: Path) -> None:
    server.pages["/franca.pth"] = CHECKPOINT
    digest = hashlib.sha256(CHECKPOINT).hexdigest()
    write_random_lock(tmp_path)
    source = fetch_checkpoint(franca_at(server, digest), tmp_path, progress=False)
    assert source.path == tmp_path / "Franca" / "franca_vitb14_In21K.pth"
    assert source.path.read_bytes() == CHECKPOINT
    assert (source.sha256, source.trained) == (digest, True)
    assert read_lock(tmp_path)["Franca"] == FetchedEntry(
        f"{server.address}/franca.pth", None, "franca_vitb14_In21K.pth", digest
    )
    assert "CLIP" in read_lock(tmp_path), "the other entries stay"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Franca", "weights.lock"]
    assert find_weights("Franca", tmp_path) == source
    fetch_checkpoint(franca_at(server, digest), tmp_path, progress=False)
    assert len(server.served) == 1, "what is there is not fetched again"


@pytest.mark.parametrize(
    ("content", "cut", "complaint"),
    [
        (CHECKPOINT, True, "failed"),
        (CHECKPOINT + b"x", False, "sha256"),
        (CHECKPOINT[:-300], False, "ends too early"),
        (b"<!DOCTYPE html><html>sign in</html>", False, "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", False, "git-LFS pointer"),
        (b"", False, "0 bytes"),
        (None, False, "404"),
    ],
)
def test_a_bad_download_leaves_nothing_behind(
    content: bytes | None, cut: bool, complaint: str, server: Server, tmp_path: Path
) -> None:
    if content is not None:
        server.pages["/franca.pth"] = content
    server.cut = cut
    spec = franca_at(server, hashlib.sha256(CHECKPOINT).hexdigest())
    with pytest.raises(WeightsError, match=complaint) as caught:
        fetch_checkpoint(spec, tmp_path, progress=False)
    assert server.address in str(caught.value)
    assert caught.value.remedy is not None
    assert list(tmp_path.iterdir()) == []


def test_no_server_is_one_clear_error(server: Server, tmp_path: Path) -> None:
    spec = replace(get_model("Franca"), url="http://127.0.0.1:9/franca.pth")
    with pytest.raises(WeightsError, match="download from http://127"):
        fetch_checkpoint(spec, tmp_path, progress=False)


def test_a_file_of_the_users_is_never_overwritten(server: Server, tmp_path: Path) -> None:
    server.pages["/franca.pth"] = CHECKPOINT
    mine = tmp_path / "Franca" / "franca_vitb14_In21K.pth"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(WeightsError, match="not overwritten"):
        fetch_checkpoint(franca_at(server), tmp_path, progress=False)
    assert mine.read_bytes() == b"mine"


def fetch_from_hub(
    root: Path, endpoint: str, call: str = "fetch_weights", spec: str = '"DINOv2"'
) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's library reads HF_ENDPOINT when it is imported."""
    options = "" if call == "find_or_fetch" else ", progress=False"
    code = f"""
import json
from dataclasses import replace
from pathlib import Path
from embeddings_assets.catalog import get_model
from embeddings_assets.encoders.weights.fetch import fetch_checkpoint, find_or_fetch, fetch_weights
from embeddings_assets.errors import WeightsError
try:
    source = {call}({spec}, Path({str(root)!r}){options})
    print(json.dumps([str(source.path), source.sha256, source.trained, source.revision]))
except WeightsError as error:
    print(error)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(root / "hf"), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
        check=True,
    )


@pytest.fixture
def hub(server: Server) -> Server:
    for revision in ("main", COMMIT):
        base = f"/facebook/dinov2-base/resolve/{revision}"
        server.pages[f"{base}/config.json"] = b'{"model_type": "dinov2"}'
        server.pages[f"{base}/preprocessor_config.json"] = b"{}"
        server.pages[f"{base}/model.safetensors"] = SAFETENSORS
    return server


def test_the_hub_gives_a_folder_with_its_commit(hub: Server, tmp_path: Path) -> None:
    run = fetch_from_hub(tmp_path, hub.address, "find_or_fetch")
    path, sha256, trained, revision = json.loads(run.stdout)
    assert run.stderr == "", "no progress bars, no advice"
    assert Path(path) == tmp_path / "DINOv2" / "model.safetensors"
    assert Path(path).read_bytes() == SAFETENSORS
    assert sorted(file.name for file in (tmp_path / "DINOv2").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert (sha256, trained, revision) == (hashlib.sha256(SAFETENSORS).hexdigest(), True, COMMIT)
    entry = FetchedEntry("hub:facebook/dinov2-base", COMMIT, "model.safetensors", sha256)
    assert read_lock(tmp_path) == {"DINOv2": entry}


def test_what_comes_with_a_checkpoint_depends_on_its_family_and_name(server: Server, tmp_path: Path) -> None:
    for revision in ("main", COMMIT):
        base = f"/somebody/clip/resolve/{revision}"
        server.pages[f"{base}/open_clip_config.json"] = b"{}"
        server.pages[f"{base}/open_clip_model.safetensors"] = SAFETENSORS
    spec = 'replace(get_model("CLIP"), hub_repo="somebody/clip", filename="open_clip_model.safetensors")'
    run = fetch_from_hub(tmp_path, server.address, "fetch_checkpoint", spec)
    assert json.loads(run.stdout)[0] == str(tmp_path / "CLIP" / "open_clip_model.safetensors")
    assert (tmp_path / "CLIP" / "open_clip_config.json").read_bytes() == b"{}"


def test_a_model_that_is_published_nowhere_says_what_to_place(tmp_path: Path) -> None:
    spec = replace(get_model("Franca"), url=None)
    with pytest.raises(WeightsError, match=r"no address.*\n.*one \.pth file in the folder Franca"):
        fetch_checkpoint(spec, tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_hub_file_with_another_digest_than_the_hubs_is_refused(hub: Server, tmp_path: Path) -> None:
    hub.etag = "ab" * 32
    run = fetch_from_hub(tmp_path, hub.address)
    assert "expected " + "ab" * 32 in run.stdout
    assert not (tmp_path / "DINOv2").exists()
    assert read_lock(tmp_path) == {}


def test_without_network_both_causes_are_named(tmp_path: Path) -> None:
    run = fetch_from_hub(tmp_path, "http://127.0.0.1:9", "find_or_fetch")
    for part in ("no weights", "could not be fetched", "facebook/dinov2-base", "--weights random"):
        assert part in run.stdout
    assert run.stderr == ""
