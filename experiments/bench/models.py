"""Training many small models, MLPs and CNNs: ours against a plain PyTorch loop and `torch.func.vmap`."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from d3mjax.attribution import outputs
from d3mjax.networks import conv, dense
from d3mjax.runtime import hosts
from d3mjax.runtime.hosts import models_at_once
from d3mjax.runtime.sweep import sweep
from d3mjax.training import masks, objectives, sampling
from d3mjax.training.ensemble import model_keys, train_many
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Model, Split
from experiments.bench.measuring import in_torch, peak, repeated, row, timed


@dataclass(frozen=True)
class Task:
    """A small network, its training recipe on random halves of the examples, and how much of it to time.

    Inputs are flat; with two entries of ``channels`` the network is a CNN on square images of ``colours``, otherwise
    an MLP of one ``hidden`` layer.
    """

    inputs: int
    hidden: int
    classes: int
    steps: int
    batch: int
    channels: tuple[int, ...] = ()
    colours: int = 1
    examples: int = 2000
    models: int = 500
    loop_models: int = 20
    widths: tuple[int, ...] = (16, 64, 256)
    repeats: int = 3

    @property
    def side(self) -> int:
        """Rows, and columns, of the image."""
        return math.isqrt(self.inputs // self.colours)

    @property
    def name(self) -> str:
        body = f"MLP {self.inputs}-{self.hidden}-{self.classes}"
        if self.channels:
            shape = [self.side, self.side, self.colours][: 2 + (self.colours > 1)]
            body = f"CNN {' x '.join(map(str, shape))}, channels {'-'.join(map(str, self.channels))}"
        return f"{body}, {self.steps} steps x {self.batch}"

    @property
    def flops(self) -> float:
        """Multiplications and additions of one training: forward, weight gradients, input gradients past layer 1."""
        layers = [self.inputs * self.hidden, self.hidden * self.classes]
        if self.channels:
            kept = [self.side // 2, self.side // 4]  # pixels a side that survive pooling; the others are not computed
            pixels = [(2 * k) ** 2 for k in kept]
            inputs = (self.colours, *self.channels)
            layers = [9 * i * o * p for i, o, p in zip(inputs, self.channels, pixels, strict=False)]
            layers.append(kept[-1] ** 2 * self.channels[-1] * self.classes)
        return 2.0 * self.steps * self.batch * (3 * sum(layers) - layers[0])


SIZES = (
    Task(196, 64, 2, 400, 50),
    Task(784, 64, 10, 200, 100, models=100, widths=(16, 64)),
    Task(196, 0, 2, 200, 50, channels=(16, 32), models=50, loop_models=4, widths=()),
    # That of the task cifar10.
    Task(192, 0, 10, 1000, 40, channels=(16, 32), colours=3, examples=10_000, models=50, loop_models=4, widths=()),
)


def network(task: Task) -> Model:
    """The task's network, with the convolution that is fastest on CPUs."""
    if task.channels:
        return conv.cnn(task.channels, task.classes, image=(task.side, task.side, task.colours))
    return dense.mlp((task.hidden,), task.classes)


def make_run(task: Task) -> Callable:
    """``run(ids) -> (outputs, losses)``: each model draws its subset, trains, and is evaluated on 200 examples."""
    rng = np.random.default_rng(0)
    n = task.examples
    x = rng.normal(size=(n, task.inputs)).astype(np.float32)
    split = Split(x, rng.integers(task.classes, size=n, dtype=np.int32), np.zeros(n, np.int32), np.arange(n))
    model = network(task)
    rate = optax.linear_schedule(0.05, 0.0, task.steps)
    tx = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(rate, momentum=0.9))
    trainer = make_trainer(model, objectives.cross_entropy(), tx, sampling.shuffled(), batch_size=task.batch)

    @jax.jit
    def run(key, split, ids):
        subsets = masks.fixed_size(jax.random.fold_in(key, 0), ids, n, n // 2).astype(jnp.float32)
        return train_many(
            trainer,
            model_keys(key, ids),
            split,
            subsets,
            task.steps,
            look=partial(outputs.logits, model),
            shared=(split.x[:200],),
            width=models_at_once(),
            mesh=hosts.local_mesh(),
        )

    return lambda ids: run(jax.random.key(0), split, ids)


def rates(task: Task, num_models: int) -> list[float]:
    """Models per second, one figure a repeat, after one warm-up that compiles."""
    run, block = make_run(task), max(50, models_at_once())
    sweep(run, np.arange(block), block=block)
    calls = [timed(lambda: sweep(run, np.arange(num_models), block=block)) for _ in range(task.repeats)]
    figures = [num_models / call.seconds for call in calls]
    print(f"{task.name}: {num_models} models at {np.mean(figures):.1f} a second", flush=True)
    return figures


def matmul_gflops(repeats: int = 10) -> float:
    """Rate of float32 matrix products on this machine, at JAX's default precision, over all cores."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size))
    product = jax.jit(lambda a: a @ a)
    seconds = sum(call.seconds for call in repeated(lambda: product(a), repeats))
    return repeats * 2 * size**3 / seconds / 1e9


def bench(torch_python: Path, *, smoke: bool) -> list[dict[str, Any]]:
    """Rows of all sizes; without its environment PyTorch is left out, with a note."""
    rows = []
    for task in SIZES:
        if models_at_once() > 1:
            task = replace(task, models=4 * models_at_once(), widths=task.widths and (64, models_at_once()))
        if smoke:
            task = replace(task, steps=4, models=100, loop_models=2, repeats=1, widths=task.widths and (2,))
        ours = rates(task, task.models)
        machine = matmul_gflops()
        settings = {**asdict(task), "at_once": models_at_once(), "machine_matmul_gflops": round(machine, 1)}
        figures = {**per_second(task, ours), **peak(), "gflops": task.flops * float(np.mean(ours)) / 1e9}
        rows.append(row(task.name, "d3mjax", figures, settings=settings))
        figures = {**per_second(task, rates(task, 4 * task.models)), **peak()}
        rows.append(row(task.name, "d3mjax, four times as many models", figures, settings=settings))
        if not torch_python.exists():
            print(f"{torch_python} is missing: no comparison with PyTorch (make bench installs it)")
            continue
        theirs = in_torch(torch_python, "torch_models.py", json.dumps(asdict(task)))
        settings, memory = {name: theirs[name] for name in ("torch", "threads")}, theirs["peak_memory_mib"]
        for name, rate in theirs["rates"].items():
            figures = {**per_second(task, rate), "peak_memory_mib": memory, "ratio": np.mean(ours) / np.mean(rate)}
            rows.append(row(task.name, name, figures, role="rival", settings=settings))
    return rows


def per_second(task: Task, models: list[float]) -> dict[str, list[float]]:
    """Models and steps a second."""
    return {"per_second": models, "steps_per_second": [task.steps * rate for rate in models]}
