"""DFR, GSR, DPE, and SMOTE on features: plain training, then another head on its frozen features, tuned like all."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.data import splits
from d3mjax.debiasing import baselines, head_reweighting, last_layer, prototypes
from d3mjax.reports.rows import Kind
from d3mjax.runtime.hosts import models_at_once
from d3mjax.training import ensemble, objectives
from d3mjax.types import Data, Linear, Model, Split
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


class Rows(NamedTuple):
    """What a head is fitted to: examples by features and labels, and subsets of them as weights."""

    features: Any  # Float[k p]
    y: Any  # Int[k]
    subsets: Any  # Float[r k]


class Network(NamedTuple):
    """A trained network whose head is to be replaced."""

    task: Task
    key: Any
    variables: Any
    path: last_layer.Path
    scale: last_layer.Scale  # of its features

    def with_head(self, head: Linear) -> tuple[Model, Any]:
        """The network with a head on standardised features."""
        return self.task.network(), last_layer.with_head(self.variables, self.path, head, self.scale)


# Fits of one head: (network, data, rows, setting, largest size of a subset) -> (model, variables).
def fit_dfr(network: Network, _data: Data, rows: Rows, setting: Setting, max_size: int) -> tuple[Model, Any]:
    """The mean of fits to all subsets."""
    features = last_layer.standardise(rows.features, network.scale)
    options = {"inverse_strength": setting.inverse_strength, "max_size": max_size}
    num_classes = len(network.task.class_names)
    return network.with_head(last_layer.average_fits(features, rows.y, num_classes, rows.subsets, **options))


def fit_gsr(network: Network, data: Data, rows: Rows, setting: Setting, _max_size: int) -> tuple[Model, Any]:
    """Of train examples, which the rows hold before the targets; the share of the steps is that of the rounds."""
    n, features = len(data.train.y), last_layer.standardise(rows.features, network.scale)
    train, target = data.train._replace(x=features[:n]), data.target._replace(x=features[n:])
    sizes = len(network.task.class_names), len(network.task.group_names)
    found = head_reweighting.descend(train, target, *sizes, l2=1 / (setting.inverse_strength * n))
    last = jnp.round(setting.share * (len(found.weights) - 1)).astype(int)
    return network.with_head(jax.tree.map(lambda a: a[last], found.head))


def fit_dpe(network: Network, _data: Data, rows: Rows, setting: Setting, _max_size: int) -> tuple[Model, Any]:
    """One prototypical head a subset; the inverse strength is the weight of the penalty on likeness."""
    arguments = network.key, rows.features, rows.y, len(network.task.class_names), rows.subsets
    found = prototypes.fit(*arguments, diversity=setting.inverse_strength)
    return prototypes.on_features(network.task.network(), network.path), {**network.variables, "ensemble": found}


@partial(jax.jit, static_argnames=("task", "fit", "max_size"))
def _refitted(
    data: Data, keys, variables, train_features, rows: Rows, settings, *, task: Task, fit: Callable, max_size: int
):
    def one(key, variables, train_features, rows):
        path = last_layer.find(variables["params"], len(task.class_names))
        network = Network(task, key, variables, path, last_layer.scale_of(train_features))

        def at(setting):
            model, changed = fit(network, data, rows, setting, max_size)
            return judge(task, changed, data, {}, model=model)

        return jax.lax.map(at, settings)

    # On one device: products of this size use all cores, and two devices that do so can wait for each other.
    return ensemble.map_models(one, width=models_at_once())(keys, variables, train_features, rows)


Draw = Callable[..., Rows]
"""``(key, data, (train, target, selection) features, final) -> Rows``."""


class Method(NamedTuple):
    """Place of a head method in the table, what it is fitted on while it is tuned and when it reports, and its fit."""

    kind: Kind
    draw: Draw
    fit: Callable = fit_dfr
    uses: tuple[str, ...] = ("inverse_strength",)


def methods(task: Task) -> dict[str, Method]:
    """DFR and DPE on validation data, with a star as they *fit* validation groups; GSR, DFR and SMOTE on train data."""
    num_groups, yardstick = len(task.group_names), Kind("yardstick", "training groups")
    rival, of_validation = Kind("rival", "validation groups"), partial(_validation, num_groups)
    table = {
        "DFR on validation data *": Method(rival, of_validation),
        "DPE on validation data *": Method(rival, of_validation, fit_dpe),
        "GSR": Method(rival, _train_and_targets, fit_gsr, ("inverse_strength", "share")),
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
    return Rows(np.concatenate(features[1:]), rows.y, np.pad(subsets, ((0, 0), (0, len(rows.y) - len(used)))))


def _train_and_targets(_key, data: Data, features, _final: bool):
    rows: Split = splits.concatenate(data.train, data.target)
    return Rows(np.concatenate(features[:2]), rows.y, np.ones((1, len(rows.y)), np.float32))


def _train(num_groups: int, key, data: Data, features, _final: bool):
    subsets = last_layer.balanced_subsets(key, data.train.group, num_groups, num_subsets=10)
    return Rows(features[0], data.train.y, subsets)


def _synthetic(num_classes: int, key, data: Data, features, _final: bool):
    cell = np.asarray(data.train.group) * num_classes + np.asarray(data.train.y)
    seen, cell = smote.oversample(features[0], cell, int(jax.random.bits(key)))
    return Rows(seen, (cell % num_classes).astype(np.int32), np.ones((1, len(cell)), np.float32))


def tuned(task: Task, method: Method, data: Data, bases, candidates: list[Setting]) -> Outcome:
    """Choose the setting on the selection split with one family of base models, judge with another.

    ``bases``: ``(keys [r], what base_models returned)`` of the family that selects and of the one that reports.
    """
    settings = jax.tree.map(lambda *a: jnp.array(a), *candidates)

    def run(family: int) -> Judged:
        keys, (variables, features) = bases[family]
        each = [(jax.random.fold_in(k, 4), [np.asarray(a[j]) for a in features]) for j, k in enumerate(keys)]
        drawn = [method.draw(key, data, seen, bool(family)) for key, seen in each]
        rows = jax.tree.map(lambda *parts: np.stack([np.asarray(a) for a in parts]), *drawn)
        largest = int(rows.subsets.sum(-1).max())
        rounded = min(-(-largest // 64) * 64, rows.subsets.shape[-1])  # so that few sizes are compiled
        arrays = data, jnp.stack([key for key, _ in each]), variables, features[0], rows, settings
        return jax.device_get(_refitted(*arrays, task=task, fit=method.fit, max_size=rounded))

    tried, reported = run(0).evaluation, run(1)
    by_offsets = {False: tried.selection, True: tried.selection_with_offsets}
    worst_group = lambda offsets: np.asarray(by_offsets[offsets]).min(-1).mean(0)
    return outcome(candidates, worst_group, lambda position: jax.tree.map(lambda a: a[:, position], reported))
