"""Published methods and yardsticks beside D3M, each tuned with one budget by the rule that its information allows.

Every method tries the same draws of the training recipe, the default first. Choices are made on the selection split:
by worst-class accuracy for methods without group labels, by worst-group accuracy for all others.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from d3mjax import metrics
from d3mjax.attribution import outputs
from d3mjax.data import splits
from d3mjax.data.sets import adult
from d3mjax.debiasing import baselines, d3m
from d3mjax.reports.rows import Kind
from d3mjax.runtime.hosts import local_mesh, place
from d3mjax.training import ensemble, lff, masks, objectives
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Data, Model, Objective, Sampler, Split, Trainer
from experiments.d3m import smote
from experiments.tasks import RESAMPLED, SHUFFLED, Task, spread

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
    q: Any = 0.7  # LfF: exponent of the biased twin's generalised cross-entropy


RECIPE = ("rate", "decay", "share")


def settings(task: Task, budget: int) -> list[Setting]:
    """``budget`` settings, the default first, the same for all methods and seeds: log-uniform around the defaults."""
    draw, exponents = np.random.default_rng(0), np.random.default_rng(1)  # apart: stored results have the other draws
    drawn = [Setting(task.rate, task.decay, 1.0)]
    for _ in range(budget - 1):
        # The third number was once eta, which is drawn again below; without it, later draws would not be those of
        # stored results.
        rate, decay, _unused = (
            task.rate * 10 ** draw.uniform(-1, 0.3),
            10 ** draw.uniform(-4, -1),
            10 ** draw.uniform(-3, 0),
        )
        share, up = draw.choice([0.1, 0.25, 0.5, 1.0]), draw.choice([4.0, 5.0, 6.0, 20.0, 50.0, 100.0])
        first, mass, eta = draw.choice([0.05, 0.1, 0.25, 0.5, 1.0]), draw.uniform(0.1, 0.9), 10 ** draw.uniform(-3, 0)
        strength, q = 10 ** draw.uniform(-2, 0), exponents.uniform(0.1, 1)
        drawn.append(Setting(*map(float, (rate, decay, share, eta, up, first, mass, strength, q))))
    return drawn


class Judged(NamedTuple):
    """Evaluation of one model, its selection accuracy by class, and diagnostics of the method by name."""

    evaluation: d3m.Evaluation
    classes: Float[Array, "C"]
    notes: dict[str, Array]


def judge(task: Task, variables: Any, data: Data, notes: dict[str, Array], *, model: Model | None = None) -> Judged:
    """`d3m.evaluate`, and the accuracy of each class on the selection split; ``model``: if not the task's network."""
    model = model or task.network()
    right = outputs.hard_margins(model, variables, data.selection, microbatch=4096) > 0
    classes = metrics.group_means(right, data.selection.y, len(task.class_names))
    return Judged(d3m.evaluate(model, variables, data, len(task.group_names)), classes, notes)


def recipe(task: Task, sampler: Sampler, objective: Objective, setting: Setting) -> Trainer:
    """Trainer of a setting, which may be traced: steps past ``setting.share`` have rate zero."""
    length = setting.share * task.steps
    rate = lambda step: setting.rate * jnp.maximum(1 - step / length, 0.0)
    tx = task.optimizer(rate, setting.decay)
    return make_trainer(task.network(), objective, tx, sampler, batch_size=task.batch)


def _fit(sampler: Sampler, objective: Objective, task: Task, key, split: Split, weights, setting: Setting):
    trainer = recipe(task, sampler, objective, setting)
    state, info = trainer.run(trainer.init(key, jax.tree.map(lambda a: a[:1], split.x)), split, weights, task.steps)
    return state.variables, info.loss, {}


# The fits of one model: (task, key, split, weights [n], setting) -> (variables, losses [s], notes).
fit_shuffled = partial(_fit, SHUFFLED, objectives.cross_entropy())
fit_resampled = partial(_fit, RESAMPLED, objectives.cross_entropy())


def fit_group_dro(task: Task, key, split: Split, weights, setting: Setting):
    """GroupDRO on resampled groups."""
    objective = objectives.group_dro(len(task.group_names), eta=setting.eta)
    return _fit(RESAMPLED, objective, task, key, split, weights, setting)


def fit_lff(task: Task, key, split: Split, weights, setting: Setting):
    """LfF: the twin that learns from the failures of the other; both have the recipe of the setting."""
    both = replace(task, make_model=lambda: lff.twins(task.network()))
    objective = lff.objective(len(split.y), len(task.class_names), q=setting.q)
    rows = split._replace(id=jnp.arange(len(split.y)))
    variables, losses, notes = _fit(SHUFFLED, objective, both, key, rows, weights, setting)
    return lff.second(variables), losses, notes


