"""The other end of `resident.py`: embeds one split after the other with encoders that stay loaded."""

import contextlib
import json
import logging
import os
import socket
import threading
import traceback
from pathlib import Path
from typing import IO

from embeddings_assets.errors import EmbeddingsError, packed_error
from embeddings_assets.pipeline import EncoderCache, SplitRequest
from embeddings_assets.resident import alone
from embeddings_assets.workers.process import logs_told

log = logging.getLogger(__name__)


class _AskerGoneError(Exception):
    """The run that asked has ended; its split is given up, and resumes when it is asked for again."""


def main(path: str, idle_seconds: float) -> None:
    """Serve the socket at `path` until no request has come for so long."""
    with alone(Path(path)) as is_alone:
        if not is_alone:
            return
        Path(path).unlink(missing_ok=True)  # of a process that was killed
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen()
            listener.settimeout(idle_seconds)
            cache = EncoderCache()
            try:
                is_sound = True
                while is_sound and (connection := _next(listener)) is not None:
                    with connection:
                        is_sound = _serve(connection, cache)
            finally:
                Path(path).unlink(missing_ok=True)
                cache.close()


def _next(listener: socket.socket) -> socket.socket | None:
    """The next run that asks; None if none has come for too long."""
    try:
        return listener.accept()[0]
    except TimeoutError:
        return None


def _serve(connection: socket.socket, cache: EncoderCache) -> bool:
    """Answer one run; whether this process can be trusted with another."""
    connection.settimeout(None)
    # Closing the stream may meet the same end of the run again.
    gone = contextlib.suppress(_AskerGoneError, ConnectionError)
    with gone, connection.makefile("rw", encoding="utf-8") as stream:
        line = stream.readline()
        if line.endswith("\n"):  # a run that was killed may have sent half of one
            return _answer(_Asker(stream), SplitRequest.from_dict(json.loads(line)), cache)
    return True


class _Asker:
    """The run at the other end."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def say(self, **answer: object) -> None:
        """Write one line.

        Raises:
            _AskerGoneError: nobody reads it.
        """
        with self._lock:
            try:
                self._stream.write(json.dumps(answer) + "\n")
                self._stream.flush()
            except OSError as error:
                raise _AskerGoneError from error


def _answer(asker: _Asker, request: SplitRequest, cache: EncoderCache) -> bool:
    asker.say(progress=[0, 0])  # taken up
    with logs_told(asker.say, _AskerGoneError):
        log.info("process %d keeps the encoders", os.getpid())
        try:
            report = cache.embed(request, lambda done, total: asker.say(progress=[done, total]))
        except _AskerGoneError:
            raise
        except EmbeddingsError as error:
            asker.say(error=packed_error(error))
        except Exception:  # noqa: BLE001 - raised again by the run that asked
            # It may be the device that has failed, which then fails for whoever uses it from this process.
            asker.say(broken=traceback.format_exc())
            return False
        else:
            asker.say(report=report.as_dict())
    return True
