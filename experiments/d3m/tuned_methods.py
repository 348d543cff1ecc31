"""The methods that D3M stands beside, each tuned with one budget by the rule that its information allows.

Every method sees the same draws of the training recipe, the default first; choices are made on the selection split,
by worst-class accuracy where no group label may be used and by worst-group accuracy elsewhere.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from d3mjax import metrics
from d3mjax.attribution import outputs
from d3mjax.data import splits
from d3mjax.data.sets import adult
from d3mjax.debiasing import baselines
from d3mjax.runtime.hosts import local_mesh, models_at_once, place
from d3mjax.training import ensemble, masks, objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Data, Objective, Sampler, Split
from experiments.d3m import engine, smote
from experiments.tasks import Task

CATEGORICAL = {"adult": [s for s in adult.COLUMNS.values() if s.stop - s.start > 1]}  # one-hot columns of a task


class Setting(NamedTuple):
    """Everything that is tuned; a method uses some of it. Numbers here, arrays ``[m]`` where there are many models."""

    rate: Any
    decay: Any
    share: Any  # of the task's steps, over which the rate falls to zero
    eta: Any = 0.01  # GroupDRO: step size of the group weights
    up: Any = 20.0  # JTT: further copies of each error
    first: Any = 0.25  # JTT: share of the task's steps that the identification model gets
    mass: Any = 0.5  # train and targets together: weight of the targets
    inverse_strength: Any = 1.0  # heads: C of the L1 penalty


RECIPE = ("rate", "decay", "share")


def settings(task: Task, budget: int) -> list[Setting]:
    """``budget`` settings, the default first, the same for all methods and seeds: log-uniform around the defaults."""
    draw = np.random.default_rng(0)
    found = [Setting(task.rate, task.decay, 1.0)]
    for _ in range(budget - 1):
        rate, decay, eta = (
            task.rate * 10 ** draw.uniform(-1, 0.3),
            10 ** draw.uniform(-4, -1),
            10 ** draw.uniform(-3, 0),
        )
        share, up = draw.choice([0.1, 0.25, 0.5, 1.0]), draw.choice([4.0, 5.0, 6.0, 20.0, 50.0, 100.0])
        first, mass, eta = draw.choice([0.05, 0.1, 0.25, 0.5, 1.0]), draw.uniform(0.1, 0.9), 10 ** draw.uniform(-3, 0)
        found.append(Setting(*map(float, (rate, decay, share, eta, up, first, mass, 10 ** draw.uniform(-2, 0)))))
    return found


class Judged(NamedTuple):
    """One model's evaluation, its selection accuracy by class, and what the method says about itself."""

    evaluation: engine.Evaluation
    classes: Float[Array, "C"]
    notes: dict[str, Array]


def worst_group(judged: Judged) -> Float[np.ndarray, "m"]:
    """For methods that may use the groups of the selection split."""
    return np.asarray(judged.evaluation.selection).min(-1)


def worst_class(judged: Judged) -> Float[np.ndarray, "m"]:
    """For methods without any group label (Yang et al., 2023)."""
    return np.asarray(judged.classes).min(-1)


def judge(task: Task, variables: Any, data: Data, notes: dict[str, Array]) -> Judged:
    """`engine.evaluate` and the accuracy of each class on the selection split."""
    right = outputs.hard_margins(task.network(), variables, data.selection, microbatch=4096) > 0
    classes = metrics.group_means(right, data.selection.y, len(task.class_names))
    return Judged(engine.evaluate(task, variables, data), classes, notes)


def descend(task: Task, sampler: Sampler, objective: Objective, key, split: Split, weights, setting: Setting):
    """Variables and losses of one training; the recipe may be traced, as steps past the share have rate zero."""
    length = setting.share * task.steps
    rate = lambda step: setting.rate * jnp.maximum(1 - step / length, 0.0)
    tx = optax.chain(optax.add_decayed_weights(setting.decay), optax.sgd(rate, task.momentum))
    run = make_trainer(task.network(), objective, tx, sampler, batch_size=task.batch)
    state, info = run.run(run.init(key, split.x[:1]), split, weights, task.steps)
    return state.variables, info.loss


