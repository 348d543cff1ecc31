"""DFR and SMOTE on features: plain training, then another head on its frozen features, tuned like every method."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from d3mjax.data import splits
from d3mjax.debiasing import baselines, last_layer
from d3mjax.runtime.hosts import models_at_once
from d3mjax.training import ensemble, sampling
from d3mjax.types import Data, Split
from experiments.d3m import smote
from experiments.d3m.tuned_methods import Judged, Outcome, Setting, judge, plain, worst_group
from experiments.tasks import Task


class Programs(NamedTuple):
    """What heads need compiled: ``base(data, keys [m], setting)`` trains, ``refit`` fits every strength and judges."""

    base: Callable
    refit: Callable


def make_programs(task: Task, mesh: Mesh) -> Programs:
    """Compiled once for all seeds of a task."""
    model, num_classes = task.network(), len(task.class_names)

    @jax.jit
    def trained(data: Data, keys, setting: Setting):
        def one(key):
            weights = baselines.erm_weights(len(data.train.y))
            variables, losses, _ = plain(task, sampling.shuffled(), key, data.train, weights, setting)
            path = last_layer.find(variables["params"], num_classes)
            seen = [last_layer.features(model, variables, rows.x, path, microbatch=500) for rows in data[:3]]
            return variables, seen, losses

        return ensemble.map_models(one, width=models_at_once(), mesh=mesh)(keys)

    def base(data: Data, keys, setting: Setting):
        variables, seen, losses = jax.device_get(trained(data, keys, setting))
        ensemble.check_losses(losses, np.arange(len(losses)))
        return variables, seen

    @partial(jax.jit, static_argnames="max_size")
    def refit(data: Data, variables, train_features, features, y, subsets, strengths, max_size):
        def one(variables, train_features, features, y, subsets):
            scale = last_layer.scale_of(train_features)
            standard = last_layer.standardise(features, scale)

            def at(strength):
                head = last_layer.average_fits(
                    standard, y, num_classes, subsets, inverse_strength=strength, max_size=max_size
                )
                path = last_layer.find(variables["params"], num_classes)
                return judge(task, last_layer.with_head(variables, path, head, scale), data, {})

            return jax.lax.map(at, strengths)

        # On one device: products of this size use all cores, and two devices that do so can wait for each other.
        return ensemble.map_models(one, width=models_at_once())(variables, train_features, features, y, subsets)

    return Programs(base, refit)


Draw = Callable[..., tuple[Any, Any, Any]]
"""``(key, data, (train, target, selection) features, final) -> (features [k p], y [k], subsets [r k])``."""


class Method(NamedTuple):
    """What a head method needs to know, and what it is fitted on while it is tuned and when it reports."""

    information: str
    draw: Draw


def methods(task: Task) -> dict[str, Method]:
    """DFR on validation data, marked with a star as it *fits* validation groups, and on training data; SMOTE."""
    num_groups = len(task.group_names)
    found = {
        "DFR on validation data *": Method("validation groups", partial(_validation, num_groups)),
        "DFR on training data": Method("training groups", partial(_train, num_groups)),
    }
    if task.image is not None:
        found["SMOTE"] = Method("training groups", partial(_synthetic, len(task.class_names)))
    return found


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


def tuned(programs: Programs, method: Method, data: Data, bases, candidates: list[Setting]) -> Outcome:
    """Choose the strength on the selection split with one family of base models, judge with another.

    ``bases``: ``(keys [r], what Programs.base returned)`` of the family that selects and of the one that reports.
    """
    strengths = jnp.array([setting.inverse_strength for setting in candidates])

    def run(family: int) -> Judged:
        keys, (variables, features) = bases[family]
        each = [(jax.random.fold_in(k, 4), [np.asarray(a[j]) for a in features]) for j, k in enumerate(keys)]
        drawn = [method.draw(at, data, seen, bool(family)) for at, seen in each]
        rows = [np.stack([np.asarray(a) for a in parts]) for parts in zip(*drawn, strict=True)]
        largest = int(rows[-1].sum(-1).max())
        rounded = min(-(-largest // 64) * 64, rows[-1].shape[-1])  # so that few sizes are compiled
        return jax.device_get(programs.refit(data, variables, features[0], *rows, strengths, max_size=rounded))

    found = baselines.tune(candidates, lambda _: worst_group(run(0)).mean(0), budget=len(candidates))
    chosen = candidates[found.best]
    judged = jax.tree.map(lambda a: a[:, found.best], run(1))
    return Outcome(judged, chosen, float(found.scores[found.best]), None)
