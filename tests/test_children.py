"""Processes that answer requests: whatever they print, however they begin and end, nothing waits for ever."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from embeddings_assets.errors import EmbeddingsError
from embeddings_assets.workers.process import Child, KilledError

ECHO = """
import json
answers.write("ready\\n")
answers.flush()
for line in requests:
    answers.write(json.dumps({"heard": json.loads(line)}) + "\\n")
    answers.flush()
"""
SILENT = "import time\nprint('begun', flush=True)\ntime.sleep(3600)\n"
NEVER = """
import time
answers.write("ready\\n")
answers.flush()
time.sleep(3600)
"""
LONG = 60.0  # seconds; nothing here takes them but a test that fails


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def made() -> Iterator[Callable[..., Child]]:
    children: list[Child] = []

    def make(code: str, **options: float) -> Child:
        children.append(Child(code, **options))  # type: ignore[arg-type]
        return children[-1]

    yield make
    for child in children:
        child.kill()
        child.close()


def test_what_is_printed_is_no_answer(
    made: Callable[..., Child], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the interpreter's start, by libraries through Python or around it, and by programs they start."""
    (tmp_path / "sitecustomize.py").write_text("print('hello')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    noise = [
        "import os, subprocess",
        "print('a banner')",
        "os.write(1, b'a line\\n')",
        "subprocess.run(['echo', '{}'])",
    ]
    child = made("\n".join([*noise, ECHO]))
    assert child.ask("näme", LONG) == {"heard": "näme"}
    assert child.ask([1], LONG) == {"heard": [1]}


def test_what_reads_its_input_takes_no_request(made: Callable[..., Child]) -> None:
    child = made("import sys\nassert sys.stdin.read() == ''\n" + ECHO)
    assert child.ask(1, LONG) == {"heard": 1}


def test_a_process_that_does_not_get_ready_is_an_error(made: Callable[..., Child]) -> None:
    child = made(SILENT, start_timeout=2.0)
    pid = child.pid
    with pytest.raises(EmbeddingsError, match="not ready after 2 seconds"):
        child.ask(1)
    assert not Path(f"/proc/{pid}").exists()


def test_a_process_that_speaks_out_of_turn_or_falls_silent_is_ended(made: Callable[..., Child]) -> None:
    with pytest.raises(EmbeddingsError, match="cannot be started"):
        made("answers.write('what?\\n')\n" + NEVER).ask(1, LONG)
    child = made(NEVER.replace("time.sleep", "answers.close()\ntime.sleep"))
    assert child.ask(1, LONG) is None
    assert child.how_it_ended() == (False, "SIGKILL")


def test_a_process_that_is_killed_while_it_starts_is_started_again(made: Callable[..., Child]) -> None:
    child = made(ECHO)
    os.kill(child.pid, signal.SIGKILL)
    assert child.ask(1, LONG) == {"heard": 1}


def test_attempts_to_start_end_and_the_next_request_tries_again(
    made: Callable[..., Child], tmp_path: Path
) -> None:
    poison, log = tmp_path / "poison", tmp_path / "log"
    poison.touch()
    code = f"""
import os
open({str(log)!r}, "ab").write(b".")
if os.path.exists({str(poison)!r}):
    os.kill(os.getpid(), 9)
"""
    child = made(code + ECHO)
    with pytest.raises(EmbeddingsError, match="SIGKILL"):
        child.ask(1, LONG)
    assert log.stat().st_size == 3
    poison.unlink()
    assert child.ask(2, LONG) == {"heard": 2}


def test_a_process_that_cannot_begin_is_not_tried_again(made: Callable[..., Child], tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = made(f"open({str(log)!r}, 'ab').write(b'.')\nraise RuntimeError('a broken library')")
    with pytest.raises(EmbeddingsError, match=r"(?s)exit code 1.*a broken library"):
        child.ask(1, LONG)
    assert log.stat().st_size == 1


def test_a_late_answer_can_be_waited_for(made: Callable[..., Child], tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wait = f"for line in requests:\n    while not os.path.exists({str(gate)!r}): time.sleep(0.01)"
    child = made("import os, time\n" + ECHO.replace("for line in requests:", wait))
    with pytest.raises(TimeoutError):
        child.ask(1, 0.2)
    gate.touch()
    assert child.listen(LONG) == {"heard": 1}


@pytest.mark.parametrize("code", [SILENT, NEVER], ids=["starting", "answering"])
def test_to_kill_ends_a_wait_for_good(code: str, made: Callable[..., Child]) -> None:
    """While it starts, or while it answers."""
    child = made(code)
    found: list[BaseException] = []

    def wait() -> None:
        try:
            child.ask(1)
        except KilledError as error:
            found.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    time.sleep(0.5)
    child.kill()
    waiting.join(LONG)
    assert found
    with pytest.raises(KilledError):
        child.ask(2)


def test_a_stopped_process_is_told_from_a_busy_one(made: Callable[..., Child]) -> None:
    child = made(ECHO)
    child.ask(1, LONG)
    assert not child.is_stopped
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        child.ask(2, 0.2)
    assert child.is_stopped
    os.kill(child.pid, signal.SIGCONT)
    assert child.listen(LONG) == {"heard": 2}
    assert not child.is_stopped


def test_a_failed_start_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    handles = open_files()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nonexistent/python")
        with pytest.raises(EmbeddingsError, match="cannot be started"):
            Child(ECHO)
    assert open_files() == handles
    with closing(Child(ECHO)) as child:
        assert child.ask(1, LONG) == {"heard": 1}
    assert open_files() == handles
