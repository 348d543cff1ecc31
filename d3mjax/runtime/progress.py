"""Progress of long work on standard error: what is done, how far it is, and the time left."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[..., int]
"""``progress(count, state="", *, at=None)``: so many models more are finished, or ``at`` in all; returns their number.

``state``: what is done next, in words.
"""


@contextmanager
def shown(total: int, name: str, *, unit: str = "model") -> Iterator[Progress]:
    """A bar of ``total`` models, or other units, on a terminal; elsewhere one line whenever ``state`` changes."""
    from tqdm import tqdm  # of the extras: the library alone shows no progress

    begin, done, last = time.monotonic(), 0, ""
    with tqdm(total=total, unit=unit, desc=name, disable=not sys.stderr.isatty()) as bar:

        def progress(count: int, state: str = "", *, at: int | None = None) -> int:
            nonlocal done, last
            done = done + count if at is None else at
            if bar.disable:
                if state and state != last:
                    spent = time.monotonic() - begin
                    left = f", about {spent * (total - done) / done:.0f} s left" if done else ""
                    print(f"{name}: {state} ({done} of {total} {unit}s, {spent:.0f} s{left})", file=sys.stderr)
            else:
                if state and state != last:
                    bar.set_postfix_str(state, refresh=False)
                bar.n = done
                bar.refresh()
            last = state or last
            return done

        yield progress
        progress(0, "finished", at=total)
