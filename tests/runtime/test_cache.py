"""The compilation cache outlives processes, and a killed process leaves no damaged entry."""

import os
import subprocess
import sys

import pytest

from d3mjax.runtime import cache

PROGRAM = """
import os, sys
import jax
from d3mjax.runtime import cache
cache.LEAST_SECONDS = 0.0
shared = cache.enable()
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
hits = []
jax.monitoring.register_event_listener(lambda name, **kw: hits.append(name) if name.endswith("cache_hits") else None)
print(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((20, 20))), len(hits), shared)
if sys.argv[1:]:
    sys.stdout.flush()
    os._exit(0)
"""


def run(directory, *arguments):
    environment = {"PATH": "", "JAX_PLATFORMS": "cpu", "D3MJAX_CACHE": str(directory)}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, cwd=os.getcwd()).stdout
    value, hits, shared = out.split()
    assert float(value) == 8000
    return int(hits), shared


@pytest.mark.slow
def test_the_second_process_compiles_nothing(tmp_path):
    killed, shared = run(tmp_path, "killed")
    assert (killed, shared) == (0, str(tmp_path))
    assert not list(tmp_path.glob("*-cache"))
    (left,) = tmp_path.glob("process-*")
    assert run(tmp_path)[0] == 0
    entries = sorted(tmp_path.glob("*-cache"))
    assert entries
    assert run(tmp_path)[0] >= 1
    assert sorted(tmp_path.iterdir()) == sorted([*entries, left])
    os.utime(left, (0, 0))
    assert run("off") == (0, "None")
    run(tmp_path)
    assert sorted(tmp_path.iterdir()) == entries


def test_entries_are_moved_once_and_the_oldest_dropped(tmp_path, monkeypatch):
    own = tmp_path / "process-1"
    own.mkdir()
    for age, name in enumerate("abc"):
        (own / f"{name}-cache").write_bytes(b"x" * 10)
        os.utime(own / f"{name}-cache", (100 - age, 100 - age))
    (tmp_path / "a-cache").write_bytes(b"y" * 10)
    monkeypatch.setattr(cache, "MOST_BYTES", 20)
    cache.publish(own, tmp_path)
    assert {path.name: path.read_bytes()[:1] for path in tmp_path.iterdir()} == {"a-cache": b"y", "b-cache": b"x"}
