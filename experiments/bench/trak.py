"""TRAK: seconds against the public PyTorch library, agreement with its scores, and group scores of many examples."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.attribution import gradients, projections, trak
from d3mjax.networks import dense
from d3mjax.reports.rows import row
from d3mjax.runtime import runs
from d3mjax.types import Split

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Task:
    """The whole matrix of scores for one checkpoint of an MLP; random inputs, labels and parameters will do."""

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
    """Rows of all three; the library is left out, and said so, where its environment is missing."""
    speed, groups, torch = SPEED, GROUPS, torch_python.exists()
    if smoke:
        speed = tuple(Task(64, 8, 12, 4, 3, p, 32, 16, 16, (64,), repeats=1) for p in (8, 16))
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


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of wall time and of all cores until the result is there."""
    begin, cpu = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return time.perf_counter() - begin, time.process_time() - cpu


def _speed(task, torch_python, directory):
    arrays = make_arrays(task.n, task.targets, task.inputs, task.hidden, task.classes)
    model, inputs = dense.mlp((task.hidden,), task.classes), as_ours(arrays)
    library, found = [], []
    for rows in task.library_rows if torch_python else ():
        np.savez(directory / "speed.npz", **arrays)
        settings = {"p": task.p, "batch": rows, "repeats": task.repeats}
        library.append((f"PyTorch TRAK library, batch {rows}", _library(torch_python, "time", directory, settings)))
    best = min((np.mean(figures["seconds"]) for _, figures in library), default=None)
    for name, make, rows in (
        ("Rademacher", projections.rademacher, task.rademacher_rows),
        ("SJLT", projections.sjlt, task.sjlt_rows),
        ("tensor sketch", projections.tensor_sketch, task.sketch_rows),
    ):
        options = trak.Options(make(task.p), microbatch=rows)
        attribute = jax.jit(lambda key, args, options=options: trak.scores(key, model, *args, options=options).tau)
        run = lambda attribute=attribute: attribute(jax.random.key(0), inputs)
        jax.block_until_ready(run())  # compiles, and touches the memory
        seconds, cpu = zip(*(timed(run) for _ in range(task.repeats)), strict=True)
        extra = {} if best is None else {"ratio_to_library": [best / s for s in seconds]}
        settings = {**asdict(task), "microbatch": rows}
        found.append(_row(task.name, f"d3mjax, {name}", settings, seconds=seconds, cpu_seconds=cpu, **extra))
    for name, figures in library:
        settings = {"torch": figures["torch"], "traker": figures["traker"], "threads": figures["threads"]}
        names = ("seconds", "cpu_seconds", "peak_memory_mib")
        found.append(_row(task.name, name, settings, "rival", **{key: np.atleast_1d(figures[key]) for key in names}))
    return found


def _parity(torch_python, directory):
    """Correlation with the library's scores, without projection, from the same gradients in float32.

    Gradients of all parameters of a ReLU network always span less than they have dimensions (units can be rescaled,
    logits shifted), so without ridge the first layer is attributed alone; with a ridge, translated, all parameters.
    """
    arrays = make_arrays(**PARITY)
    model = dense.mlp((PARITY["hidden"],), PARITY["classes"])
    np.savez(directory / "parity.npz", **arrays)
    every, damping, found = PARITY["checkpoints"], 0.01, []
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
        measured = {"correlation": [np.corrcoef(a, b)[0, 1]], "relative_difference_after_scaling": [difference]}
        found.append(_row("TRAK, agreement with the PyTorch library", name, facts, **measured))
    return found


def _library(torch_python, mode, directory, settings):
    arrays = directory / ("speed.npz" if mode == "time" else "parity.npz")
    command = [str(torch_python), "-P", str(Path(__file__).with_name("torch_trak.py")), mode, str(arrays)]
    done = subprocess.run([*command, json.dumps(settings)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _groups(task):
    """In a process of its own, so that the peak of its memory is its own."""
    command = [sys.executable, "-m", "experiments.bench.trak", json.dumps(asdict(task))]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    figures = {name: [value] for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
    parameters = (task.inputs + 1) * task.hidden + (task.hidden + 1) * 2
    name = f"TRAK, {task.groups} groups of {task.targets:,} targets, {parameters:,} parameters, p = {task.p}"
    return _row(name, f"d3mjax, group_scores, {task.n:,} examples", asdict(task), **figures)


def measure_groups(task: Groups) -> dict[str, float]:
    """Seconds, compilation left out, and the peak memory of this process."""
    arrays = make_arrays(task.n, task.targets, task.inputs, task.hidden, 2)
    checkpoints, train, target = as_ours(arrays)
    del arrays
    target = target._replace(group=target.id % task.groups)
    model, projection = dense.mlp((task.hidden,), 2), projections.rademacher(task.p)

    @jax.jit
    def attribute(key, checkpoints, train, target):
        options = trak.Options(projection, microbatch=task.rows)
        return trak.group_scores(key, model, checkpoints, train, target, task.groups, options=options).columns

    inputs = (jax.random.key(0), checkpoints, train, target)
    compiled = attribute.lower(*inputs).compile()
    seconds, cpu = timed(lambda: compiled(*inputs))
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_memory_mib": runs.peak_memory_mib()}


def _row(task: str, method: str, settings, role: str = "ours", **figures) -> dict[str, Any]:
    return row(task, method, figures, role=role, settings=settings)


if __name__ == "__main__":
    print(json.dumps(measure_groups(Groups(**json.loads(sys.argv[1])))))
