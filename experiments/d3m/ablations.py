"""What ablations of D3M share: checkpoints attributed in any way, and variants judged by the same retrained models.

An ablation is a function of one data seed and the figures of its page, made a study by `ablation`:

    def counts(task: Task, config: Counts, data: Data, seed: int) -> dict[str, Variant]:
        models = train(task, data, seed, config.source.models)
        ...
        return {"D3M, 5 checkpoints": Variant(keep(task, data, columns, losses))}

Every variant, ERM and SUBG are trained ``retrains`` times from the same keys. *Gap closed* is the gain in worst-group
accuracy over ERM as a share of SUBG's, which needs the groups of the training set.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from d3mjax import metrics
from d3mjax.attribution import influence, outputs, per_checkpoint, trak
from d3mjax.debiasing import baselines, group_weighting, selection
from d3mjax.keys import Ablation, members
from d3mjax.reports import page, plots
from d3mjax.reports.rows import Kind
from d3mjax.training import ensemble
from d3mjax.types import Data
from experiments.d3m.retraining import accuracies, by_group, gap_closed, retrain, row_of, worst
from experiments.study import Study, Unit
from experiments.tasks import RESAMPLED, SHUFFLED, SMALL_SOURCES, TASKS, Task, Trak, spread, train_models, trak_options

KINDS = {"ERM": Kind("plain"), "SUBG": Kind("yardstick", "training groups")}
OURS = Kind("ours", "validation groups")


@dataclass(frozen=True)
class Config:
    """What every ablation has."""

    tasks: tuple[str, ...] = ("adult", "patch")
    seeds: int = 5
    first_seed: int = 10  # defaults were chosen on seeds 0 to 5, which must not report
    retrains: int = 3
    beta: float = 1.0  # sharpness of the group weights, per nat of group loss
    source: Trak = field(default_factory=Trak)
    smoke: bool = False


class Variant(NamedTuple):
    """One way to debias: training weights, further metrics, and how the weights are used."""

    weights: Any  # [n], or one for each retraining [r n]
    metrics: Mapping[str, float] = {}  # never written to
    fit: Literal["plain", "resampled", "targets"] = "plain"  # shuffled or drawn by weight; drawn, on the targets alone
    arrays: Mapping[str, Any] = {}  # for the page, of one variant at most


class Checkpoints(NamedTuple):
    """Models trained on everything, with a leading axis c."""

    variables: Any
    losses: jax.Array  # Float[c G], mean cross-entropy of each target group


def train(task: Task, data: Data, seed: int, count: int, *, family: Ablation = Ablation.CHECKPOINTS) -> Checkpoints:
    """The first ``count`` checkpoints of a family."""
    variables, losses, curve = _trained(data, members(jax.random.key(seed), family, count), task=task)
    ensemble.check_losses(jax.device_get(curve), np.arange(count))
    return Checkpoints(variables, losses)


@partial(jax.jit, static_argnames="task")
def _trained(data: Data, keys, *, task: Task):
    model, ones = task.network(), jnp.ones(data.train.y.shape[0])

    def look(variables, target):
        losses = outputs.losses(model, variables, target)
        return variables, metrics.group_means(losses, target.group, len(task.group_names))

    looked, curve = train_models(task, keys, data.train, ones, look, shared=(data.target,))
    return *looked, curve


def attribute(
    task: Task,
    data: Data,
    seed: int,
    variables: Any,
    options: trak.Options | influence.Options,
    *,
    family: Ablation = Ablation.COLUMNS,
) -> tuple[jax.Array, jax.Array]:
    """Kernel ``[c n G]`` and factor ``[c n]`` of checkpoints; `per_checkpoint.combine` makes group columns of them.

    Targets of group -1 count nowhere: target sets of different sizes need no further compilation.
    """
    count = jax.tree.leaves(variables)[0].shape[0]
    keys = members(jax.random.key(seed), family, count)
    kernel, factor = jax.device_get(_attributed(data, keys, variables, task=task, options=options))
    return jnp.asarray(kernel), jnp.asarray(factor)


@partial(jax.jit, static_argnames=("task", "options"))
def _attributed(data: Data, keys, variables, *, task: Task, options: trak.Options | influence.Options):
    model, num_groups = task.network(), len(task.group_names)

    def one(data, key, variables):
        arguments = (key, model, variables, data.train, data.target, num_groups)
        if isinstance(options, trak.Options):
            return trak.group_columns(*arguments, options=options)[:2]
        return influence.group_columns(*arguments, options=options)[:2]

    return ensemble.map_models(one, **spread(task), shared=(data,))(keys, variables)


def standard(task: Task, config: Config, data: Data, seed: int) -> tuple[jax.Array, jax.Array]:
    """Group columns ``[n G]`` and group losses ``[G]`` as `d3m` has them."""
    models = train(task, data, seed, config.source.models)
    parts = attribute(task, data, seed, models.variables, trak_options(task, config.source))
    return per_checkpoint.combine(*parts), models.losses.mean(0)


def alignment(columns, losses, beta: float) -> jax.Array:
    """Scores ``[n]`` under softmax weights of the group losses; a group of NaN loss has weight 0."""
    return group_weighting.scores(jnp.asarray(columns), group_weighting.softmax_weights(jnp.asarray(losses), beta=beta))


def keep(task: Task, data: Data, scores) -> np.ndarray:
    """D3M's rule: drop negative scores, guarded."""
    rule = selection.drop_negative(jnp.asarray(scores))
    return np.asarray(selection.guard(jnp.asarray(scores), rule, data.train.y, len(task.class_names))[0])


