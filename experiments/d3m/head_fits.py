"""DFR and SMOTE on features: plain training, then another head on its frozen features, tuned like every method."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.data import splits
from d3mjax.debiasing import baselines, last_layer
from d3mjax.reports.rows import Kind
from d3mjax.runtime.hosts import models_at_once
from d3mjax.training import ensemble, objectives
from d3mjax.types import Data, Split
from experiments.d3m import smote
from experiments.d3m.tuned_methods import Judged, Outcome, Setting, judge, outcome, recipe
from experiments.tasks import SHUFFLED, Task, spread


def base_models(task: Task, data: Data, keys, setting: Setting) -> tuple[Any, list[np.ndarray]]:
    """Plain models ``[m]``: variables, and features of train, target and selection examples ``[m n p]``."""
    variables, features, losses = jax.device_get(_trained(data, keys, setting, task=task))
    ensemble.check_losses(losses, np.arange(len(losses)))
    return variables, features


@partial(jax.jit, static_argnames="task")
def _trained(data: Data, keys, setting: Setting, *, task: Task):
    model = task.network()

    def look(variables, data):
        path = last_layer.find(variables["params"], len(task.class_names))
        seen = (last_layer.features(model, variables, split.x, path, microbatch=500) for split in data[:3])
        return variables, list(seen)

    trainer = recipe(task, SHUFFLED, objectives.cross_entropy(), setting)
    weights = baselines.erm_weights(len(data.train.y))
    options = {"look": look, "shared": (data,), **spread(task)}
    (variables, features), losses = ensemble.train_many(trainer, keys, data.train, weights, task.steps, **options)
    return variables, features, losses


@partial(jax.jit, static_argnames=("task", "max_size"))
def _refitted(data: Data, variables, train_features, features, y, subsets, strengths, *, task: Task, max_size: int):
    num_classes = len(task.class_names)

    def one(variables, train_features, features, y, subsets):
        scale = last_layer.scale_of(train_features)
        standard = last_layer.standardise(features, scale)
        path = last_layer.find(variables["params"], num_classes)

        def at(strength):
            head = last_layer.average_fits(
                standard, y, num_classes, subsets, inverse_strength=strength, max_size=max_size
            )
            return judge(task, last_layer.with_head(variables, path, head, scale), data, {})

        return jax.lax.map(at, strengths)

    # On one device: products of this size use all cores, and two devices that do so can wait for each other.
    return ensemble.map_models(one, width=models_at_once())(variables, train_features, features, y, subsets)


Draw = Callable[..., tuple[Any, Any, Any]]
"""``(key, data, (train, target, selection) features, final) -> (features [k p], y [k], subsets [r k])``."""


class Method(NamedTuple):
    """Place of a head method in the table, and what it is fitted on while it is tuned and when it reports."""

    kind: Kind
    draw: Draw


def methods(task: Task) -> dict[str, Method]:
    """DFR on validation data, with a star as it *fits* validation groups, and on training data; SMOTE of features."""
    num_groups, yardstick = len(task.group_names), Kind("yardstick", "training groups")
    table = {
        "DFR on validation data *": Method(Kind("rival", "validation groups"), partial(_validation, num_groups)),
        "DFR on training data": Method(yardstick, partial(_train, num_groups)),
    }
    if task.image is not None:
        table["SMOTE"] = Method(yardstick, partial(_synthetic, len(task.class_names)))
    return table


def _validation(num_groups: int, key, data: Data, features, final: bool):
    """Targets while tuning, so that selection judges; both in the end, as the method prescribes."""
    rows: Split = splits.concatenate(data.target, data.selection)
    used = rows.group if final else data.target.group
    subsets = np.asarray(last_layer.balanced_subsets(key, used, num_groups, num_subsets=20))
    return np.concatenate(features[1:]), rows.y, np.pad(subsets, ((0, 0), (0, len(rows.y) - len(used))))


def _train(num_groups: int, key, data: Data, features, _final: bool):
    return features[0], data.train.y, last_layer.balanced_subsets(key, data.train.group, num_groups, num_subsets=10)


def _synthetic(num_classes: int, key, data: Data, features, _final: bool):
    cell = np.asarray(data.train.group) * num_classes + np.asarray(data.train.y)
    seen, cell = smote.oversample(features[0], cell, int(jax.random.bits(key)))
    return seen, (cell % num_classes).astype(np.int32), np.ones((1, len(cell)), np.float32)


def tuned(task: Task, method: Method, data: Data, bases, candidates: list[Setting]) -> Outcome:
    """Choose the strength on the selection split with one family of base models, judge with another.

    ``bases``: ``(keys [r], what base_models returned)`` of the family that selects and of the one that reports.
    """
    strengths = jnp.array([setting.inverse_strength for setting in candidates])

    def run(family: int) -> Judged:
        keys, (variables, features) = bases[family]
        each = [(jax.random.fold_in(k, 4), [np.asarray(a[j]) for a in features]) for j, k in enumerate(keys)]
        drawn = [method.draw(key, data, seen, bool(family)) for key, seen in each]
        rows = [np.stack([np.asarray(a) for a in parts]) for parts in zip(*drawn, strict=True)]
        largest = int(rows[-1].sum(-1).max())
        rounded = min(-(-largest // 64) * 64, rows[-1].shape[-1])  # so that few sizes are compiled
        return jax.device_get(_refitted(data, variables, features[0], *rows, strengths, task=task, max_size=rounded))

    tried, reported = run(0).evaluation, run(1)
    by_offsets = {False: tried.selection, True: tried.selection_with_offsets}
    worst_group = lambda offsets: np.asarray(by_offsets[offsets]).min(-1).mean(0)
    return outcome(candidates, worst_group, lambda position: jax.tree.map(lambda a: a[:, position], reported))
