"""Weights by descent: training weights that nobody loses, graded by exact derivatives through training.

Claim:    descent along metagradients raises D3M's soft weights while at most a tenth of the examples is emptied; where
          removal is free, removal closes as much of the gap.
Command:  python -m experiments weight_descent            (`--smoke` takes seconds)
Expected: gap closed by D3M's soft weights and after the descent: 0.81 and 0.89 on *patch*, 0.74 and 0.79 on
          *background*, 1.00 and 1.00 on *adult*; by the rule 0.97, 0.95 and 0.96.
Device:   two CPU cores, 10 minutes; any JAX device works.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.debiasing import baselines, d3m, last_layer, reweighting, selection
from d3mjax.keys import Descent, members
from d3mjax.reports import page, plots, sentences
from d3mjax.reports.rows import Kind
from d3mjax.runtime import hosts
from d3mjax.types import Data
from experiments.d3m.retraining import accuracies, arrays_of, gap_closed, retrain, row_of, worst
from experiments.study import Study, Unit
from experiments.tasks import RESAMPLED, SHUFFLED, SMALL_SOURCES, TASKS, Task, Trak, columns, train_models

SMALL = reweighting.Options(rounds=1, models=2)  # of smoke runs
OURS = Kind("ours", "validation groups")
SOFT, RULE, TENTH = "D3M, soft", "D3M, drop negative", "D3M, 10 % removed"
FROM_SOFT, FROM_ONES = "descent from D3M, soft", "descent from equal weights"
DRAWN = "D3M, soft, drawn by weight"
FURTHER = "twice the steps from D3M, soft, drawn by weight"
SAME_CLASS, ALONE = "its weights dealt out again in each class", "descent from D3M, soft, no neighbours"
KINDS = {
    "ERM": Kind("plain"),
    TENTH: OURS,
    RULE: OURS,
    SOFT: OURS,
    DRAWN: OURS,
    FROM_SOFT: OURS,
    FURTHER: OURS,
    FROM_ONES: OURS,
    ALONE: OURS,
    SAME_CLASS: Kind("control", "validation groups", "which examples"),
    "SUBG": Kind("yardstick", "training groups"),
    "RWG": Kind("yardstick", "training groups"),
}


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = ("adult", "patch", "background")
    seeds: int = 5
    first_seed: int = 10
    retrains: int = 3
    source: Trak = field(default_factory=Trak)
    descent: reweighting.Options = field(default_factory=reweighting.Options)
    smoothing: float = 0.2  # of the labels, in the trainings that are differentiated
    neighbours: int = 20
    networks: int = 4  # plain ones, in whose features neighbours are near
    smoke: bool = False


@partial(jax.jit, static_argnames="task")
def features_of(data: Data, keys, *, task: Task):
    """Features ``[n c*p]`` of train examples in plain networks, standardised in each."""

    def look(variables, train):
        path = last_layer.find(variables["params"], len(task.class_names))
        seen = last_layer.features(task.network(), variables, train.x, path, microbatch=500)
        return last_layer.standardise(seen, last_layer.scale_of(seen))

    ones = jnp.ones(len(data.train.y))
    features, _ = train_models(task, keys, data.train, ones, look, shared=(data.train,))
    return jnp.moveaxis(features, 0, 1).reshape(len(data.train.y), -1)


def measure(task: Task, config: Config, seed: int, progress: Callable[[int], object]) -> Unit:
    """Every set of weights on one split of one task."""
    data, root = task.read(seed, smoke=config.smoke), jax.random.key(seed)
    on_device, train = hosts.place(data, hosts.local_mesh()), data.train
    n, num_classes, num_groups = len(train.y), len(task.class_names), len(task.group_names)
    keys = {family: members(root, family, config.retrains) for family in (Descent.SCORE, Descent.REPORT)}
    losses = retrain(task, on_device, keys[Descent.SCORE], {"ERM": np.ones(n)})["ERM"].losses.mean(0)
    begin = time.perf_counter()
    made = columns(task, config.source, jax.random.fold_in(root, Descent.COLUMNS), on_device, progress=progress)
    scores = d3m.score(made.columns, losses, beta=task.beta).scores[0]
    seconds = {SOFT: time.perf_counter() - begin}
    soft = np.asarray(d3m.soft_candidate(scores), np.float32)
    rule, _ = selection.guard(scores, selection.drop_negative(scores), train.y, num_classes)
    weights = {"ERM": np.ones(n), TENTH: selection.drop_lowest(scores, n // 10), RULE: rule, SOFT: soft}

    features = np.asarray(features_of(on_device, members(root, Descent.FEATURES, config.networks), task=task))
    near = reweighting.nearest_of_class(features, train.y, count=config.neighbours)
    trainer = task.trainer(task.steps, SHUFFLED, smoothing=config.smoothing)
    problem = (task.network(), trainer, data.train, data.target, num_groups, task.steps)
    alone, ones = np.arange(n)[:, None], np.ones(n)
    starts = {FROM_SOFT: (soft, near, 1), FURTHER: (soft, near, 2), FROM_ONES: (ones, near, 2), ALONE: (soft, alone, 1)}
    for name, (start, neighbours, times) in starts.items():
        options = config.descent._replace(rounds=times * config.descent.rounds)
        key, begin = jax.random.fold_in(root, Descent.DESCENT), time.perf_counter()
        found = reweighting.descend(key, *problem, neighbours=neighbours, weights=start, options=options)
        weights[name] = np.asarray(found.weights[-1])
        seconds[name] = time.perf_counter() - begin
        progress(options.rounds * options.models)
    weights[SAME_CLASS] = dealt_again(weights[FROM_SOFT], train.y, np.random.default_rng(seed))
    balanced = jax.vmap(lambda key: baselines.subsample_balanced(key, jnp.asarray(train.group), num_groups))
    weights["SUBG"] = balanced(members(root, Descent.DRAW, config.retrains))
    drawn = {"RWG": baselines.balanced_weights(train.group, num_groups), FURTHER: weights.pop(FURTHER)}
    drawn[DRAWN] = soft
    results = retrain(task, on_device, keys[Descent.REPORT], weights)
    results |= retrain(task, on_device, keys[Descent.REPORT], drawn, sampler=RESAMPLED)
    facts = {name: {**sizes(rows), "seconds": seconds.get(name)} for name, rows in (weights | drawn).items()}
    arrays = {"group": train.group, "weights": weights[FROM_SOFT], "start": soft, **arrays_of(results)}
    return facts, {name: np.asarray(value) for name, value in arrays.items()}


def dealt_again(weights: np.ndarray, y, rng: np.random.Generator) -> np.ndarray:
    """The same weights within each class, in random order."""
    dealt = np.array(weights)
    for c in np.unique(y):
        dealt[np.asarray(y) == c] = rng.permutation(dealt[np.asarray(y) == c])
    return dealt


def sizes(rows) -> dict[str, float]:
    """Share of examples below a thousandth of the mean weight, and the effective sample ``(sum w)^2 / (n sum w^2)``."""
    first = np.atleast_2d(np.asarray(rows, np.float64))[0]
    return {
        "emptied": float((first < 1e-3 * first.mean()).mean()),
        "effective": float(first.sum() ** 2 / (first**2).sum() / len(first)),
    }


def describe(task: Task, config: Config, units: list[Unit]) -> tuple[list[dict[str, Any]], page.Section]:
    """Rows by kind of weights, and the weights of each group before and after the descent."""
    best, rows = [worst(units, "SUBG"), worst(units, "RWG")], []
    for name, kind in KINDS.items():
        values = accuracies(units, name)
        values["gap_closed"] = gap_closed(worst(units, name), worst(units, "ERM"), best)
        values |= {part: [facts[name][part] for facts, _ in units] for part in ("emptied", "effective")}
        if units[0][0][name]["seconds"] is not None:
            values["seconds"] = [facts[name]["seconds"] for facts, _ in units]
        rows.append(row_of(task.name, name, values, kind))
    text = (
        f"{task.about} Descent: {config.descent.rounds} steps from D3M's soft weights, twice as many from equal ones, "
        f"each by the derivative of {config.descent.models} trainings with smooth labels, averaged over "
        f"{config.neighbours} neighbours of the class. Models that report are trained with plain cross-entropy and the "
        "weights as weights of the loss, or of the draws where they are *drawn by weight* and in RWG. emptied: share "
        "of examples below a thousandth of the mean; effective: (sum w)^2 / (n sum w^2). Seconds include compilation "
        "once a task."
    )
    shares = {
        when: [np.bincount(a["group"], a[part], minlength=len(task.group_names)) / a[part].sum() for _, a in units]
        for when, part in (("D3M, soft", "start"), ("after the descent", "weights"))
    }
    figures = {
        "Share of the training weight of every group.": plots.bar_groups(
            shares, task.group_names, ylabel="share of the weight"
        )
    }
    pairs = [(FROM_SOFT, SOFT), (FROM_SOFT, RULE), (FURTHER, DRAWN), (FROM_SOFT, SAME_CLASS)]
    findings = sentences.comparisons(rows, pairs, metric="gap_closed", name="Gap closed")
    return rows, page.Section(text, figures, findings)


STUDY = Study(
    "weight_descent",
    claim="Descent along metagradients raises D3M's soft weights while at most a tenth of the examples is emptied; "
    "where removal is free, removal closes as much of the gap.",
    config=Config(),
    tasks=TASKS,
    prepare=lambda task, config, _results: partial(measure, task, config),
    describe=describe,
    minutes=10,
    headline=("patch", FROM_SOFT, "gap_closed"),
    smoke=lambda config: replace(
        config,
        seeds=2,
        retrains=2,
        networks=2,
        source=SMALL_SOURCES[Trak],
        descent=reweighting.Options(rounds=1, models=2),
    ),
    small=lambda task: replace(task, steps=50),
    models=lambda config: config.source.models + 6 * config.descent.rounds * config.descent.models,
)
