"""Clocks of the benchmarks, measurements in processes of their own, and their rows."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from d3mjax.reports import rows
from d3mjax.runtime import runs

ROOT = Path(__file__).parents[2]


class Timed(NamedTuple):
    """The value of a call, and its time until that value is ready."""

    value: Any
    seconds: float  # of wall time
    cpu_seconds: float  # of all cores


def timed(call: Callable[[], Any]) -> Timed:
    """Time one call."""
    begin, cpu = time.perf_counter(), time.process_time()
    value = jax.block_until_ready(call())
    return Timed(value, time.perf_counter() - begin, time.process_time() - cpu)


def repeated(call: Callable[[], Any], repeats: int) -> list[Timed]:
    """Time some calls, after one that compiles and touches the memory."""
    timed(call)
    return [timed(call) for _ in range(repeats)]


def in_own_process(module: str, task: Any) -> dict[str, float]:
    """Figures that a module of this package prints as JSON for a task; the peak of memory is that of the task alone."""
    command = [sys.executable, "-m", f"experiments.bench.{module}", json.dumps(asdict(task))]
    return last_json(subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout)


def in_torch(python: Path, script: str, *arguments: str) -> dict[str, Any]:
    """Figures that a script of this folder prints as JSON, in the environment of PyTorch."""
    # -P: this folder holds a `trak.py`, too.
    command = [str(python), "-P", str(Path(__file__).with_name(script)), *arguments]
    return last_json(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def last_json(printed: str) -> dict[str, Any]:
    """The last line that was printed, read as JSON."""
    return json.loads(printed.splitlines()[-1])


def row(
    task: str, method: str, figures: Mapping[str, float | Sequence[float]], *, role: str = "ours", settings: Any
) -> dict[str, Any]:
    """One row of results from single figures and from repeats; a figure without seeds has one value."""
    settings = settings if isinstance(settings, dict) else asdict(settings)
    return rows.row(task, method, {name: np.atleast_1d(f) for name, f in figures.items()}, role=role, settings=settings)


def peak() -> dict[str, float]:
    """Peak memory of this process so far."""
    return {"peak_memory_mib": runs.peak_memory_mib()}
