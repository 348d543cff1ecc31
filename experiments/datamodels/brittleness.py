"""Brittleness: how few training examples a prediction depends on, estimated by datamodels and verified by retraining.

Claim:    the examples that datamodels name flip targets that as many random or look-alike examples do not; supports
          estimated with two halves of the models are large enough, those of one datamodel too small.
Command:  python -m experiments brittleness
Expected: on fashion 0.50 of the targets flip without the 80 examples that datamodels name, 0.017 ± 0.024 without 80
          random ones. The rows of metagradients were added after the last full run.
Device:   two CPU cores, 20 minutes: a bank of models a task and seed, then some 5,000 retrainings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from d3mjax import keys, metrics
from d3mjax.attribution import effects, metagradient
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, row
from d3mjax.types import Data
from experiments.datamodels import banks
from experiments.datamodels.common import hard_margins
from experiments.datamodels.metagradient import make_metagradients
from experiments.study import Unit
from experiments.tasks import Task

KINDS = {
    "datamodel, removed": Kind("ours"),
    "datamodel, relabelled": Kind("ours"),
    "metagradient, removed": Kind("ours"),
    "nearest by pixels, removed": Kind("rival"),
    "random, removed": Kind("control", controls="number"),
}
interval = jax.jit(lambda values: metrics.bootstrap_interval(jax.random.key(0), values))


@dataclass(frozen=True)
class Config(banks.Config):
    """What determines the numbers."""

    targets: int = 30  # drawn among those that training on everything gets right
    counts: tuple[int, ...] = (10, 20, 40, 80, 160, 320)  # of the curve
    inflate: float = 1.2
    repeats: int = 5  # retrainings behind each verdict
    base: int = 50  # trainings on everything
    trainings: int = 5  # differentiated


def measure(task: Task, config: Config, fitted: Callable, retrain: Callable, seed: int, progress: Callable) -> Unit:
    """Estimated supports of all targets, and whether some flip: at the estimates, and at fixed numbers of examples."""
    bank, root = fitted(seed, progress), jax.random.key(seed)
    data, tau = bank.without_duplicates()
    everything, key = np.ones((1, tau.shape[1])), jax.random.fold_in(root, keys.Bank.BASE)
    base = retrain(data, key, everything, repeats=config.base, progress=progress)[0]
    margins = hard_margins(base, data.target.y).mean(0)
    halves = bank.halves()
    crossed, plain = partial(effects.crossed_support_sizes, halves), partial(effects.support_sizes, tau)
    sizes = [size(margins, inflate=inflate) for size in (crossed, plain) for inflate in (1.0, config.inflate)]
    sizes = np.stack(sizes, 1)  # [t estimates]

    right = np.flatnonzero(margins > 0)
    pick = np.random.default_rng((seed, keys.Bank.DRAW)).permutation(right)[: config.targets]
    data, tau = data._replace(target=jax.tree.map(lambda a: a[pick], data.target)), tau[pick]
    rival = effects.runner_up(base.mean(0)[pick], data.target.y)
    key = jax.random.fold_in(root, keys.Bank.RETRAIN)
    verdicts = partial(flips, config, retrain, data, key, progress)
    verified = verdicts([effects.largest(tau, size) for size in sizes[pick].T]) & (sizes[pick] > 0)

    noise = jax.random.uniform(jax.random.fold_in(root, keys.Bank.DRAW), tau.shape)
    own = keys.members(root, keys.Lds.CHECKPOINTS, config.trainings)
    exact, info = jax.device_get(make_metagradients(task)(data, own))
    metagradient.check(info)
    rankings = (tau, exact.mean(0), banks.cosines(data.target, data.train), noise)
    fixed = [[effects.largest(scores, k) for k in config.counts] for scores in rankings]
    ours, *others = map(verdicts, fixed)
    curves = np.stack([ours, verdicts(fixed[0], rival), *others])  # [methods t k]
    arrays = {"id": data.target.id, "margins": margins, "sizes": sizes, "picked": pick, "verified": verified}
    return bank.facts, jax.device_get({**arrays, "curves": curves})


def flips(config: Config, retrain: Callable, data: Data, key, progress: Callable, chosen, label=None) -> np.ndarray:
    """Whether each target's mean margin is negative ``[t k]`` without its chosen examples ``k x [t n]``.

    With a ``label [t]``, with the chosen examples relabelled instead.
    """
    chosen = np.stack(chosen, 1)  # [t k n]
    t, k, n = chosen.shape
    weights, labels = ~chosen.reshape(-1, n), None
    if label is not None:
        labels = [effects.relabelled(data.train.y, chosen[:, i], label) for i in range(k)]
        weights, labels = np.ones((t * k, n)), np.stack(labels, 1).reshape(-1, n)
    logits = retrain(data, key, weights, repeats=config.repeats, labels=labels, progress=progress)
    mean = hard_margins(logits, data.target.y).mean(1).reshape(t, k, t)
    return np.diagonal(mean, axis1=0, axis2=2).T < 0


def describe(task: Task, config: Config, units: list[Unit]) -> tuple[list[dict[str, Any]], Section]:
    """Rows of the estimates and of every method at every number of examples, and their curves."""
    arrays, rows, inflated = [arrays for _, arrays in units], [], f"x {config.inflate:g}"

    def add(method: str, flipped: list[np.ndarray], kind: Kind, **per_seed: Any):
        """A row from whether targets flipped, ``[t]`` of each seed."""
        settings = {
            "heldout": [facts for facts, _ in units],
            "interval": interval(np.concatenate(flipped).astype(np.float32)).tolist(),
        }
        per_seed["flipped, of all"] = [f.mean() for f in flipped]
        rows.append(row(task.name, method, per_seed, role=kind.role, settings={**settings, **kind.settings()}))

    for i, name in enumerate(("support", f"support {inflated}", "support, not crossed", f"not crossed {inflated}")):
        sizes = [a["sizes"][a["picked"], i] for a in arrays]
        verified, known = [a["verified"][:, i] for a in arrays], [s > 0 for s in sizes]
        per_seed = {
            "flipped, of those with a support": [mean(v[k]) for v, k in zip(verified, known, strict=True)],
            "with a support": [k.mean() for k in known],
            "median size": [mean(s[k], np.median) for s, k in zip(sizes, known, strict=True)],
        }
        add(f"{name}, removed", verified, Kind("ours"), **per_seed)
    for j, k in enumerate(config.counts):
        for i, (method, kind) in enumerate(KINDS.items()):
            add(f"{k} examples: {method}", [a["curves"][i, :, j] for a in arrays], kind)
    lines = {m: (config.counts, np.stack([a["curves"][i].mean(0) for a in arrays])) for i, m in enumerate(KINDS)}
    figure = plots.curves(lines, xlabel="training examples removed or relabelled", ylabel="share of targets flipped")
    text = (
        f"{task.about} Targets: {config.targets} of those that training on everything gets right. A target is flipped "
        f"when its mean margin over {config.repeats} retrainings is negative. Relabelled examples get the class that "
        f"comes second for the target. Metagradients are means over {config.trainings} trainings. The estimate knows "
        "no support for a target whose positive weights do not add up to its margin."
    )
    return rows, Section(text, {"Targets flipped against the number of training examples touched.": figure})


def mean(values: np.ndarray, average: Callable = np.mean) -> float:
    """Their mean, or another average; NaN of none."""
    return float(average(values)) if len(values) else float("nan")


STUDY = banks.study(
    "brittleness",
    measure,
    describe,
    claim="The examples that datamodels name flip predictions that as many random or look-alike examples do not.",
    config=Config(),
    minutes=20,
    headline=("fashion", "80 examples: datamodel, removed", "flipped, of all"),
    few={"targets": 3, "counts": (20, 200), "repeats": 2, "base": 4, "trainings": 2},
    retrainings=lambda config: config.base + config.targets * (4 + 5 * len(config.counts)) * config.repeats,
)
