"""JAX's persistent compilation cache for commands and studies, safe for several processes and for killed ones."""

import atexit
import hashlib
import os
import platform
import shutil
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

import jax

LEAST_SECONDS = 0.5
"""Programs that compile faster are not kept."""
MOST_BYTES = 2 << 30
"""Size of the cache; the oldest programs are dropped first."""
_STALE = 7 * 86400.0  # seconds after which the directory of a killed process is removed


def enable() -> Path | None:
    """Keep compiled programs between processes, and return their directory; None if that is off.

    The environment variable ``D3MJAX_CACHE`` is a directory, or ``off``; the default is in the user's cache directory,
    one for each type of processor. A directory that JAX was already given is left to JAX.

    JAX writes its entries in place, so that a killed process would leave a damaged one. Every process therefore has a
    directory of its own, filled with hard links, and moves its new entries into the shared one when it exits.
    """
    shared = directory()
    if shared is None or jax.config.values["jax_compilation_cache_dir"]:
        return None
    own = shared / f"process-{uuid.uuid4().hex}"
    try:
        own.mkdir(parents=True)
        _remove_stale(shared)
        for entry in shared.glob("*-cache"):
            with suppress(OSError):  # another process has just removed it
                os.link(entry, own / entry.name)
    except OSError:  # work goes on without a cache
        return None
    jax.config.update("jax_compilation_cache_dir", str(own))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    # Their paths would be part of the keys, so that no process would find the entries of another.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    atexit.register(publish, own, shared)
    _hide_false_alarms()
    return shared


def directory() -> Path | None:
    """Directory of what is kept between processes, by ``D3MJAX_CACHE``; None if nothing is."""
    chosen = os.environ.get("D3MJAX_CACHE", "")
    return None if chosen == "off" else Path(chosen) if chosen else _default()


def publish(own: Path, shared: Path) -> None:
    """Move the entries of one process into the shared directory, drop the oldest beyond `MOST_BYTES`, and clean up."""
    with suppress(OSError):
        for entry in own.glob("*-cache"):
            if not (shared / entry.name).exists():
                os.replace(entry, shared / entry.name)
        size = 0
        for entry in sorted(shared.glob("*-cache"), key=lambda path: path.stat().st_mtime, reverse=True):
            size += entry.stat().st_size
            if size > MOST_BYTES:
                entry.unlink(missing_ok=True)
    shutil.rmtree(own, ignore_errors=True)


def _default() -> Path:
    """Compiled programs hold instructions of one type of processor; home directories may be shared by several."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        return Path(base) / "d3mjax" / hashlib.sha256(features.encode()).hexdigest()[:12]
    return Path(base) / "d3mjax" / platform.machine()


def _remove_stale(shared: Path) -> None:
    for directory in shared.glob("process-*"):
        with suppress(OSError):
            if time.time() - directory.stat().st_mtime > _STALE:
                shutil.rmtree(directory, ignore_errors=True)


def _hide_false_alarms() -> None:
    """Drop XLA's notes on cached programs from standard error; everything else passes.

    XLA compares tuning flags of its compiler with the features of the processor, and prints a page for each program
    that it loads on the machine that compiled it. Its log level can be set before JAX is imported only, for all notes.
    """
    original = os.dup(2)
    source, sink = os.pipe()
    os.dup2(sink, 2)
    os.close(sink)
    sys.stderr = os.fdopen(original, "w", buffering=1, closefd=False)  # Python writes past the filter

    def forward() -> None:
        with os.fdopen(source, "rb") as lines:
            for line in lines:
                if b"cpu_aot_loader" not in line:
                    os.write(original, line)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()

    def restore() -> None:
        os.dup2(original, 2)  # closes the last end of the pipe, which ends the thread
        thread.join(1.0)

    atexit.register(restore)
