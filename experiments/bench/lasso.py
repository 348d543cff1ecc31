"""LASSO paths of many targets against scikit-learn's, with the Gram matrix at hand, at equal objective."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import lasso_path

from d3mjax.linalg import lasso
from experiments.bench.measuring import peak, repeated, row, timed


@dataclass(frozen=True)
class Task:
    """Half subsets as rows, outputs of sparse heavy-tailed weights and noise; a whole path for every target."""

    rows: int = 5000
    columns: int = 2000
    targets: int = 1000
    penalties: int = 100
    smallest: float = 1e-3
    tolerance: float = 1e-4  # duality gap over mean(yc^2), scikit-learn's default, on both sides
    sample: int = 8  # targets that scikit-learn does
    noise: float = 0.7  # of the standard deviation of the signal

    @property
    def name(self) -> str:
        return f"LASSO, {self.rows:,} masks x {self.columns:,} examples, {self.penalties} penalties"


def bench(*, smoke: bool) -> list[dict[str, Any]]:
    """Seconds a target with the Gram matrix made beforehand on both sides; theirs takes one thread for each core."""
    task = Task(rows=80, columns=30, targets=6, penalties=10, sample=2) if smoke else Task()
    x, y = make_arrays(task)
    moments = jax.block_until_ready(jax.jit(lasso.moments)(x, y))
    penalties = lasso.penalties(moments, task.penalties, smallest=task.smallest)
    z = (x - np.asarray(moments.mean)) / np.asarray(moments.scale, np.float64)
    centred = (y - y.mean(0)).astype(np.float64)[:, : task.sample]
    gram, cross = z.T @ z, z.T @ centred

    def theirs(t):
        options: dict[str, Any] = {"alphas": np.asarray(penalties)[:, t], "tol": task.tolerance}
        options |= {"precompute": gram, "Xy": cross[:, t]}
        return lasso_path(z, centred[:, t], **options)[1]

    with ThreadPoolExecutor() as pool:
        paths = timed(lambda: list(pool.map(theirs, range(task.sample))))
    reference, sampled = paths.seconds / task.sample, np.asarray(penalties)[:, : task.sample]
    best = objectives(z, centred, sampled, np.stack(paths.value, axis=1))
    figures = {"seconds_per_target": reference, **peak()}
    rows = [row(task.name, "scikit-learn, Gram precomputed", figures, role="rival", settings=task)]
    for label, dtype in (("float32", None), ("bfloat16 steps", jnp.bfloat16)):
        seconds, weights = timed_path(moments, penalties, task, dtype)
        excess = objectives(z, centred, sampled, weights) / best - 1
        figures = {"seconds_per_target": seconds / task.targets, "ratio": reference * task.targets / seconds}
        figures |= {"largest_excess": max(0.0, float(excess.max())), **peak()}
        rows.append(row(task.name, f"d3mjax, {label}", figures, settings=task))
    return rows


def make_arrays(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Masks ``[rows columns]`` and outputs ``[rows targets]``."""
    rng = np.random.default_rng(0)
    x = np.argsort(rng.random((task.rows, task.columns)), axis=1) < task.columns // 2
    weight = rng.standard_t(2, (task.targets, task.columns)) * (rng.random((task.targets, task.columns)) < 0.1)
    signal = x.astype(np.float32) @ weight.T.astype(np.float32)
    return x, signal + (task.noise * signal.std(0) * rng.standard_normal(signal.shape)).astype(np.float32)


def timed_path(moments: lasso.Moments, penalties, task: Task, dtype) -> tuple[float, np.ndarray]:
    """Seconds of a path of all targets, compilation left out, and weights ``[n sample l]`` of the first of them."""
    options = lasso.Options(tolerance=task.tolerance, step_dtype=dtype)

    def norms(part, penalties):  # [b l] in and out
        return lasso.path(part, penalties.T, look=lambda fit: jnp.abs(fit.weight).sum(1), options=options).T

    path = jax.jit(lambda m, p: lasso.map_targets(norms, m, p, block=250))
    (run,) = repeated(lambda: path(moments, penalties.T), 1)
    of_targets = ("cross", "power", "target_mean")
    part = moments._replace(**{name: getattr(moments, name)[: task.sample] for name in of_targets})
    look = jax.jit(lambda m, p: lasso.path(m, p, look=lambda fit: fit.weight, options=options))
    weights = look(part, penalties[:, : task.sample])
    return run.seconds, np.asarray(weights, np.float64).transpose(2, 1, 0)


def objectives(z, y, penalties, weights) -> np.ndarray:
    """``[sample l]`` in float64."""
    residual = y[:, :, None] - np.einsum("mn,ntl->mtl", z, weights, optimize=True)
    return (residual**2).mean(0) / 2 + penalties.T * np.abs(weights).sum(0)
