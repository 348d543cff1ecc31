"""Brittleness: how few training examples a prediction hangs on, estimated by datamodels and verified by retraining.

Claim:    the examples that datamodels name flip targets that as many random or look-alike examples do not; supports
          estimated with two halves of the models are large enough, those of one datamodel too small.
Command:  python -m experiments.brittleness        (`--config.smoke` takes seconds)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores; a bank of models a task and seed, then some 4,000 retrainings.
"""

from collections.abc import Callable
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
from d3mjax.types import Data
from experiments import study
from experiments.datamodels import bank_tasks
from experiments.datamodels.bank_tasks import BASE, DRAW, RETRAIN
from experiments.tasks import LDS_TASKS, Task

METHODS = ("datamodel, removed", "datamodel, relabelled", "nearest by pixels, removed", "random, removed")
KINDS = (Kind("ours"), Kind("ours"), Kind("rival"), Kind("control", controls="number"))


@dataclass(frozen=True)
class Config(bank_tasks.Config):
    """What determines the numbers."""

    targets: int = 30  # drawn among those that training on everything gets right
    counts: tuple[int, ...] = (10, 20, 40, 80, 160, 320)  # of the curve
    inflate: float = 1.2
    repeats: int = 5  # retrainings behind each verdict
    base: int = 50  # trainings on everything


def prepare(banks: Path, task: Task, config: Config) -> Callable:
    """`measure` of one task, compiled once for all seeds."""
    make = bank_tasks.make_datamodels(task, config.bank, banks, smoke=config.smoke)
    return partial(measure, config, make, bank_tasks.make_retrain(task))


def measure(config: Config, make: Callable, retrain: Callable, seed: int, progress: Callable) -> study.Unit:
    """Estimated supports of all targets, and whether some flip: at the estimates, and at fixed numbers of examples."""
    found, root = make(seed, progress), jax.random.key(seed)
    data, tau = bank_tasks.without_duplicates(found.data, found), jnp.asarray(found.real.weight)
    everything = np.ones((1, len(data.train.y)))
    base = retrain(data, jax.random.fold_in(root, BASE), everything, repeats=config.base, progress=progress)[0]
    margins = bank_tasks.margins_of(base, data.target.y).mean(0)
    halves, inflate = found.halves(), config.inflate
    estimates = [
        effects.crossed_support_sizes(halves, margins),
        effects.crossed_support_sizes(halves, margins, inflate=inflate),
        effects.support_sizes(tau, margins),
        effects.support_sizes(tau, margins, inflate=inflate),
    ]
    sizes = np.stack(estimates, 1)  # [t estimates]

    right = np.flatnonzero(margins > 0)
    pick = np.random.default_rng((seed, DRAW)).permutation(right)[: config.targets]
    data = data._replace(target=jax.tree.map(lambda a: a[pick], data.target))
    rival = effects.runner_up(base.mean(0)[pick], data.target.y)
    key = jax.random.fold_in(root, RETRAIN)
    verdicts = partial(flips, config, retrain, data, key, progress)
    at_size = [effects.largest(tau[pick], size) for size in sizes[pick].T]
    verified = verdicts(at_size) & (sizes[pick] > 0)

    noise = jax.random.uniform(jax.random.fold_in(root, DRAW), (len(pick), tau.shape[1]))
    cosine = bank_tasks.cosines(data.target, data.train)
    fixed = [[effects.largest(scores, k) for k in config.counts] for scores in (tau[pick], cosine, noise)]
    ours, pixels, chance = map(verdicts, fixed)
    curves = np.stack([ours, verdicts(fixed[0], rival), pixels, chance])  # [methods t k]
    arrays = {"id": data.target.id, "margins": margins, "sizes": sizes, "picked": pick, "verified": verified}
    return found.facts, jax.device_get({**arrays, "curves": curves})


def flips(config: Config, retrain: Callable, data: Data, key, progress: Callable, chosen, label=None) -> np.ndarray:
    """Whether each target's mean margin is negative ``[t k]`` without its chosen examples ``k x [t n]``.

    With a ``label [t]``, with the chosen examples relabelled instead.
    """
    chosen = np.stack(chosen, 1)  # [t k n]
    t, k, n = chosen.shape
    labels = None
    if label is not None:
        labels = np.stack([effects.relabelled(data.train.y, chosen[:, i], label) for i in range(k)], 1)
        labels = labels.reshape(-1, n)
    weights = np.ones((t * k, n)) if label is not None else ~chosen.reshape(-1, n)
    logits = retrain(data, key, weights, repeats=config.repeats, labels=labels, progress=progress)
    mean = bank_tasks.margins_of(logits, data.target.y).mean(1).reshape(t, k, t)
    return np.diagonal(mean, axis1=0, axis2=2).T < 0


def describe(task: Task, config: Config, found: list[study.Unit]) -> tuple[list[dict[str, Any]], Section]:
    """Rows of the estimates and of every method at every number of examples, and their curves."""
    arrays = [arrays for _, arrays in found]
    settings = {"heldout": [facts for facts, _ in found]}
    rows, inflated = [], f"x {config.inflate:g}"
    for i, name in enumerate(("support", f"support {inflated}", "support, not crossed", f"not crossed {inflated}")):
        sizes = [a["sizes"][a["picked"], i] for a in arrays]
        has = [s > 0 for s in sizes]
        per_seed = {
            "flipped, of those with a support": [mean(v["verified"][h, i]) for v, h in zip(arrays, has, strict=True)],
            "flipped, of all": [a["verified"][:, i].mean() for a in arrays],
            "with a support": [h.mean() for h in has],
            "median size": [mean(s[h], np.median) for s, h in zip(sizes, has, strict=True)],
        }
        rows.append(row(task.name, f"{name}, removed", per_seed, role="ours", settings=settings))
    for j, k in enumerate(config.counts):
        for i, method in enumerate(METHODS):
            flipped = {"flipped, of all": [a["curves"][i, :, j].mean() for a in arrays]}
            kind = KINDS[i]
            facts = {"role": kind.role, "settings": settings | kind.settings()}
            rows.append(row(task.name, f"{k} examples: {method}", flipped, **facts))
    lines = {m: (config.counts, np.stack([a["curves"][i].mean(0) for a in arrays])) for i, m in enumerate(METHODS)}
    figure = plots.curves(lines, xlabel="training examples removed or relabelled", ylabel="share of targets flipped")
    text = (
        f"{task.about} Targets: {config.targets} of those that training on everything gets right. A target is flipped "
        f"when its mean margin over {config.repeats} retrainings is negative. Relabelled examples get the class that "
        "comes second for the target. The estimate knows no support for a target whose positive weights do not add up "
        "to its margin."
    )
    return rows, Section(text, {"Targets flipped against the number of training examples touched.": figure})


def mean(values: np.ndarray, of: Callable = np.mean) -> float:
    """Their mean, or what ``of`` says; NaN of none."""
    return float(of(values)) if len(values) else float("nan")


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Measure all tasks, print a table for each, and write ``results/brittleness/<run>``; rerun to resume."""
    if config.smoke:
        config = replace(config, seeds=1, bank=bank_tasks.SMOKE, targets=3, counts=(20, 200), repeats=2, base=4)
    retrains = config.targets * (4 + len(METHODS) * len(config.counts)) * config.repeats
    models, go = config.bank.models + config.base + retrains, partial(prepare, results / "banks")
    return study.run_experiment(
        "brittleness", config, LDS_TASKS, go, describe, models=models, results=results, run=run, together=True
    )


if __name__ == "__main__":
    tyro.cli(main)
