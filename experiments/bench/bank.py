"""A large bank written, read and fitted, and the memory of that; its outputs are synthetic, nothing is trained."""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.attribution import datamodels
from d3mjax.linalg import lasso
from d3mjax.runtime import bank
from d3mjax.training import masks
from experiments.bench.measuring import in_own_process, peak, row, timed


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
    """One row, measured in a process of its own."""
    task = Task(models=96, targets=4, examples=20, block=32, lambdas=5) if smoke else Task()
    return [row(task.name, "bank.fill, bank.read, fit_lasso", in_own_process("bank", task), settings=task)]


def measure(task: Task, directory: Path) -> dict[str, float]:
    """Seconds of writing, of reading with every checksum, of the fit with compilation; its held-out R2; peak memory."""
    key, (t, n) = jax.random.key(0), (task.targets, task.examples)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(t, n)) * (rng.random((t, n)) < task.relevant)
    weight = jnp.asarray(weight / np.sqrt(task.relevant * n / 4), jnp.float32)  # the signal has a variance near one
    subsets = jax.jit(lambda ids: masks.fixed_size(key, ids, n, n // 2))

    @jax.jit
    def outputs(ids, chosen):
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (t,)))(ids)
        return chosen @ weight.T + noise, jnp.zeros((len(ids), 1))

    facts = bank.manifest(key, subsets, {"weight": weight}, {}, num_targets=t)
    ids = np.arange(task.models)
    write = timed(lambda: bank.fill(directory, facts, subsets, outputs, ids, block=task.block))
    read = timed(lambda: bank.read(directory))
    heldout = np.arange(min(task.models // 10, 2000))
    options = lasso.Options(num_lambdas=task.lambdas, smallest=0.01, step_dtype=jnp.bfloat16, tolerance=1e-3)
    fit = jax.jit(lambda x, y: datamodels.fit_lasso(x, y, heldout, options=options))
    fitted = timed(lambda: fit(bank.masks(read.value), bank.outputs(read.value)))
    seconds = {"write_seconds": write.seconds, "read_seconds": read.seconds, "fit_seconds": fitted.seconds}
    return {**seconds, "r2": float(fitted.value[1].r2.mean()), **peak()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        print(json.dumps(measure(Task(**json.loads(sys.argv[1])), Path(directory))))
