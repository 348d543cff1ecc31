"""TRAK: seconds against the public PyTorch library, agreement with its scores, and group scores of many examples."""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.attribution import gradients, projections, trak
from d3mjax.networks import dense
from d3mjax.types import Split
from experiments.bench.measuring import in_own_process, in_torch, peak, repeated, row, timed


@dataclass(frozen=True)
class Task:
    """The whole matrix of scores for one checkpoint of an MLP, with random inputs, labels and parameters."""

    n: int
    targets: int
    inputs: int
    hidden: int
    classes: int
    p: int
    rademacher_rows: int = 1000  # gradients at a time, the fastest of those tried, on each side
    sjlt_rows: int = 32
    sketch_rows: int = 500
    library_rows: tuple[int, ...] = (1000, 4000)
    repeats: int = 3

    @property
    def name(self) -> str:
        network = f"MLP {self.inputs}-{self.hidden}-{self.classes}"
        return f"TRAK, {network}, {self.n:,} examples, {self.targets:,} targets, p = {self.p:,}"


@dataclass(frozen=True)
class Groups:
    """Mean scores of all train examples over each group of targets; nothing of size n p or n d is kept."""

    n: int
    targets: int = 1000
    groups: int = 4
    inputs: int = 96
    hidden: int = 1000  # 99,002 parameters
    p: int = 64
    rows: int = 500


SPEED = (Task(4000, 1000, 784, 64, 10, 512), Task(4000, 1000, 784, 64, 10, 2048))
GROUPS = (Groups(100_000), Groups(300_000), Groups(1_000_000))
PARITY = {"n": 3000, "targets": 200, "inputs": 20, "hidden": 8, "classes": 5, "checkpoints": 3}


def bench(torch_python: Path, *, smoke: bool) -> list[dict[str, Any]]:
    """Rows of all three; without its environment the library is left out, with a note."""
    speed, groups, torch = SPEED, GROUPS, torch_python.exists()
    if smoke:
        # With p of 100 or less, one block of its projector, the library fails.
        speed = tuple(Task(256, 8, 12, 8, 3, p, 32, 16, 16, (64,), repeats=1) for p in (104, 128))
        groups = (Groups(256, 16, 2, 8, 4, 8, 128),)
    if not torch:
        print(f"{torch_python} is missing: no comparison with the TRAK library (make bench installs it)")
    with tempfile.TemporaryDirectory() as directory:
        rows = [row for task in speed for row in _speed(task, torch_python if torch else None, Path(directory))]
        rows += _parity(torch_python, Path(directory)) if torch else []
    return rows + [_groups(task) for task in groups]


def make_arrays(n: int, targets: int, inputs: int, hidden: int, classes: int, checkpoints: int = 1) -> dict[str, Any]:
    """What both sides attribute: arrays and the parameters of every checkpoint, in NumPy."""
    rng = np.random.default_rng(0)

    def normal(*shape, scale=1.0):
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    return {
        "x": normal(n, inputs),
        "y": rng.integers(classes, size=n, dtype=np.int32),
        "x_target": normal(targets, inputs),
        "y_target": rng.integers(classes, size=targets, dtype=np.int32),
        "w0": normal(checkpoints, inputs, hidden, scale=inputs**-0.5),
        "b0": normal(checkpoints, hidden, scale=0.1),
        "w1": normal(checkpoints, hidden, classes, scale=hidden**-0.5),
        "b1": normal(checkpoints, classes, scale=0.1),
    }


def as_ours(arrays: dict[str, Any], num_checkpoints: int = 1) -> tuple[Any, Split, Split]:
    """Checkpoints with a leading axis, and the two splits."""

    def layer(i):
        return {"kernel": jnp.asarray(arrays[f"w{i}"]), "bias": jnp.asarray(arrays[f"b{i}"])}

    def split(x, y):
        return Split(jnp.asarray(x), jnp.asarray(y), jnp.zeros(len(y), jnp.int32), jnp.arange(len(y)))

    checkpoints = {"params": {"Dense_0": layer(0), "Dense_1": layer(1)}}
    checkpoints = jax.tree.map(lambda a: a[:num_checkpoints], checkpoints)
    return checkpoints, split(arrays["x"], arrays["y"]), split(arrays["x_target"], arrays["y_target"])


