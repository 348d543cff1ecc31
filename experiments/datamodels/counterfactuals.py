"""Counterfactuals: datamodels say what removing training examples does to one output; retraining says whether so.

Claim:    predicted and actual changes of the margin correlate at 0.9 or more, over removals of 10 to 1,000 of 2,000.
Command:  python -m experiments.counterfactuals        (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores; a bank of models a task and seed, then some 6,000 retrainings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from d3mjax.attribution import effects
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, row
from experiments import study
from experiments.datamodels import bank_tasks
from experiments.datamodels.bank_tasks import BASE, DRAW, RETRAIN
from experiments.tasks import LDS_TASKS, Task

OWN = ("most helpful", "most harmful", "nearest by pixels")  # removals that differ from target to target
KINDS = (*OWN, "random")
ROLES = {"nearest by pixels": Kind("rival"), "random": Kind("control", controls="number")}  # ours elsewhere


@dataclass(frozen=True)
class Config(bank_tasks.Config):
    """What determines the numbers."""

    targets: int = 20  # whose outputs are changed, drawn at random
    counts: tuple[int, ...] = (10, 20, 40, 80, 160, 320, 640)  # examples removed
    repeats: int = 10  # retrainings behind each effect
    random_counts: tuple[int, ...] = (80, 160, 320, 640, 1000)
    random_sets: int = 4  # of each count, the same for all targets
    random_repeats: int = 100  # as random removals change little
    base: int = 50  # trainings on everything, from which effects are measured


def prepare(banks: Path, task: Task, config: Config) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    make = bank_tasks.make_datamodels(task, config.bank, banks, smoke=config.smoke)
    return partial(measure, config, make, bank_tasks.make_retrain(task))


def measure(config: Config, make: Callable, retrain: Callable, seed: int, progress: Callable) -> study.Unit:
    """Predicted and actual effects ``[kinds t k]`` of removing the ``k`` first examples of each ranking."""
    found, root = make(seed, progress), jax.random.key(seed)
    data = bank_tasks.without_duplicates(found.data, found)
    pick = np.random.default_rng((seed, DRAW)).choice(len(data.target.y), config.targets, replace=False)
    data = data._replace(target=jax.tree.map(lambda a: a[pick], data.target))
    tau = jnp.asarray(found.real.weight[pick])

    scores = dict(zip(OWN, (tau, -tau, bank_tasks.cosines(data.target, data.train)), strict=True))
    removed = jnp.stack([effects.largest(s, k) for s in scores.values() for k in config.counts], 1)
    noise = jax.random.uniform(jax.random.fold_in(root, DRAW), (config.random_sets, tau.shape[1]))
    common = jnp.concatenate([effects.largest(noise, k) for k in config.random_counts])
    chosen = {"own": removed, "random": jnp.broadcast_to(common, (len(pick), *common.shape))}
    predicted = {name: effects.predicted_effects(tau, sets) for name, sets in chosen.items()}

    everything = np.ones((1, len(data.train.y)))
    base = retrain(data, jax.random.fold_in(root, BASE), everything, repeats=config.base, progress=progress)
    base = bank_tasks.margins_of(base, data.target.y)[0].mean(0)
    again = partial(retrain, data, jax.random.fold_in(root, RETRAIN), progress=progress)
    weights = ~np.asarray(removed).reshape(-1, tau.shape[1])
    own = bank_tasks.margins_of(again(weights, repeats=config.repeats), data.target.y)
    # Of every model the one output that its removal was aimed at.
    own = np.diagonal(own.reshape(len(pick), -1, config.repeats, len(pick)), axis1=0, axis2=3)  # [sets repeats t]
    shared = bank_tasks.margins_of(again(~np.asarray(common), repeats=config.random_repeats), data.target.y)
    changes = {"own": own - base, "random": shared - base}

    arrays = {"id": data.target.id}
    for name, found_effects in changes.items():
        variance = found_effects.var(1, ddof=1) / found_effects.shape[1]  # of each mean
        arrays |= {f"predicted/{name}": predicted[name], f"actual/{name}": found_effects.mean(1).T}
        arrays[f"noise/{name}"] = variance.T
    return found.facts, jax.device_get(arrays)


def by_kind(config: Config, arrays: Mapping[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
    """Predicted or actual effects, or their noise, of every kind of removal: ``[t k]``, or ``[t sets k]``."""
    own = arrays[f"{what}/own"].reshape(-1, len(OWN), len(config.counts))
    random = arrays[f"{what}/random"].reshape(len(own), len(config.random_counts), config.random_sets)
    return {**{kind: own[:, i] for i, kind in enumerate(OWN)}, "random": random.transpose(0, 2, 1)}


def describe(task: Task, config: Config, found: list[study.Unit]) -> tuple[list[dict[str, Any]], Section]:
    """One row a kind of removal, and scatter plots of the first seed."""
    rows = []
    predicted, actual, noise = ([by_kind(config, a, w) for _, a in found] for w in ("predicted", "actual", "noise"))
    for kind in KINDS:
        agreements = [effects.agreement(p[kind], a[kind]) for p, a in zip(predicted, actual, strict=True)]
        per_seed = {
            "pearson": [a.pearson for a in agreements],
            "spearman": [a.spearman for a in agreements],
            "ceiling": [ceiling(a[kind], v[kind]) for a, v in zip(actual, noise, strict=True)],
            "slope": [a.slope for a in agreements],
        }
        settings = {"counts": counts_of(config, kind), "heldout": [facts for facts, _ in found]}
        place = ROLES.get(kind, Kind("ours"))
        facts = {"role": place.role, "settings": settings | place.settings()}
        rows.append(row(task.name, f"{kind} removed", per_seed, **facts))
    points = {}
    for kind in KINDS:
        at = {
            k: (predicted[0][kind][..., j].ravel(), actual[0][kind][..., j].ravel())
            for j, k in enumerate(counts_of(config, kind))
        }
        points[kind] = {str(k): at.get(k, ([], [])) for k in sorted({*config.counts, *config.random_counts})}
    caption = "Change of a target's margin, predicted and actual; colours: number of examples removed (first seed)."
    text = (
        f"{task.about} Each of {config.targets} targets has its own examples removed; the change of its margin is the "
        f"mean of {config.repeats} retrainings less that of {config.base} trainings on everything. Random removals are "
        f"the same for all targets, {config.random_sets} of each size with {config.random_repeats} retrainings. The "
        "ceiling is the correlation that the noise of these means leaves to a perfect prediction."
    )
    labels = {"xlabel": "predicted change of margin", "ylabel": "actual change"}
    return rows, Section(text, {caption: plots.scatters(points, **labels)})


def counts_of(config: Config, kind: str) -> tuple[int, ...]:
    """Numbers of examples removed."""
    return config.counts if kind in OWN else config.random_counts


def ceiling(actual: np.ndarray, noise: np.ndarray) -> float:
    """``sqrt(1 - noise / variance)``: the correlation of a perfect prediction with means of that noise variance."""
    return float(np.sqrt(max(1 - noise.mean() / actual.var(), 0)))


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all tasks, print a table for each, and write ``results/counterfactuals/<run>``; rerun to resume."""
    if config.smoke:
        config = replace(config, seeds=1, bank=bank_tasks.SMOKE, targets=3, counts=(10, 100), repeats=2, base=4)
        config = replace(config, random_counts=(20, 100), random_sets=2, random_repeats=2)
    models = config.bank.models + config.base + config.targets * len(OWN) * len(config.counts) * config.repeats
    models += len(config.random_counts) * config.random_sets * config.random_repeats
    go = partial(prepare, results / "banks")
    return study.run_experiment(
        "counterfactuals", config, LDS_TASKS, go, describe, models=models, results=results, run=run, together=True
    )


if __name__ == "__main__":
    tyro.cli(main)
