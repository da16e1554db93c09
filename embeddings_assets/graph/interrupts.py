"""Ctrl-C around work that Dagster does in this process."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end if SIGINT or SIGTERM came meanwhile, whatever became of it.

    Dagster turns both into an exception that ends a step at most, and nothing at all where Python has to
    ignore it (in a callback of the garbage collector, say). The wakeup descriptor hears of every signal.
    Only the main thread is sent signals; in another this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard, told = os.pipe()
    for end in (heard, told):
        os.set_blocking(end, False)
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(told)
        with os.fdopen(heard, "rb", buffering=0) as stream:
            numbers = stream.read(4096)
        if {signal.SIGINT, signal.SIGTERM} & set(numbers):
            raise KeyboardInterrupt
