"""A small dataset as published archives, and a server on 127.0.0.1 that behaves well or badly."""

import hashlib
import http.server
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from embeddings_assets import catalog
from embeddings_assets.catalog import DatasetSpec, get_dataset
from embeddings_assets.cli.main import main as run_cli
from embeddings_assets.datasets.fetch import fetch_published
from embeddings_assets.datasets.synthetic.writer import write_synthetic
from embeddings_assets.settings import DataPaths

FLOWERS = "Oxford 102 Flowers"


def publish(folder: Path, *, compressed: bool = True, extra: int = 0) -> Path:
    """Write 102flowers.tgz, imagelabels.mat and setid.mat of a drawn Flowers set; returns its raw folder.

    Args:
        extra: files that no list names.
    """
    raw = write_synthetic(folder / "made", FLOWERS, classes=5, train_per_class=4, test_per_class=2)
    (raw / "SYNTHETIC.txt").unlink()
    for number in range(extra):
        (raw / "jpg" / f"extra-{number}").write_text(str(number))
    published = folder / "published"
    published.mkdir()
    with tarfile.open(published / "102flowers.tgz", "w:gz" if compressed else "w") as tar:
        tar.add(raw / "jpg", "jpg")
    for name in ("imagelabels.mat", "setid.mat"):
        (published / name).write_bytes((raw / name).read_bytes())
    return raw


def spec_of(published: Path, address: str) -> DatasetSpec:
    """The dataset's row with these archives, and the counts of the drawn set."""
    archives = []
    for archive in get_dataset(FLOWERS).archives:
        content = (published / archive.filename).read_bytes()
        digests = {name: hashlib.new(name, content).hexdigest() for name in ("md5", "sha256")}
        url = f"{address}/{archive.filename}"
        archives.append(replace(archive, url=url, bytes=len(content), **digests))
    counts = dict.fromkeys(get_dataset(FLOWERS).counts, 10)
    return replace(get_dataset(FLOWERS), archives=tuple(archives), unpacked_bytes=5_000_000, counts=counts)


def tree_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with its digest, and every other entry."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "-"
        for path in sorted(folder.rglob("*"))
    }


@dataclass
class Behaviour:
    """How the server answers; `asked` collects (path, Range header)."""

    folder: Path
    break_off_after: list[int] = field(default_factory=list)
    ranges: bool = True
    status: int = 200
    html: bool = False
    etag: str = '"1"'
    flip: bool = False
    pause: float = 0.0
    length: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """The address of a running server."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            behaviour.asked.append((self.path, asked))
            content = (behaviour.folder / Path(self.path).name).read_bytes()
            if behaviour.flip:
                content = content[:-1] + bytes([content[-1] ^ 1])
            if behaviour.html:
                content = b"<!DOCTYPE html><title>Sign in</title>"
            start = 0
            same = self.headers.get("If-Range") == behaviour.etag
            if asked and behaviour.ranges and same and behaviour.status == 200:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(content):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(behaviour.status)
            body = content[start:]
            if behaviour.length:
                self.send_header("Content-Length", str(len(body)))
            self.close_connection = True
            self.send_header("ETag", behaviour.etag)
            self.end_headers()
            if behaviour.break_off_after:
                self.wfile.write(body[: behaviour.break_off_after.pop(0)])
                self.wfile.flush()
                self.connection.close()
                return
            for first in range(0, len(body), 4096):
                self.wfile.write(body[first : first + 4096])
                if behaviour.pause:
                    time.sleep(behaviour.pause)

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that are killed are part of the tests."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def fetch(published: Path, address: str, root: Path) -> None:
    """Fetch in a process that can be killed."""
    by_hand = published if address == "by-hand" else None
    fetch_published(spec_of(published, address), DataPaths.from_root(root), archives_dir=by_hand)


def main() -> None:
    """`fetch_support.py PUBLISHED ADDRESS ...`: the command `datasets fetch ...` with these archives."""
    published, address, *arguments = sys.argv[1:]
    spec = spec_of(Path(published), address)
    catalog.DATASETS = tuple(spec if row.name == spec.name else row for row in catalog.DATASETS)
    sys.argv[1:] = ["datasets", "fetch", *arguments]
    run_cli()


if __name__ == "__main__":
    main()