def fit_jtt(task: Task, key, split: Split, weights, setting: Setting):
    """JTT: train, and train again on more copies of the errors; notes: their number, precision and recall."""
    short = setting._replace(share=setting.first)
    first, losses, _ = fit_shuffled(task, jax.random.fold_in(key, 2), split, weights, short)
    errors = (outputs.hard_margins(task.network(), first, split, microbatch=4096) <= 0) & (weights > 0)
    size = jnp.zeros(len(task.group_names)).at[split.group].add(weights > 0)
    minority = (size < size.mean())[split.group] & (weights > 0)
    both = (errors & minority).sum()
    notes = {"errors": errors.sum(), "precision": both / errors.sum(), "recall": both / minority.sum()}
    up = weights * baselines.jtt_weights(errors, setting.up)
    variables, later, _ = fit_resampled(task, key, split, up, setting)
    return variables, jnp.concatenate([losses, later]), notes


@partial(jax.jit, static_argnames=("task", "fit"))
def _fitted(split: Split, data: Data, keys, weights, setting: Setting, *, task: Task, fit: Callable):
    def one(split, data, key, weight, setting):
        variables, losses, notes = fit(task, key, split, weight, setting)
        return judge(task, variables, data, notes), losses

    # Not `train_many`: the recipe is traced, one setting a model, and JTT trains twice.
    return ensemble.map_models(one, **spread(task), shared=(split, data))(keys, weights, setting)


class Method(NamedTuple):
    """Place of a method in the table, the settings it tunes, its weights, its fit of one model, and its examples."""

    kind: Kind
    uses: tuple[str, ...]
    weights: Callable[[Any, Data, Setting], Any]  # (key, data, setting) -> [pool], 0 for unused examples; None: ones
    fit: Callable
    pool: Callable[[Any, Data], Split] = lambda _key, data: splits.concatenate(data.train, data.target)

    def criterion(self, judged: Judged, *, offsets: bool) -> Float[np.ndarray, "m"]:
        """Selection accuracy of the worst group, or of the worst class (Yang et al., 2023) without group labels.

        With class ``offsets``, which are chosen by groups, always of the worst group.
        """
        if offsets:
            return np.asarray(judged.evaluation.selection_with_offsets).min(-1)
        none = self.kind.information == "none"
        return np.asarray(judged.classes if none else judged.evaluation.selection).min(-1)


def methods(task: Task) -> dict[str, Method]:
    """All methods that train a whole network, in the order of the table; SMOTE only where inputs are not images.

    All draw from one pool of train and target examples, so that a fit is compiled once.
    """
    num_classes, num_groups = len(task.class_names), len(task.group_names)

    def part(name: str, weigh: Callable):
        """Weights ``weigh(key, examples)`` of one split of the pool; 0 for the other."""
        return lambda key, data, _setting: _padded(data, name, weigh(key, getattr(data, name)))

    ones = part("train", lambda _key, split: baselines.erm_weights(len(split.y)))
    by_class = part("train", lambda _key, split: baselines.balanced_weights(split.y, num_classes))
    by_group = part("train", lambda _key, split: baselines.balanced_weights(split.group, num_groups))
    alone = part("target", lambda _key, split: baselines.balanced_weights(split.group, num_groups))
    class_part = part("train", lambda key, split: baselines.subsample_balanced(key, split.y, num_classes))
    group_part = part("train", lambda key, split: baselines.subsample_balanced(key, split.group, num_groups))

    rival, validation, yardstick = Kind("rival"), "validation groups", Kind("yardstick", "training groups")
    table = {
        "ERM, tuned without groups": Method(Kind("control", controls="tuning"), RECIPE, ones, fit_shuffled),
        "RWY": Method(rival, RECIPE, by_class, fit_resampled),
        "SUBY": Method(rival, RECIPE, class_part, fit_shuffled),
        "LfF": Method(rival, (*RECIPE, "q"), ones, fit_lff),
        "ERM, tuned with groups": Method(Kind("control", validation, "tuning"), RECIPE, ones, fit_shuffled),
        "RWG on the targets alone": Method(Kind("control", validation, "targets alone"), RECIPE, alone, fit_resampled),
        "train and targets together": Method(
            Kind("control", validation, "targets in training"),
            (*RECIPE, "mass"),
            partial(_mixed, num_groups),
            fit_resampled,
        ),
        "JTT": Method(Kind("rival", validation), (*RECIPE, "up", "first"), ones, fit_jtt),
        "SUBG": Method(yardstick, RECIPE, group_part, fit_shuffled),
        "RWG": Method(yardstick, RECIPE, by_group, fit_resampled),
        "GroupDRO": Method(yardstick, (*RECIPE, "eta"), by_group, fit_group_dro),
    }
    if task.image is None:
        equal = lambda _key, _data, _setting: None
        table["SMOTE"] = Method(yardstick, RECIPE, equal, fit_shuffled, partial(_synthetic, task))
    return table


