"""Counterfactuals: datamodels say what removing training examples does to one output; retraining says whether so.

Claim:    predicted and actual changes of the margin correlate at 0.9 or more, over removals of 10 to 640 of 2,000.
Command:  python -m experiments.counterfactuals        (`--smoke` takes seconds)
Expected: patch, 5,000 models, 5 retrainings: Pearson .91 for the most helpful examples, .79 for the most harmful
          ones, whose effects are understated, .71 for random ones (retraining noise leaves .73 to be had).
Device:   two CPU cores; a bank of models a task and seed, then some 9,000 retrainings.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax.attribution import applications
from experiments import bank_tasks, plots, report, units
from experiments.bank_tasks import BASE, DRAW, RETRAIN
from experiments.tasks import LDS_TASKS, Task

KINDS = ("most helpful", "most harmful", "random", "nearest by pixels")


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("patch", "fashion")
    seeds: int = 1
    first_seed: int = 10
    bank: bank_tasks.Recipe = field(default_factory=bank_tasks.Recipe)
    targets: int = 30  # whose outputs are changed, drawn at random
    counts: tuple[int, ...] = (10, 20, 40, 80, 160, 320, 640)  # examples removed
    repeats: int = 10  # retrainings behind each effect
    base: int = 50  # trainings on everything, from which effects are measured
    smoke: bool = False


def prepare(banks: Path, task: Task, config: Config) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    make = bank_tasks.make_datamodels(task, config.bank, banks, smoke=config.smoke)
    return partial(measure, config, make, bank_tasks.make_retrain(task))


def measure(config: Config, make: Callable, retrain: Callable, seed: int, progress: Callable) -> units.Unit:
    """Predicted and actual effects ``[kinds t k]`` of removing the ``k`` first examples of each ranking."""
    found, root = make(seed, progress), jax.random.key(seed)
    data = bank_tasks.without_duplicates(found.data, found)
    pick = np.random.default_rng((seed, DRAW)).choice(len(data.target.y), config.targets, replace=False)
    data = data._replace(target=jax.tree.map(lambda a: a[pick], data.target))
    tau = jnp.asarray(found.real.weight[pick])

    noise = jax.random.uniform(jax.random.fold_in(root, DRAW), tau.shape)
    scores = dict(zip(KINDS, (tau, -tau, noise, bank_tasks.cosines(data.target, data.train)), strict=True))
    removed = jnp.stack([applications.largest(s, k) for s in scores.values() for k in config.counts], 1)
    predicted = applications.predicted_effects(tau, removed)

    everything = np.ones((1, len(data.train.y)))
    base = retrain(data, jax.random.fold_in(root, BASE), everything, repeats=config.base, progress=progress)
    weights = ~np.asarray(removed).reshape(-1, tau.shape[1])
    options = {"repeats": config.repeats, "progress": progress}
    logits = retrain(data, jax.random.fold_in(root, RETRAIN), weights, **options)
    # Of every model the one output that its removal was aimed at.
    own = bank_tasks.margins_of(logits, data.target.y).reshape(len(pick), -1, config.repeats, len(pick))
    own = np.moveaxis(np.diagonal(own, axis1=0, axis2=3), -1, 0)  # [t kinds*k repeats]
    effects = own - bank_tasks.margins_of(base, data.target.y)[0].mean(0)[:, None, None]

    shape = (len(pick), len(KINDS), len(config.counts))
    arrays = {"predicted": predicted.reshape(shape), "actual": effects.mean(-1).reshape(shape)}
    arrays["noise"] = (effects.var(-1, ddof=1) / config.repeats).reshape(shape)  # variance of each mean
    return found.facts, jax.device_get({"id": data.target.id, **arrays})


def describe(task: Task, config: Config, found: list[units.Unit]) -> tuple[list[dict[str, Any]], report.Section]:
    """One row a kind of removal, and scatter plots of the first seed."""
    rows = []
    for i, kind in enumerate(KINDS):
        agreements = [applications.agreement(a["predicted"][:, i], a["actual"][:, i]) for _, a in found]
        per_seed = {
            "pearson": [a.pearson for a in agreements],
            "spearman": [a.spearman for a in agreements],
            "ceiling": [ceiling(a["actual"][:, i], a["noise"][:, i]) for _, a in found],
            "slope": [a.slope for a in agreements],
        }
        settings = {"counts": config.counts, "heldout": [facts for facts, _ in found]}
        rows.append(report.row(task.name, f"{kind} removed", per_seed, settings=settings))
    arrays = found[0][1]
    points = {
        kind: {str(k): (arrays["predicted"][:, i, j], arrays["actual"][:, i, j]) for j, k in enumerate(config.counts)}
        for i, kind in enumerate(KINDS)
    }
    caption = "Change of a target's margin, predicted and actual; colours: number of examples removed (first seed)."
    text = (
        f"{task.about} Each of {config.targets} targets has its own examples removed; the change of its margin is the "
        f"mean of {config.repeats} retrainings less that of {config.base} trainings on everything. The ceiling is the "
        "correlation that the noise of these means leaves to a perfect prediction."
    )
    labels = {"xlabel": "predicted change of margin", "ylabel": "actual change"}
    return rows, report.Section(text, {caption: plots.scatters(points, **labels)})


def ceiling(actual: np.ndarray, noise: np.ndarray) -> float:
    """``sqrt(1 - noise / variance)``: the correlation of a perfect prediction with means of that noise variance."""
    return float(np.sqrt(max(1 - noise.mean() / actual.var(), 0)))


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all tasks, print a table for each, and write ``results/counterfactuals/<run>``; rerun to resume."""
    if config.smoke:
        config = replace(config, bank=bank_tasks.SMOKE, targets=3, counts=(10, 100), repeats=2, base=4)
    models = config.bank.models + config.base + config.targets * len(KINDS) * len(config.counts) * config.repeats
    go = partial(prepare, results / "banks")
    return units.run_experiment(
        "counterfactuals", config, LDS_TASKS, go, describe, models=models, results=results, run=run
    )


if __name__ == "__main__":
    tyro.cli(main)
