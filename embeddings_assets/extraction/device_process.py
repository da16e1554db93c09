"""The other end of `devices.py`: a process that fills the shards it is asked for, on one device."""

import base64
import json
import pickle
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import IO

from embeddings_assets.errors import EmbeddingsError, packed_error
from embeddings_assets.extraction.decoding import Decoders
from embeddings_assets.extraction.filling import StageClock
from embeddings_assets.io.files import disk_errors
from embeddings_assets.workers.process import READY, logs_told

_Say = Callable[..., None]


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Take the job with the first line; answer every other, a list of shard numbers, when they are staged.

    An answer counts from the start of the process. Before it come lines with the images done and with what is
    logged. An error ends the process.
    """
    lock = threading.Lock()

    def say(**what: object) -> None:
        with lock:
            answers.write(json.dumps(what) + "\n")
            answers.flush()

    answers.write(f"{READY}\n")
    answers.flush()
    with logs_told(say, OSError):
        try:
            _fill(requests, say)
        except EmbeddingsError as error:
            say(error=packed_error(error))
        except Exception:  # noqa: BLE001 - raised again by the process that asked
            say(broken=traceback.format_exc())


@disk_errors()
def _fill(requests: IO[str], say: _Say) -> None:
    job, source = pickle.loads(base64.b64decode(json.loads(next(requests))))  # from who started this process
    clock = StageClock()
    with Decoders() as decoders:
        # One filler for all requests: it keeps the encoder, the batch size that memory allows, and where the
        # vectors lie that can be reused. How many bad images are too many is counted over all devices, by the
        # process that asked.
        filler = job.filler(source, decoders, job.manifest.rows, clock, lambda done, total: say(done=done))
        say(taken=True)
        for line in requests:
            filled = filler.fill(json.loads(line))
            say(
                filled=asdict(filled),
                bad=[(path, error.reason.value, error.detail) for path, error in filler.bad],
                seconds=clock.seconds_of(0.0),
            )