def plain(task: Task, sampler: Sampler, key, split: Split, weights, setting: Setting):
    """Cross-entropy under weights."""
    return *descend(task, sampler, objectives.cross_entropy(), key, split, weights, setting), {}


def group_dro(task: Task, key, split: Split, weights, setting: Setting):
    """GroupDRO on resampled groups."""
    objective = objectives.group_dro(len(task.group_names), eta=setting.eta)
    return *descend(task, sampling.resampled(), objective, key, split, weights, setting), {}


def jtt(task: Task, key, split: Split, weights, setting: Setting):
    """Train, find the errors, train again on more copies of them; says how many and whom it found."""
    model, short = task.network(), setting._replace(share=setting.first)
    scout, losses, _ = plain(task, sampling.shuffled(), jax.random.fold_in(key, 2), split, weights, short)
    errors = (outputs.hard_margins(model, scout, split, microbatch=4096) <= 0) & (weights > 0)
    size = jnp.zeros(len(task.group_names)).at[split.group].add(weights > 0)
    minority = (size < size.mean())[split.group] & (weights > 0)
    both = (errors & minority).sum()
    notes = {"errors": errors.sum(), "precision": both / errors.sum(), "recall": both / minority.sum()}
    up = weights * baselines.jtt_weights(errors, setting.up)
    variables, later, _ = plain(task, sampling.resampled(), key, split, up, setting)
    return variables, jnp.concatenate([losses, later]), notes


def compiled(task: Task, mesh: Mesh, fit: Callable) -> Callable:
    """``run(split, data, keys [m], weights [m n], settings [m]) -> Judged [m]`` from the fit of one model."""

    @jax.jit
    def many(split: Split, data: Data, keys, weights, setting):
        def one(split, data, key, weight, at):
            variables, losses, notes = fit(key, split, weight, at)
            return judge(task, variables, data, notes), losses

        return ensemble.map_models(one, width=models_at_once(), mesh=mesh, shared=(split, data))(keys, weights, setting)

    def run(split: Split, data: Data, keys, weights, setting: Setting) -> Judged:
        masks.check_weights(np.asarray(weights), split.y)
        judged, losses = jax.device_get(many(split, data, keys, jnp.asarray(weights, jnp.float32), setting))
        ensemble.check_losses(losses, np.arange(len(losses)))
        return judged

    return run


class Method(NamedTuple):
    """What a method needs to know, how it is chosen, what it tunes, and how it trains."""

    information: str
    rule: Callable[[Judged], np.ndarray]
    uses: tuple[str, ...]
    weights: Callable[[Any, Data, Setting], Any]  # (key, data, setting) -> [pool], 0 for what is not used; None: ones
    run: Callable[..., Judged]
    pool: Callable[[Any, Data], Split] = lambda _key, data: splits.concatenate(data.train, data.target)


