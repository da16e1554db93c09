"""A step that is killed with SIGKILL, forked each time from a process that has imported everything."""

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

Step = Callable[..., object]

_KILLS = 10
_MOST_SECONDS = 180
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["embeddings_assets.datasets.fetch", "embeddings_assets.datasets.processed"])


def seconds_of(step: Step, *arguments: Any) -> float:
    """How long the step takes in a process of its own when nothing disturbs it."""
    process, told = _start(step, arguments)
    started = time.monotonic()
    assert _has_ended(told)
    seconds = time.monotonic() - started
    process.join()
    return seconds


def ends(step: Step, *arguments: Any) -> bool:
    """Whether the step comes to its end in a process of its own."""
    process, told = _start(step, arguments)
    ended = _has_ended(told)
    process.join()
    return ended


def ten_kills(seconds: float, step: Step, *arguments: Any) -> Iterator[bool]:
    """Run the step until ten of the runs were killed inside it, at random moments of `seconds`.

    After each run gives whether it was killed.
    """
    moments = random.Random(0)
    killed = 0
    give_up = time.monotonic() + _MOST_SECONDS
    while killed < _KILLS:
        assert time.monotonic() < give_up, f"only {killed} of the kills were in time"
        process, told = _start(step, arguments)
        time.sleep(moments.uniform(0, seconds))
        process.kill()
        process.join()
        inside = not _has_ended(told)
        killed += inside
        yield inside


def _start(step: Step, arguments: tuple[Any, ...]) -> tuple[Any, Connection]:
    mine, its = _FORKED.Pipe()
    process = _FORKED.Process(target=_run, args=(its, step, arguments), daemon=True)
    process.start()
    its.close()
    assert mine.recv() == "begins"
    return process, mine


def _has_ended(told: Connection) -> bool:
    try:
        return bool(told.recv() == "ended")
    except EOFError:
        return False


def _run(tell: Connection, step: Step, arguments: tuple[Any, ...]) -> None:
    tell.send("begins")
    step(*arguments)
    tell.send("ended")
