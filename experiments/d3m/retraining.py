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
        return d3m.retrain(each, *recipe, **spread(task))

    return d3m.retrain_each(fit, model_keys, weights)


def arrays_of(evaluations: Mapping[str, d3m.Evaluation]) -> dict[str, np.ndarray]:
    """Test accuracies as a unit stores them, ``test/<method> [r G]`` and ``average/<method> [r]``, and with offsets."""
    parts = ("test", "average", "test_with_offsets", "average_with_offsets")
    return {f"{part}/{name}": np.asarray(getattr(e, part)) for name, e in evaluations.items() for part in parts}


def worst(units: Sequence[Unit], method: str, *, test: str = "test") -> Float[np.ndarray, "s"]:
    """Worst-group test accuracy of every seed, the mean over its retrained models."""
    return np.array([arrays[f"{test}/{method}"].min(-1).mean() for _, arrays in units])


def accuracies(units: Sequence[Unit], method: str) -> dict[str, Any]:
    """Worst-group and average test accuracy of every seed, as a row holds them."""
    average = [arrays[f"average/{method}"].mean() for _, arrays in units]
    return {"worst_group_accuracy": worst(units, method), "average_accuracy": average}


def accuracies_with_offsets(units: Sequence[Unit], method: str) -> dict[str, Any]:
    """`accuracies` of the same models with class offsets, under names of their own."""
    average = [arrays[f"average_with_offsets/{method}"].mean() for _, arrays in units]
    lowest = worst(units, method, test="test_with_offsets")
    return {"worst_group_with_offsets": lowest, "average_with_offsets": average}


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
