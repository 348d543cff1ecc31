"""Retraining under the recipe of a task, and the accuracies of retrained models over seeds: for all of this wing."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Key

from d3mjax.debiasing import d3m
from d3mjax.reports.rows import Kind, row
from d3mjax.types import AnyArray, Data, Sampler, Split
from experiments.study import Unit
from experiments.tasks import SHUFFLED, Task, spread


def retrain(
    task: Task,
    data: Data,
    model_keys: Key[Array, "r"],
    weights: Mapping[str, Float[AnyArray, "*r n"]],
    *,
    split: Split | None = None,
    sampler: Sampler = SHUFFLED,
) -> dict[str, d3m.Evaluation]:
    """`d3m.retrain_each` by the recipe of the task, on ``split`` or the training set."""
    num_groups, examples = len(task.group_names), data.train if split is None else split

    def fit(each, rows):
        recipe = (task.network(), task.trainer(task.steps, sampler), examples, data, rows, num_groups, task.steps)
        return d3m.retrain(each, *recipe, **spread())

    return d3m.retrain_each(fit, model_keys, weights)


def arrays_of(evaluations: Mapping[str, d3m.Evaluation]) -> dict[str, np.ndarray]:
    """Test accuracies as a unit stores them: ``test/<method> [r G]`` and ``average/<method> [r]``."""
    test = {f"test/{name}": np.asarray(evaluation.test) for name, evaluation in evaluations.items()}
    return test | {f"average/{name}": np.asarray(evaluation.average) for name, evaluation in evaluations.items()}


def worst(units: Sequence[Unit], method: str) -> Float[np.ndarray, "s"]:
    """Worst-group test accuracy of every seed, the mean over its retrained models."""
    return np.array([arrays[f"test/{method}"].min(-1).mean() for _, arrays in units])


def accuracies(units: Sequence[Unit], method: str) -> dict[str, Any]:
    """Worst-group and average test accuracy of every seed, as a row holds them."""
    average = [arrays[f"average/{method}"].mean() for _, arrays in units]
    return {"worst_group_accuracy": worst(units, method), "average_accuracy": average}


def gap_closed(
    values: Float[np.ndarray, "s"], plain: Float[np.ndarray, "s"], best: Sequence[Float[np.ndarray, "s"]]
) -> Float[np.ndarray, "s"]:
    """``(values - plain) / (best - plain)``, the divisor of means over seeds; NaN where it is not positive."""
    gap = max(each.mean() for each in best) - plain.mean()
    return (values - plain) / gap if gap > 0 else np.full(len(values), np.nan)


def by_group(units: Sequence[Unit], methods: Iterable[str]) -> dict[str, list[np.ndarray]]:
    """Test accuracy of every group ``[s G]`` by method, for `plots.bar_groups`."""
    return {method: [arrays[f"test/{method}"].mean(0) for _, arrays in units] for method in methods}


def row_of(task: str, method: str, per_seed: Mapping[str, Any], kind: Kind, **settings: Any) -> dict[str, Any]:
    """`rows.row` of a method of some kind."""
    return row(
        task, method, per_seed, role=kind.role, information=kind.information, settings=kind.settings() | settings
    )
