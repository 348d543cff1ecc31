"""A large bank written, read and fitted, and the memory that takes. Its models are made up: nothing is trained."""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.attribution import datamodels
from d3mjax.linalg import lasso
from d3mjax.reports.rows import row
from d3mjax.runtime import bank, runs
from d3mjax.training import masks

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Task:
    """Half subsets, and outputs of sparse weights and noise of the same variance."""

    models: int = 100_000
    targets: int = 1000
    examples: int = 2000
    block: int = 2000
    lambdas: int = 30
    relevant: float = 0.05  # share of the weights that are not zero

    @property
    def name(self) -> str:
        return f"Bank, {self.models:,} models x {self.targets:,} targets, {self.examples:,} examples"


def bench(*, smoke: bool) -> list[dict[str, Any]]:
    """In a process of its own, so that the peak of its memory is its own."""
    task = Task(models=96, targets=4, examples=20, block=32, lambdas=5) if smoke else Task()
    command = [sys.executable, "-m", "experiments.bench.bank", json.dumps(asdict(task))]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    figures = {name: [value] for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
    return [row(task.name, "bank.fill, bank.read, fit_lasso", figures, role="ours", settings=asdict(task))]


def measure(task: Task, directory: Path) -> dict[str, float]:
    """Seconds of writing, of reading with every checksum, of the fit with compilation; its held-out R2; peak memory."""
    key, (t, n) = jax.random.key(0), (task.targets, task.examples)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(t, n)) * (rng.random((t, n)) < task.relevant)
    weight = jnp.asarray(weight / np.sqrt(task.relevant * n / 4), jnp.float32)  # the signal has a variance near one
    subsets = jax.jit(lambda ids: masks.fixed_size(key, ids, n, n // 2))

    @jax.jit
    def run(ids, chosen):
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (t,)))(ids)
        return chosen @ weight.T + noise, jnp.zeros((len(ids), 1))

    def timed(work):
        begin = time.perf_counter()
        return jax.block_until_ready(work()), time.perf_counter() - begin

    facts = bank.manifest(key, subsets, {"weight": weight}, {}, num_targets=t)
    _, write = timed(lambda: bank.fill(directory, facts, subsets, run, np.arange(task.models), block=task.block))
    found, read = timed(lambda: bank.read(directory))
    heldout = np.arange(min(task.models // 10, 2000))
    options = lasso.Options(num_lambdas=task.lambdas, smallest=0.01, step_dtype=jnp.bfloat16, tolerance=1e-3)
    fit = jax.jit(lambda x, y: datamodels.fit_lasso(x, y, heldout, options=options))
    (_, info), seconds = timed(lambda: fit(bank.masks(found), bank.outputs(found)))
    r2, peak = float(info.r2.mean()), runs.peak_memory_mib()
    return {"write_seconds": write, "read_seconds": read, "fit_seconds": seconds, "r2": r2, "peak_memory_mib": peak}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(measure(Task(**json.loads(sys.argv[1])), Path(directory))))
