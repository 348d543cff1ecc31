"""D3M where labels are numbers, as the study `d3m` runs it on tasks without classes: errors instead of accuracies.

Class offsets, class weights, SUBY and removals matched by class are left out: a regression has no classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from d3mjax.debiasing import baselines, d3m, selection
from d3mjax.debiasing.sources import Bank
from d3mjax.keys import D3M, members
from d3mjax.reports import page, plots, sentences
from d3mjax.reports.rows import Kind
from d3mjax.runtime import hosts
from d3mjax.training import objectives
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Data, Model, Sampler, Trainer
from experiments.d3m.retraining import retrain, row_of
from experiments.study import Unit
from experiments.tasks import RESAMPLED, Influence, Task, Trak, columns

KINDS = {
    "ERM": Kind("plain"),
    "random removal": Kind("control", controls="number"),
    "largest losses removed": Kind("control", controls="loss"),
    "highest scores removed": Kind("control", "validation groups", "sign"),
    "RWG on the targets alone": Kind("control", "validation groups", "targets alone"),
    "D3M, drop negative": Kind("ours", "validation groups"),
    "D3M, 10 % removed": Kind("ours", "validation groups"),
    "D3M, by selection": Kind("ours", "validation groups"),
    "group-matched random removal": Kind("control", "training groups", "group balance"),
    "SUBG": Kind("yardstick", "training groups"),
    "RWG": Kind("yardstick", "training groups"),
    "GroupDRO": Kind("yardstick", "training groups"),
}
"""The methods of the table, in its order."""
ETAS = (0.001, 0.01, 0.1)  # of GroupDRO, the one of the best worst group on the selection split reports
METRICS = {
    "worst_group_rms_error": "test",
    "rms_error": "average",
    "worst_group_absolute_error": "test_absolute",
    "mean_absolute_error": "average_absolute",
}
"""Metrics of a row, in the unit of the labels, by the field of `regression.Errors`."""


def measure(
    task: Task,
    data: Data,
    seed: int,
    source: Trak | Bank | Influence,
    *,
    retrains: int,
    smoke: bool,
    beta: float | None,
    others: tuple[float, ...],
    progress: Callable[[int], object],
) -> Unit:
    """Every method on one split of a task: facts for JSON, and arrays in the unit of the labels."""
    on_device, train, root = hosts.place(data, hosts.local_mesh()), data.train, jax.random.key(seed)
    n, num_groups = len(train.y), len(task.group_names)
    keys = {family: members(root, family, retrains) for family in (D3M.SCORE, D3M.SELECT, D3M.REPORT)}
    plain: Any = retrain(task, on_device, keys[D3M.SCORE], {"ERM": np.ones(n)})["ERM"]
    losses = plain.losses.mean(0)
    made = columns(task, source, jax.random.fold_in(root, D3M.COLUMNS), on_device, others=others, progress=progress)
    scored = d3m.score(made.columns, losses, beta=task.beta if beta is None else beta)
    tried: dict[str, Any] = {"ERM": np.ones(n)}
    for reading, scores in zip(("D3M", *(f"D3M, damping {d:g}" for d in others)), scored.scores, strict=False):
        tried |= d3m.candidates(scores, train.y, None, name=reading, shares=task.shares)
        tried |= {f"{reading}, soft": d3m.soft_candidate(scores)}
    chosen = d3m.choose(retrain(task, on_device, keys[D3M.SELECT], tried), data.selection.group).name

    scores = scored.scores[0]
    rule, tenth = tried["D3M, drop negative"], selection.drop_lowest(scores, n // 10)
    count, draws = jnp.sum(~rule), members(root, D3M.DRAW, retrains)
    like = lambda cell, cells: jax.vmap(lambda key: selection.drop_random_like(key, rule, cell, cells))(draws)
    weights = {
        "ERM": np.ones(n),
        "random removal": like(jnp.zeros(n, jnp.int32), 1),
        "largest losses removed": selection.drop_lowest(-losses_of(task, on_device, root), count),
        "highest scores removed": selection.drop_lowest(-scores, count),
        "D3M, drop negative": rule,
        "D3M, 10 % removed": tenth,
        "D3M, by selection": tried[chosen],
        "group-matched random removal": like(train.group, num_groups),
        "SUBG": jax.vmap(lambda key: baselines.subsample_balanced(key, train.group, num_groups))(draws),
    }
    results: dict[str, Any] = dict(retrain(task, on_device, keys[D3M.REPORT], weights))
    for name, split in {"RWG": on_device.train, "RWG on the targets alone": on_device.target}.items():
        balanced = {name: baselines.balanced_weights(split.group, num_groups)}
        results |= retrain(task, on_device, keys[D3M.REPORT], balanced, split=split, sampler=RESAMPLED)
    results["GroupDRO"] = group_dro(task, on_device, keys)
    assert task.scale is not None
    unit = task.scale(seed, smoke=smoke).std
    facts = made.facts | {"chosen": chosen, "label_deviation": unit}
    facts |= {"removed": {name: 1 - float(np.mean(np.asarray(rows) > 0)) for name, rows in weights.items()}}
    arrays = {"id": train.id, "group": train.group, "score": scores, "kept": rule, "group_losses": losses}
    arrays |= {f"{part}/{name}": unit * getattr(e, part) for name, e in results.items() for part in METRICS.values()}
    return facts, {name: np.asarray(value) for name, value in arrays.items()}


def group_dro(task: Task, data: Data, keys: Any) -> Any:
    """Errors of GroupDRO at the eta that selection takes."""
    weights = {"GroupDRO": baselines.balanced_weights(data.train.group, len(task.group_names))}
    trained = lambda eta, family: retrain(by_group_dro(task, eta), data, keys[family], weights, sampler=RESAMPLED)
    tried: Any = {str(eta): trained(eta, D3M.SELECT)["GroupDRO"] for eta in ETAS}
    return trained(float(d3m.choose(tried, data.selection.group).name), D3M.REPORT)["GroupDRO"]


@cache
def by_group_dro(task: Task, eta: float) -> Task:
    """The task with GroupDRO on squared errors as its recipe; one object, so that its programs are compiled once."""
    return replace(task, make_trainer=partial(_group_dro_trainer, task, eta))


def _group_dro_trainer(task: Task, eta: float, model: Model, steps: int, sampler: Sampler) -> Trainer:
    objective = objectives.group_dro(len(task.group_names), eta=eta, loss=objectives.squared_errors)
    tx = task.optimizer(optax.linear_schedule(task.rate, 0.0, steps), task.decay)
    return make_trainer(model, objective, tx, sampler, batch_size=task.batch)


def losses_of(task: Task, data: Data, root: jax.Array) -> Any:
    """Loss of every training example, the mean over models of plain training: training examples as a test split."""
    itself = data._replace(test=data.train._replace(group=jnp.maximum(data.train.group, 0)))
    plain: Any = retrain(task, itself, members(root, D3M.SCORE, 2), {"ERM": np.ones(len(data.train.y))})["ERM"]
    return (plain.residuals**2).mean(0) / 2


def describe(task: Task, units: Sequence[Unit]) -> tuple[list[dict[str, Any]], page.Section]:
    """Rows of the methods, and the section of a task."""
    rows = []
    for name, kind in KINDS.items():
        of = lambda field, name=name: [arrays[f"{field}/{name}"] for _, arrays in units]
        worst = lambda field: field.startswith("test")
        values: dict[str, Any] = {
            metric: [(a.max(-1) if worst(field) else a).mean() for a in of(field)] for metric, field in METRICS.items()
        }
        values["removed"] = [facts["removed"].get(name) for facts, _ in units]
        rows.append(row_of(task.name, name, values, kind))
    methods = ("ERM", "D3M, drop negative", "D3M, by selection", "random removal", "RWG")
    bars = {name: [arrays[f"test/{name}"].mean(0) for _, arrays in units] for name in methods}
    drawn = {
        "Root mean square error of every group.": plots.bar_groups(
            bars, task.group_names, ylabel=f"root mean square error, {task.unit}", share=False
        ),
        "Scores of the training examples by group, which the method never uses (first seed).": plots.score_histogram(
            units[0][1]["score"], units[0][1]["group"], task.group_names
        ),
    }
    text = (
        f"{task.about} Errors are in {task.unit}: smaller is better. Random and highest removals, and those of the "
        "largest losses, take out as many examples as the rule. Numbers have no class offsets, class weights or SUBY."
    )
    against = ("ERM", "group-matched random removal", "RWG on the targets alone")
    pairs, title = (
        [("D3M, by selection", name) for name in against],
        f"Worst group, root mean square error, {task.unit}",
    )
    verdicts = sentences.comparisons(rows, pairs, metric="worst_group_rms_error", name=title)
    return rows, page.Section(text, drawn, verdicts)