def _speed(task, torch_python, directory):
    arrays = make_arrays(task.n, task.targets, task.inputs, task.hidden, task.classes)
    model, inputs = dense.mlp((task.hidden,), task.classes), as_ours(arrays)
    np.savez(directory / "speed.npz", **arrays)
    library, measured = [], []
    for batch in task.library_rows if torch_python else ():
        settings = {"p": task.p, "batch": batch, "repeats": task.repeats}
        library.append((f"PyTorch TRAK library, batch {batch}", _library(torch_python, "time", directory, settings)))
    best = min((np.mean(figures["seconds"]) for _, figures in library), default=np.nan)
    for name, make, microbatch in (
        ("Rademacher", projections.rademacher, task.rademacher_rows),
        ("SJLT", projections.sjlt, task.sjlt_rows),
        ("tensor sketch", projections.tensor_sketch, task.sketch_rows),
    ):
        options = trak.Options(make(task.p), microbatch=microbatch)
        attribute = jax.jit(lambda key, args, options=options: trak.scores(key, model, *args, options=options).tau)
        calls = repeated(partial(attribute, jax.random.key(0), inputs), task.repeats)
        figures = {name: [getattr(call, name) for call in calls] for name in ("seconds", "cpu_seconds")}
        if library:
            figures["ratio_to_library"] = [best / seconds for seconds in figures["seconds"]]
        settings = {**asdict(task), "microbatch": microbatch}
        measured.append(row(task.name, f"d3mjax, {name}", figures, settings=settings))
    for name, figures in library:
        settings = {name: figures[name] for name in ("torch", "traker", "threads")}
        figures = {name: figures[name] for name in ("seconds", "cpu_seconds", "peak_memory_mib")}
        measured.append(row(task.name, name, figures, role="rival", settings=settings))
    return measured


def _parity(torch_python, directory):
    """Correlation with the library's scores, without projection, from the same gradients in float32.

    Gradients of all parameters of a ReLU network always span less than they have dimensions (units can be rescaled,
    logits shifted), so without ridge the first layer is attributed alone; with a ridge, translated, all parameters.
    """
    arrays = make_arrays(**PARITY)
    model = dense.mlp((PARITY["hidden"],), PARITY["classes"])
    np.savez(directory / "parity.npz", **arrays)
    every, damping, rows = PARITY["checkpoints"], 0.01, []
    for name, num, first_layer, ridge in (
        ("one checkpoint, no ridge", 1, True, 0.0),
        (f"{every} checkpoints with library_scale, no ridge", every, True, 0.0),
        ("one checkpoint, all parameters, the same ridge", 1, False, damping),
    ):
        checkpoints, train, target = as_ours(arrays, num)
        keep = (lambda path: "Dense_0" in path) if first_layer else None
        options = trak.Options(projections.identity(), ridge, keep=keep, library_scale=num > 1)
        ours = trak.scores(jax.random.key(0), model, checkpoints, train, target, options=options).tau
        variables = jax.tree.map(lambda a: a[0], checkpoints)
        grads = gradients.per_example(gradients.margin_output(model, variables), variables["params"], train)
        d = sum(a[0].size for a in jax.tree.leaves(grads))
        # Ours is relative to the mean eigenvalue of the Gram matrix; theirs is added to that of gradients / sqrt(d).
        penalty = ridge * sum(float((a**2).sum()) for a in jax.tree.leaves(grads)) / d / d
        wrt = ["0.weight", "0.bias"] if first_layer else None
        out = directory / "parity.npy"
        settings = {"out": str(out), "checkpoints": num, "grad_wrt": wrt, "lambda_reg": penalty}
        _library(torch_python, "scores", directory, settings)
        a, b = np.asarray(ours, np.float64).T.ravel(), np.load(out).astype(np.float64).ravel()
        difference = np.linalg.norm(a - b * (a @ b) / (b @ b)) / np.linalg.norm(a)
        facts = {**PARITY, "damping": ridge, "lambda_reg": penalty, "keep": wrt}
        figures = {"correlation": np.corrcoef(a, b)[0, 1], "relative_difference_after_scaling": difference}
        rows.append(row("TRAK, agreement with the PyTorch library", name, figures, settings=facts))
    return rows


def _library(torch_python, mode, directory, settings):
    arrays = directory / ("speed.npz" if mode == "time" else "parity.npz")
    return in_torch(torch_python, "torch_trak.py", mode, str(arrays), json.dumps(settings))


def _groups(task):
    parameters = (task.inputs + 1) * task.hidden + (task.hidden + 1) * 2
    name = f"TRAK, {task.groups} groups of {task.targets:,} targets, {parameters:,} parameters, p = {task.p}"
    return row(name, f"d3mjax, group_scores, {task.n:,} examples", in_own_process("trak", task), settings=task)


def measure_groups(task: Groups) -> dict[str, float]:
    """Seconds, compilation left out, and the peak memory of this process."""
    checkpoints, train, target = as_ours(make_arrays(task.n, task.targets, task.inputs, task.hidden, 2))
    target = target._replace(group=target.id % task.groups)
    model, options = dense.mlp((task.hidden,), 2), trak.Options(projections.rademacher(task.p), microbatch=task.rows)

    @jax.jit
    def attribute(key, checkpoints, train, target):
        return trak.group_scores(key, model, checkpoints, train, target, task.groups, options=options).columns

    inputs = (jax.random.key(0), checkpoints, train, target)
    compiled = attribute.lower(*inputs).compile()
    run = timed(lambda: compiled(*inputs))
    return {"seconds": run.seconds, "cpu_seconds": run.cpu_seconds, **peak()}


if __name__ == "__main__":
    print(json.dumps(measure_groups(Groups(**json.loads(sys.argv[1])))))