def methods(task: Task, mesh: Mesh) -> dict[str, Method]:
    """Everything that trains a whole network, in the order of the table; SMOTE only where inputs are no images.

    All draw from one pool of train and target examples, so that a way of training is compiled once.
    """
    num_classes, num_groups = len(task.class_names), len(task.group_names)
    erm = partial(plain, task, sampling.shuffled())
    shuffled, resampled = compiled(task, mesh, erm), compiled(task, mesh, partial(plain, task, sampling.resampled()))
    dro, twice = compiled(task, mesh, partial(group_dro, task)), compiled(task, mesh, partial(jtt, task))

    def part(name: str, weigh: Callable):
        """Weights ``weigh(key, rows)`` of one split of the pool, told apart by ``name``."""
        return lambda key, data, _setting: _padded(data, name, weigh(key, getattr(data, name)))

    ones = part("train", lambda _key, rows: baselines.erm_weights(len(rows.y)))
    by_class = part("train", lambda _key, rows: baselines.balanced_weights(rows.y, num_classes))
    by_group = part("train", lambda _key, rows: baselines.balanced_weights(rows.group, num_groups))
    alone = part("target", lambda _key, rows: baselines.balanced_weights(rows.group, num_groups))
    class_part = part("train", lambda key, rows: baselines.subsample_balanced(key, rows.y, num_classes))
    group_part = part("train", lambda key, rows: baselines.subsample_balanced(key, rows.group, num_groups))

    none = partial(Method, "none", worst_class, RECIPE)
    validation = partial(Method, "validation groups", worst_group)
    oracle = partial(Method, "training groups", worst_group)
    found = {
        "ERM, tuned without groups": none(ones, shuffled),
        "RWY": none(by_class, resampled),
        "SUBY": none(class_part, shuffled),
        "ERM, tuned with groups": validation(RECIPE, ones, shuffled),
        "RWG on the targets alone": validation(RECIPE, alone, resampled),
        "train and targets together": validation((*RECIPE, "mass"), partial(_mixed, num_groups), resampled),
        "JTT": validation((*RECIPE, "up", "first"), ones, twice),
        "SUBG": oracle(RECIPE, group_part, shuffled),
        "RWG": oracle(RECIPE, by_group, resampled),
        "GroupDRO": oracle((*RECIPE, "eta"), by_group, dro),
    }
    if task.image is None:
        drawn = lambda _key, _data, _setting: None
        found["SMOTE"] = oracle(RECIPE, drawn, shuffled, partial(_synthetic, task))
    return found


def _padded(data: Data, name: str, weights):
    parts = {"train": np.zeros(len(data.train.y)), "target": np.zeros(len(data.target.y)), name: np.asarray(weights)}
    return np.concatenate([parts["train"], parts["target"]])


def _mixed(num_groups: int, _key, data: Data, setting: Setting):
    n, group = len(data.train.y), np.concatenate([data.train.group, data.target.group])
    return baselines.mixed_weights(np.arange(len(group)) >= n, group, num_groups, setting.mass)


def _synthetic(task: Task, key, data: Data) -> Split:
    rows, num_classes = data.train, len(task.class_names)
    cell = np.asarray(rows.group) * num_classes + np.asarray(rows.y)  # labels are never interpolated
    seed = int(jax.random.bits(key))
    x, cell = smote.oversample(rows.x, cell, seed, categorical=CATEGORICAL.get(task.name, ()))
    group, y = np.divmod(cell.astype(np.int32), num_classes)
    return Split(x, y, group, np.arange(len(y), dtype=np.int32))


class Outcome(NamedTuple):
    """The reported models ``[r]``, the setting behind them, its selection score, and the share of train left out."""

    judged: Judged
    setting: Setting
    score: float
    removed: float | None  # None where the training set is not what is trained on


def tuned(method: Method, data: Data, key, select_keys, report_keys, candidates: list[Setting]) -> Outcome:
    """Choose a setting with the models of one family of keys ``[r]``, and judge it with those of another."""
    pool = method.pool(key, data)
    here = place((pool, data), local_mesh())  # once for all settings

    def run(keys, setting):
        drawn = [method.weights(jax.random.fold_in(k, 3), data, setting) for k in keys]
        weights = np.stack([np.ones(len(pool.y)) if w is None else np.asarray(w) for w in drawn])
        at = jax.tree.map(lambda a: jnp.full(len(keys), a), setting)
        return method.run(*here, keys, weights, at), weights[:, : len(data.train.y)]

    evaluate = lambda tried: [float(method.rule(run(select_keys, setting)[0]).mean()) for setting in tried]
    found = baselines.tune(candidates, evaluate, budget=len(candidates))
    judged, weights = run(report_keys, candidates[found.best])
    removed = float(np.mean(weights == 0)) if weights.any() else None
    return Outcome(judged, candidates[found.best], float(found.scores[found.best]), removed)