def _padded(data: Data, name: str, weights):
    parts = {"train": np.zeros(len(data.train.y)), "target": np.zeros(len(data.target.y)), name: np.asarray(weights)}
    return np.concatenate([parts["train"], parts["target"]])


def _mixed(num_groups: int, _key, data: Data, setting: Setting):
    n, group = len(data.train.y), np.concatenate([data.train.group, data.target.group])
    return baselines.mixed_weights(np.arange(len(group)) >= n, group, num_groups, setting.mass)


def _synthetic(task: Task, key, data: Data) -> Split:
    train, num_classes = data.train, len(task.class_names)
    cell = np.asarray(train.group) * num_classes + np.asarray(train.y)  # labels are never interpolated
    seed = int(jax.random.bits(key))
    leaves, tree = jax.tree.flatten(train.x)
    flat = np.concatenate([np.asarray(a).reshape(len(a), -1) for a in leaves], axis=1)
    flat, cell = smote.oversample(flat, cell, seed, categorical=CATEGORICAL.get(task.name, ()))
    group, y = np.divmod(cell.astype(np.int32), num_classes)
    stops = np.cumsum([np.asarray(a)[0].size for a in leaves])[:-1]
    parts = [a.reshape(-1, *b.shape[1:]) for a, b in zip(np.split(flat, stops, axis=1), leaves, strict=True)]
    x = jax.tree.unflatten(tree, parts)
    return Split(x, y, group, np.arange(len(y), dtype=np.int32))


class Chosen(NamedTuple):
    """A setting and its score on the selection split."""

    setting: Setting
    score: float


class Outcome(NamedTuple):
    """The reported models ``[r]``, the settings behind them, and the removed share of train."""

    judged: Judged  # accuracies with offsets are those of the setting chosen for them
    chosen: Chosen
    chosen_with_offsets: Chosen
    removed: float | None  # None where the training set is not used


def outcome(
    candidates: Sequence[Setting],
    scores: Callable[..., Float[np.ndarray, "c"]],
    report: Callable[[int], Judged],
    *,
    removed: float | None = None,
) -> Outcome:
    """The settings of highest ``scores(offsets=...)``, each reported by models of other keys: ``report(position)``."""
    budget = len(candidates)
    plain, moved = (baselines.tune(candidates, lambda _, o=o: scores(offsets=o), budget=budget) for o in (False, True))
    judged, other = report(plain.best), report(moved.best).evaluation
    names = ("offsets", "selection_with_offsets", "test_with_offsets", "average_with_offsets")
    evaluation = judged.evaluation._replace(**{name: getattr(other, name) for name in names})
    first, second = (Chosen(candidates[tuned.best], float(tuned.scores[tuned.best])) for tuned in (plain, moved))
    return Outcome(judged._replace(evaluation=evaluation), first, second, removed)


def tuned(task: Task, method: Method, data: Data, key, select_keys, report_keys, candidates: list[Setting]) -> Outcome:
    """Choose settings with the models of one family of keys ``[r]``, and judge them with those of another."""
    pool = method.pool(key, data)
    on_device = place((pool, data), local_mesh())  # once for all settings

    def run(keys, setting):
        drawn = [method.weights(jax.random.fold_in(k, 3), data, setting) for k in keys]
        weights = np.stack([np.ones(len(pool.y)) if w is None else np.asarray(w) for w in drawn])
        masks.check_weights(weights, pool.y)
        each = jax.tree.map(lambda a: jnp.full(len(keys), a), setting)
        rows = jnp.asarray(weights, jnp.float32)
        judged, losses = jax.device_get(_fitted(*on_device, keys, rows, each, task=task, fit=method.fit))
        ensemble.check_losses(losses, np.arange(len(losses)))
        return judged, weights[:, : len(data.train.y)]

    tried = [run(select_keys, setting)[0] for setting in candidates]
    scores = lambda offsets: np.array([method.criterion(judged, offsets=offsets).mean() for judged in tried])
    reported = cache(lambda position: run(report_keys, candidates[position]))
    made = outcome(candidates, scores, lambda position: reported(position)[0])
    weights = reported(candidates.index(made.chosen.setting))[1]
    return made._replace(removed=float(np.mean(weights == 0)) if weights.any() else None)
