"""Preemption: SIGTERM ends a run between two pieces of work, and the same command resumes it.

Blocks and units are atomic files, so the current one may be abandoned; the exit status is 143, which schedulers take
for "not finished". A long training defers the signal, saves a checkpoint, and exits.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax

STATUS = 128 + signal.SIGTERM


@contextmanager
def at_once(*, grace: float = 10.0) -> Iterator[None]:
    """In this block SIGTERM abandons the current unit, cleans up and exits with `STATUS`.

    Python handles signals between two calls only: during a compiled program, or a wait for other hosts, the process
    ends after ``grace`` seconds. Each of several hosts exits by itself, whatever the reason, as JAX would wait for the
    others first, and then abort.
    """
    reads, writes = os.pipe()
    os.set_blocking(writes, False)

    def watch():
        while caught := os.read(reads, 1):  # nothing once the other end is closed
            if caught[0] == signal.SIGTERM:
                time.sleep(grace)
                os._exit(STATUS)
        os.close(reads)

    def leave(*_):
        raise SystemExit(STATUS)

    threading.Thread(target=watch, daemon=True).start()
    try:
        with _handling(leave, wakeup=writes):
            yield
    except BaseException as error:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)
    finally:
        os.close(writes)


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """In this block SIGTERM is only recorded: ``asked()`` returns whether it arrived. It is sent again afterwards."""
    came = []
    with _handling(lambda *_: came.append(True)):
        yield lambda: bool(came)
    if came:
        signal.raise_signal(signal.SIGTERM)


@contextmanager
def _handling(handler: Callable, *, wakeup: int = -1) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield
        return
    before, descriptor = signal.signal(signal.SIGTERM, handler), signal.set_wakeup_fd(wakeup)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, before)
