"""The linear datamodelling score (LDS): one truth, ceiling, interval and maker of rows for all studies of it.

The truth is the outputs of models trained on random halves of the training set, averaged over several trainings of each
half; no attribution sees those models.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax import keys, metrics
from d3mjax.attribution import outputs
from d3mjax.reports import plots, rows
from d3mjax.runtime import bank
from d3mjax.training import masks
from d3mjax.types import Data
from experiments.datamodels import banks
from experiments.tasks import Task

interval = jax.jit(partial(metrics.lds_interval, num_resamples=300))


class Truth(NamedTuple):
    """Half subsets and the outputs of the models trained on them."""

    masks: jax.Array  # Bool[m n]
    margins: np.ndarray  # Float[m r t], soft margins of r trainings of each subset

    @property
    def outputs(self) -> jax.Array:
        """Means over trainings, ``[m t]``."""
        return jnp.asarray(self.margins.mean(1))


def make_truth(task: Task, repeats: int, results: Path) -> Callable[..., Truth]:
    """``truth(data, seed, subsets, progress) -> Truth``, a bank in ``results/banks``, one for all studies."""
    fill = banks.make_bank(task, results / "banks", outputs.soft_margins)

    def truth(data: Data, seed: int, subsets: int, progress: Callable) -> Truth:
        key = jax.random.fold_in(jax.random.key(seed), keys.Lds.TRUTH)
        halves = partial(masks.fixed_size, num_keep=len(data.train.y) // 2)
        design = banks.Design(halves, {"share": 0.5}, repeats=repeats)
        filled, _ = fill(data, seed, key, design, subsets * repeats, progress)
        margins = bank.outputs(filled).reshape(subsets, repeats, -1)
        return Truth(jnp.asarray(bank.masks(filled)[::repeats]), margins)

    return truth


def score(key, tau, truth: Truth) -> tuple[list[float], np.ndarray]:
    """``[mean low high]``, the mean LDS with a 95 % interval over masks and targets; and the LDS ``[t]`` of targets."""
    predictions = metrics.subset_predictions(jnp.asarray(tau), truth.masks)
    lds = np.asarray(metrics.spearman(predictions.T, truth.outputs.T))
    return [float(np.nanmean(lds)), *map(float, interval(key, predictions, truth.outputs))], lds


def ceiling(margins: np.ndarray) -> float:
    """Correlation of the truth with its limit for endless trainings: ``sqrt(s r / (1 + (s - 1) r))``.

    r, the correlation over masks of two single trainings, comes from two halves of the s trainings (Spearman-Brown).
    """
    half = margins.shape[1] // 2
    a, b = margins[:, :half].mean(1), margins[:, half : 2 * half].mean(1)
    a, b = a - a.mean(0), b - b.mean(0)
    r = float(np.mean((a * b).sum(0) / np.sqrt((a**2).sum(0) * (b**2).sum(0))))
    single = r / (half - (half - 1) * r)
    return float(np.sqrt(max(margins.shape[1] * single / (1 + (margins.shape[1] - 1) * single), 0.0)))


def row(task: str, method: str, scores: Sequence[Sequence[float]], role: str, settings: dict) -> dict[str, Any]:
    """One row from what `score` gave for each seed, intervals among its settings."""
    intervals = {"intervals": [list(interval) for _, *interval in scores]}
    return rows.row(task, method, {"lds": [s[0] for s in scores]}, role=role, settings={**settings, **intervals})


def ceiling_row(task: str, per_seed: dict[str, list[float]], **settings: Any) -> dict[str, Any]:
    """The row of the correlation that retraining noise leaves to a perfect prediction."""
    return rows.row(task, "ceiling set by retraining noise", per_seed, role="ceiling", settings=settings)


def curve(x: Sequence[float], curves: Mapping[str, Sequence[str]], facts: list[dict], xlabel: str):
    """LDS against ``x``; ``curves``: label -> names of facts, one for each x. Bands are deviations over data seeds."""
    values = lambda names: np.array([[fact[name][0] for name in names] for fact in facts])
    lines = {label: (x, values(names)) for label, names in curves.items()}
    return plots.curves(lines, xlabel=xlabel, ylabel="LDS (mean over targets)")


def counted(checkpoints: int) -> str:
    """A number of checkpoints in words."""
    return f"{checkpoints} checkpoint{'s' * (checkpoints > 1)}"


def text(task: Task, config: Any, repeats: int) -> str:
    """Task and truth, for the page."""
    n = len(task.read(config.first_seed, smoke=config.smoke).train.y)
    return (
        f"{task.about} n = {n:,} training examples; truth: {config.subsets} half subsets, {repeats} trainings each, "
        "none of them used for attribution."
    )
