"""Counterfactuals: the predicted effect of removing training examples on one output, against that of retraining.

Claim:    predicted and actual changes of the margin correlate at 0.9 or more, over removals of 10 to 1,000 of 2,000.
Command:  python -m experiments counterfactuals
Expected: on patch a Pearson correlation of 0.908 ± 0.027 where the most helpful examples are removed.
Device:   two CPU cores, 42 minutes: a bank of models a task and seed, then some 6,000 retrainings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax import keys
from d3mjax.attribution import effects
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, row
from experiments.datamodels import banks
from experiments.datamodels.common import hard_margins
from experiments.study import Unit
from experiments.tasks import Task

KINDS = {
    "most helpful": Kind("ours"),
    "most harmful": Kind("ours"),
    "nearest by pixels": Kind("rival"),
    "random": Kind("control", controls="number"),
}
TARGETED = tuple(KINDS)[:3]  # removals that differ from target to target


@dataclass(frozen=True)
class Config(banks.Config):
    """What determines the numbers."""

    targets: int = 20  # whose outputs are changed, drawn at random
    counts: tuple[int, ...] = (10, 20, 40, 80, 160, 320, 640)  # examples removed
    repeats: int = 10  # retrainings behind each effect
    random_counts: tuple[int, ...] = (80, 160, 320, 640, 1000)
    random_sets: int = 4  # of each count, the same for all targets
    random_repeats: int = 100  # as random removals change little
    base: int = 50  # trainings on everything, from which effects are measured

    def counts_of(self, kind: str) -> tuple[int, ...]:
        """Numbers of examples removed."""
        return self.counts if kind in TARGETED else self.random_counts


def measure(task: Task, config: Config, fitted: Callable, retrain: Callable, seed: int, progress: Callable) -> Unit:
    """Predicted and actual effects ``[kinds t k]`` of removing the ``k`` first examples of each ranking."""
    bank, root = fitted(seed, progress), jax.random.key(seed)
    data, weight = bank.without_duplicates()
    pick = np.random.default_rng((seed, keys.Bank.DRAW)).choice(len(data.target.y), config.targets, replace=False)
    data = data._replace(target=jax.tree.map(lambda a: a[pick], data.target))
    tau = jnp.asarray(weight[pick])

    rankings = (tau, -tau, banks.cosines(data.target, data.train))
    removed = jnp.stack([effects.largest(scores, k) for scores in rankings for k in config.counts], 1)
    noise = jax.random.uniform(jax.random.fold_in(root, keys.Bank.DRAW), (config.random_sets, tau.shape[1]))
    common = jnp.concatenate([effects.largest(noise, k) for k in config.random_counts])

    def margins(family: int, kept, repeats: int) -> np.ndarray:
        key = jax.random.fold_in(root, family)
        return hard_margins(retrain(data, key, kept, repeats=repeats, progress=progress), data.target.y)

    base = margins(keys.Bank.BASE, np.ones((1, tau.shape[1])), config.base)[0].mean(0)
    targeted = margins(keys.Bank.RETRAIN, ~np.asarray(removed).reshape(-1, tau.shape[1]), config.repeats)
    # Of every model the one output that its removal was aimed at: [sets repeats t].
    targeted = np.diagonal(
        targeted.reshape(len(pick), -1, config.repeats, len(pick)), axis1=0, axis2=3
    )  # [sets repeats t]
    shared = margins(keys.Bank.RETRAIN, ~np.asarray(common), config.random_repeats)

    arrays = {"id": data.target.id}
    everywhere = jnp.broadcast_to(common, (len(pick), *common.shape))
    for name, sets, changes in (("own", removed, targeted - base), ("random", everywhere, shared - base)):
        arrays[f"predicted/{name}"] = effects.predicted_effects(tau, sets)
        arrays[f"actual/{name}"] = changes.mean(1).T
        arrays[f"noise/{name}"] = (changes.var(1, ddof=1) / changes.shape[1]).T  # variance of each mean
    return bank.facts, jax.device_get(arrays)


def by_kind(config: Config, arrays: Mapping[str, np.ndarray], what: str) -> dict[str, np.ndarray]:
    """Predicted or actual effects, or their noise, of every kind of removal: ``[t k]``, or ``[t sets k]``."""
    targeted = arrays[f"{what}/own"].reshape(-1, len(TARGETED), len(config.counts))
    random = arrays[f"{what}/random"].reshape(len(targeted), len(config.random_counts), config.random_sets)
    return {**{kind: targeted[:, i] for i, kind in enumerate(TARGETED)}, "random": random.transpose(0, 2, 1)}


def ceiling(actual: np.ndarray, noise: np.ndarray) -> float:
    """``sqrt(1 - noise / variance)``: the correlation of a perfect prediction with means of that noise variance."""
    return float(np.sqrt(max(1 - noise.mean() / actual.var(), 0)))


def describe(task: Task, config: Config, units: list[Unit]) -> tuple[list[dict[str, Any]], Section]:
    """One row a kind of removal, and scatter plots of the first seed."""
    rows, points = [], {}
    predicted, actual, noise = ([by_kind(config, a, w) for _, a in units] for w in ("predicted", "actual", "noise"))
    for name, kind in KINDS.items():
        agreements = [effects.agreement(p[name], a[name]) for p, a in zip(predicted, actual, strict=True)]
        per_seed = {what: [getattr(a, what) for a in agreements] for what in ("pearson", "spearman", "slope")}
        per_seed["ceiling"] = [ceiling(a[name], v[name]) for a, v in zip(actual, noise, strict=True)]
        counts = config.counts_of(name)
        settings = {"counts": counts, "heldout": [facts for facts, _ in units], **kind.settings()}
        rows.append(row(task.name, f"{name} removed", per_seed, role=kind.role, settings=settings))
        at = {k: (predicted[0][name][..., j].ravel(), actual[0][name][..., j].ravel()) for j, k in enumerate(counts)}
        points[name] = {str(k): at.get(k, ([], [])) for k in sorted({*config.counts, *config.random_counts})}
    caption = "Change of a target's margin, predicted and actual; colours: number of examples removed (first seed)."
    text = (
        f"{task.about} Each of {config.targets} targets has its own examples removed; the change of its margin is the "
        f"mean of {config.repeats} retrainings less that of {config.base} trainings on everything. Random removals are "
        f"the same for all targets, {config.random_sets} of each size with {config.random_repeats} retrainings. The "
        "ceiling is the correlation that the noise of these means leaves to a perfect prediction."
    )
    figure = plots.scatters(points, xlabel="predicted change of margin", ylabel="actual change")
    return rows, Section(text, {caption: figure})


def retrainings(config: Config) -> int:
    """Models trained beside those of the bank."""
    targeted = config.targets * len(TARGETED) * len(config.counts) * config.repeats
    return config.base + targeted + len(config.random_counts) * config.random_sets * config.random_repeats


STUDY = banks.study(
    "counterfactuals",
    measure,
    describe,
    claim="Predicted and actual changes of a margin correlate at about 0.9, over removals of 10 to 1,000 of 2,000.",
    config=Config(),
    minutes=42,
    headline=("patch", "most helpful removed", "pearson"),
    few={"targets": 3, "counts": (10, 100), "repeats": 2, "base": 4}
    | {"random_counts": (20, 100), "random_sets": 2, "random_repeats": 2},
    retrainings=retrainings,
)
