"""Preemption: SIGTERM ends a run between two pieces of work, and the same command goes on where it stopped.

Blocks and units are atomic files, so what is in hand may be dropped; the exit status is 143, which schedulers take for
"not finished". A long training asks to be told instead, saves a checkpoint, and leaves.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STATUS = 128 + signal.SIGTERM


@contextmanager
def at_once() -> Iterator[None]:
    """In this block SIGTERM drops what is in hand, cleans up and exits with `STATUS`."""

    def leave(*_):
        raise SystemExit(STATUS)

    with _handling(leave):
        yield


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """In this block SIGTERM is only noted: ``asked()`` says whether it came, and who asks must exit with `STATUS`."""
    came = []
    with _handling(lambda *_: came.append(True)):
        yield lambda: bool(came)


@contextmanager
def _handling(handler: Callable) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only there can Python take signals
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
