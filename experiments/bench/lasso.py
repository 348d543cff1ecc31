"""LASSO paths of many targets against scikit-learn's, with the Gram matrix at hand, at equal objective."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import lasso_path

from d3mjax.linalg import lasso
from d3mjax.reports.rows import row
from d3mjax.runtime import runs


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

    begin = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        weights = np.stack(list(pool.map(theirs, range(task.sample))), axis=1)  # [n sample l]
    reference = (time.perf_counter() - begin) / task.sample
    best = objectives(z, centred, np.asarray(penalties)[:, : task.sample], weights)
    rows = [_row(task, "scikit-learn, Gram precomputed", {"seconds_per_target": reference}, "rival")]
    for label, dtype in (("float32", None), ("bfloat16 steps", jnp.bfloat16)):
        seconds, found = timed_path(moments, penalties, task, dtype)
        excess = objectives(z, centred, np.asarray(penalties)[:, : task.sample], found) / best - 1
        figures = {"seconds_per_target": seconds / task.targets, "ratio": reference * task.targets / seconds}
        rows.append(_row(task, f"d3mjax, {label}", {**figures, "largest_excess": max(0.0, float(excess.max()))}))
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

    run = jax.jit(lambda m, p: lasso.map_targets(norms, m, p, block=250))
    compiled = run.lower(moments, penalties.T).compile()
    jax.block_until_ready(compiled(moments, penalties.T))  # touches the memory
    begin = time.perf_counter()
    jax.block_until_ready(compiled(moments, penalties.T))
    seconds = time.perf_counter() - begin
    first = lambda a: a[: task.sample]
    part = moments._replace(
        cross=first(moments.cross), power=first(moments.power), target_mean=first(moments.target_mean)
    )
    weights = jax.jit(lambda m, p: lasso.path(m, p, look=lambda fit: fit.weight, options=options))(
        part, penalties[:, : task.sample]
    )
    return seconds, np.asarray(weights, np.float64).transpose(2, 1, 0)


def objectives(z, y, penalties, weights) -> np.ndarray:
    """``[sample l]`` in float64."""
    residual = y[:, :, None] - np.einsum("mn,ntl->mtl", z, weights, optimize=True)
    return (residual**2).mean(0) / 2 + penalties.T * np.abs(weights).sum(0)


def _row(task: Task, method: str, figures: dict[str, float], role: str = "ours") -> dict[str, Any]:
    measured = {name: [value] for name, value in {**figures, "peak_memory_mib": runs.peak_memory_mib()}.items()}
    return row(task.name, method, measured, role=role, settings=asdict(task))
