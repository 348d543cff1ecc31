"""The influence channel of DeMix by Gram products, beside normalised gradients formed one chunk after the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from d3mjax.attribution import curvatures, gradients
from d3mjax.attribution.microbatches import map_microbatches
from d3mjax.diagnosis import vectors
from d3mjax.networks import dense
from d3mjax.types import Model, Split
from experiments.bench.measuring import peak, repeated, row


@dataclass(frozen=True)
class Task:
    """Rows to train and to validate on, features, hidden layers."""

    train: int
    validation: int
    features: int = 107
    hidden: tuple[int, ...] = (256, 128, 64)
    repeats: int = 3

    @property
    def name(self) -> str:
        return f"influence tensor, {self.train:,} x {self.validation:,}, MLP {'-'.join(map(str, self.hidden))}"


def bench(*, smoke: bool) -> list[dict[str, Any]]:
    """Both on 4,000 x 512, and ours alone on 20,000 x 2,048, where explicit gradients would take minutes."""
    tasks = [Task(60, 12, 9, (8,), 1)] if smoke else [Task(4000, 512), Task(20_000, 2048)]
    return [row for i, task in enumerate(tasks) for row in _rows(task, compare=i == 0)]


def _rows(task: Task, *, compare: bool) -> list[dict[str, Any]]:
    model = dense.mlp(task.hidden, 2)
    train, validation = (_split(n, task.features, seed) for seed, n in enumerate((task.train, task.validation)))
    variables = model.init(jax.random.key(0), train.x[:1])

    def measure(fn: Callable) -> tuple[float, np.ndarray]:
        """Median seconds of a call, and what it returns."""
        compiled = jax.jit(lambda v, a, b: fn(model, v, a, b))
        calls = repeated(lambda: compiled(variables, train, validation), task.repeats)
        return float(np.median([call.seconds for call in calls])), np.asarray(calls[0].value)

    seconds, product = measure(vectors.gram)
    figures, rows = {"seconds": seconds}, []
    if compare:
        reference, expected = measure(_explicit)
        rows.append(row(task.name, "explicit gradients", {"seconds": reference}, role="rival", settings=task))
        figures |= {"ratio": reference / seconds, "largest_error": float(np.abs(product - expected).max())}
    four, _ = measure(vectors.tensor)
    memory = {} if compare else peak()  # of the process: explicit gradients would set it
    every = "d3mjax, all four channels, stored in half precision"
    rows.append(row(task.name, "d3mjax, Gram products", {**figures, **memory}, settings=task))
    return [*rows, row(task.name, every, {"seconds": four, **memory}, settings=task)]


def _split(n: int, features: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n).astype(np.int32)
    return Split(rng.normal(size=(n, features)).astype(np.float32), y, np.zeros_like(y), np.arange(n, dtype=np.int32))


def _explicit(model: Model, variables, train: Split, validation: Split):
    logits = gradients.logits_of(model, variables)
    output = lambda params, example: curvatures.cross_entropy(logits(params, example), example.y)

    def unit(part):
        tree = gradients.per_example(output, variables["params"], part)
        flat = jax.vmap(lambda g: ravel_pytree(g)[0])(tree)
        return flat / jnp.linalg.norm(flat, axis=1, keepdims=True)

    of = unit(validation)
    return map_microbatches(lambda part: jnp.matmul(unit(part), of.T, precision="highest"), train, microbatch=256)
