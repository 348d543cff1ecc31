"""One long training differentiated by three schemes: every state in memory, those of segments, or those on disk."""

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from d3mjax.attribution import gradients, metagradient, per_checkpoint
from d3mjax.runtime import long_metagradients
from experiments import tasks
from experiments.bench.measuring import in_own_process, peak, row, timed
from experiments.tasks import SHUFFLED


@dataclass(frozen=True)
class Task:
    """Metagradients of the mean margins of the four groups of *patch*, n = 2,000."""

    scheme: str
    steps: int = 10_000
    smoke: bool = False

    @property
    def name(self) -> str:
        return f"metagradient of {self.steps:,} steps, MLP 196-64-2 with momentum, 4 functions"


def bench(*, smoke: bool) -> list[dict[str, Any]]:
    """A training alone, then each scheme in a process of its own; ratios are to all states in memory."""
    small: dict[str, Any] = {"steps": 12, "smoke": True} if smoke else {}
    every = {scheme: Task(scheme, **small) for scheme in SCHEMES}
    figures = {scheme: in_own_process("replays", task) for scheme, task in every.items()}
    stored = figures["all states in memory"]
    rows = []
    for scheme, task in every.items():
        ratio = {"ratio": figures[scheme]["cpu_seconds"] / stored["cpu_seconds"]}
        role = "yardstick" if scheme == "training alone" else "ours"
        rows.append(row(task.name, scheme, figures[scheme] | ratio, role=role, settings=task))
    return rows


def measure(task: Task) -> dict[str, float]:
    """Seconds of the second call, peak memory of the process, and the largest number of the result."""
    recipe = replace(tasks.SMALL_PATCH, steps=task.steps)
    data = jax.tree.map(jnp.asarray, recipe.read(10, smoke=task.smoke))
    trainer, model, key = recipe.trainer(task.steps, SHUFFLED), recipe.network(), jax.random.key(0)
    mix, _ = per_checkpoint.group_mix(data.target.group, len(recipe.group_names))

    def grads(variables):
        output = gradients.margin_output(model, variables)
        of_params = gradients.weighted_gradients(output, variables["params"], mix, data.target)
        return {"params": of_params}

    compute = SCHEMES[task.scheme](key, trainer, data.train, task.steps, grads)
    compute()
    run = timed(compute)
    largest = float(np.abs(run.value).max())
    return {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds, "largest": largest, **peak()}


def alone(key, trainer, train, num_steps: int, grads: Callable) -> Callable:
    """The training that is differentiated."""
    ones = np.ones(len(train.y), np.float32)
    run = jax.jit(lambda key, train: metagradient.rerun(key, trainer, train, num_steps, ones)["params"])
    return lambda: ravel_pytree(run(key, train))[0]


def at_once(key, trainer, train, num_steps: int, grads: Callable, *, segments: int | None) -> Callable:
    """One program; ``segments`` as of `metagradient.Options`, None for the root of the number of steps."""
    options = metagradient.Options(segments=segments or round(num_steps**0.5))
    run = jax.jit(lambda key, train: metagradient.derivatives(key, trainer, train, num_steps, grads, options=options))
    return lambda: run(key, train)[0]


def on_disk(key, trainer, train, num_steps: int, grads: Callable) -> Callable:
    """`long_metagradients.derivatives` in a directory that is new at each call."""

    def run():
        state = trainer.init(key, train.x[:1])
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory) / "run"
            rows, _ = long_metagradients.derivatives(place, {}, trainer, state, train, num_steps, grads)
            return rows

    return run


SCHEMES: dict[str, Callable] = {
    "training alone": alone,
    "all states in memory": partial(at_once, segments=1),
    "segments in memory, the root of the number of steps": partial(at_once, segments=None),
    "segments on disk": on_disk,
}


if __name__ == "__main__":
    print(json.dumps(measure(Task(**json.loads(sys.argv[1])))))