def measure(variants: Callable, task: Task, config: Any, seed: int, progress: Callable[[int], object]) -> Unit:
    """Every variant on one data seed, judged by retraining."""
    data, runs, root = task.read(seed, smoke=config.smoke), config.retrains, jax.random.key(seed)
    group, n = jnp.asarray(data.train.group), len(data.train.y)
    balanced = jax.vmap(lambda k: baselines.subsample_balanced(k, group, len(task.group_names)))
    found = {"ERM": Variant(np.ones(n)), "SUBG": Variant(balanced(members(root, Ablation.DRAW, runs)))}
    found |= variants(task, config, data, seed)
    progress(config.source.models)
    keys, judged = members(root, Ablation.REPORT, runs), {}
    fits = {"plain": (data.train, SHUFFLED), "resampled": (data.train, RESAMPLED), "targets": (data.target, RESAMPLED)}
    for fit, (split, sampler) in fits.items():
        weights = {name: variant.weights for name, variant in found.items() if variant.fit == fit}
        judged |= retrain(task, data, keys, weights, split=split, sampler=sampler) if weights else {}
    facts, arrays = {}, {"id": data.train.id, "y": data.train.y, "group": data.train.group}
    for name, variant in found.items():
        of_train = variant.fit != "targets"
        removed = {"removed": float(np.mean(np.asarray(variant.weights) == 0))} if of_train else {}
        facts[name] = {**removed, **variant.metrics}
        arrays |= {f"{part}/{name}": getattr(judged[name], part) for part in ("test", "average", "losses")}
        arrays |= variant.arrays
    return facts, {name: np.asarray(value) for name, value in arrays.items()}


def rows_of(task: Task, units: list[Unit], kinds: Mapping[str, Kind]) -> list[dict[str, Any]]:
    """One row a variant; ``kinds`` of those that are not D3M."""
    made = []
    for name, facts in units[0][0].items():
        kind = (KINDS | dict(kinds)).get(name, OURS)
        closed = gap_closed(worst(units, name), worst(units, "ERM"), [worst(units, "SUBG")])
        values = accuracies(units, name) | {"gap_closed": closed}
        values |= {metric: [unit[name][metric] for unit, _ in units] for metric in facts}
        made.append(row_of(task.name, name, values, kind))
    return made


def figures_of(
    task: Task, units: list[Unit], curves: Mapping[str, Mapping[str, Mapping[Any, str]]]
) -> dict[str, Figure]:
    """Worst-group accuracy against each quantity, ``curves``: quantity -> label -> value -> variant; else bars.

    ERM and SUBG are flat.
    """
    if not curves:
        return {"Test accuracy of every group.": plots.bar_groups(by_group(units, units[0][0]), task.group_names)}
    drawn = {}
    for quantity, lines in curves.items():
        flat = {name: dict.fromkeys(next(iter(lines.values())), name) for name in KINDS}
        points = {
            label: (list(names), np.stack([worst(units, name) for name in names.values()], 1))
            for label, names in (dict(lines) | flat).items()
        }
        drawn[f"Worst group against {quantity}."] = plots.curves(points, quantity, "worst-group test accuracy")
    return drawn


def small(config: Any, **changes: Any) -> Any:
    """The configuration of a smoke run."""
    return replace(config, seeds=1, retrains=2, source=SMALL_SOURCES[Trak], **changes)


def ablation(
    name: str,
    variants: Callable[..., dict[str, Variant]],
    *,
    about: str,
    curves: Callable[..., dict[str, Any]] = lambda _task, _config: {},
    figures: Callable[..., dict[str, Figure]] = lambda _task, _config, _units: {},
    examples: Callable[..., tuple[dict, dict]] = lambda _task, _units: ({}, {}),
    rows: Callable[..., list[dict[str, Any]]] = lambda task, _config, units: rows_of(task, units, {}),
    config: Any = Config(),
    tasks: Mapping[str, Task] = TASKS,
    smoke: Callable[[Any], Any] = small,
    **study: Any,
) -> Study:
    """The study of ``variants(task, config, data, seed)``; ``about`` is for its page, ``study`` for `Study`.

    ``curves(task, config)`` are those of `figures_of`; ``figures(task, config, units)`` take their place;
    ``examples(task, units)`` returns further figures, and tables of single examples.
    """

    def describe(task: Task, config: Any, units: list[Unit]):
        text = f"{task.about} {about} Gap closed is the gain over ERM as a share of SUBG's."
        drawn = figures(task, config, units) or figures_of(task, units, curves(task, config))
        pictures, sentences = examples(task, units)
        return rows(task, config, units), page.Section(text, drawn | pictures, examples=sentences)

    return Study(
        name,
        config=config,
        tasks=tasks,
        prepare=lambda task, config, _results: partial(measure, variants, task, config),
        describe=describe,
        smoke=smoke,
        small=lambda task: replace(task, steps=50),
        models=lambda config: config.source.models,
        **study,
    )
