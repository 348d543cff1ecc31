"""Ablations of what D3M is given: targets, training regime, other draws, wrong labels; and effects that it predicts.

Command:  python -m experiments ablate_targets | ablate_regime | stability | label_errors | group_counterfactuals
Expected: on *patch*, gap closed 0.95 from 10 targets of each group (0.74 for training on them); 1.06 after 3,200 steps
          (RWG 0.40, `--config.seeds 4`); removed sets of other checkpoints overlap by 0.73 (0.32 by chance); predicted
          and actual changes of loss correlate at 0.99. On *label-errors* 66 % of the lowest tenth are wrong labels.
Device:   two CPU cores: 2, 6, 3, 1 and 1 minutes; any JAX device works.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.attribution import effects, gradients, per_checkpoint
from d3mjax.debiasing import baselines, selection
from d3mjax.keys import Ablation, members
from d3mjax.reports import plots
from d3mjax.reports.rows import Kind
from d3mjax.types import Data
from experiments import cifar_tasks, examples
from experiments.d3m import ablations
from experiments.d3m.ablations import Variant, ablation, alignment, attribute, keep, rows_of, standard, train
from experiments.d3m.main_table import rank
from experiments.d3m.retraining import row_of
from experiments.study import Unit
from experiments.tasks import ADULT, PATCH, TASKS, Task, trak_options


@dataclass(frozen=True)
class Targets(ablations.Config):
    """What determines the numbers of `ablate_targets`."""

    sizes: tuple[int, ...] = (50, 100, 200, 400, 800)  # with the mix of the whole target set
    each: tuple[int, ...] = (2, 5, 10, 20)  # targets of every group


def target_sets(task: Task, config: Targets) -> dict[str, dict[int, str]]:
    """The suffix of a variant's name, by mix and number of targets."""
    mixes = {"of the same mix": config.sizes, "in equal groups": [k * len(task.group_names) for k in config.each]}
    return {mix: {count: f"{count} targets {mix}" for count in counts} for mix, counts in mixes.items()}


def targets(task: Task, config: Targets, data: Data, seed: int) -> dict[str, Variant]:
    """The same checkpoints, attributed to smaller and smaller target sets; each contains the next."""
    models, num_groups = train(task, data, seed, config.source.models), len(task.group_names)
    group = np.asarray(data.target.group)
    order = np.random.default_rng(seed).random(len(group)).astype(np.float32)
    overall, within = (np.asarray(selection.rank_within(order, cell)) for cell in (np.zeros_like(group), group))
    same, equal = target_sets(task, config).values()
    sets = {name: overall < size for size, name in same.items()}
    sets |= {name: within < count // num_groups for count, name in equal.items()}
    variants = {}
    for name, chosen in sets.items():
        some = jnp.where(jnp.asarray(chosen), jnp.asarray(group), -1)
        fewer = data._replace(target=data.target._replace(group=some))
        options = trak_options(task, config.source)
        b = np.array(per_checkpoint.combine(*attribute(task, fewer, seed, models.variables, options)))
        absent = np.bincount(group[chosen], minlength=num_groups) == 0  # a group without targets has no column
        losses = np.where(absent, np.nan, models.losses.mean(0))
        scores = alignment(np.where(absent, 0, b), losses, config.beta)
        cell = jnp.where(chosen, group, num_groups)
        alone = np.where(chosen, baselines.balanced_weights(cell, num_groups + 1), 0)
        count = {"targets": int(chosen.sum())}
        variants[f"D3M, {name}"] = Variant(keep(task, data, scores), count)
        variants[f"RWG on the targets alone, {name}"] = Variant(alone, count, "targets")
    return variants


def target_rows(task: Task, config: Targets, units: list[Unit]) -> list[dict[str, Any]]:
    """RWG on the targets controls for them."""
    names = (name for sets in target_sets(task, config).values() for name in sets.values())
    alone = Kind("control", "validation groups", "targets alone")
    return rows_of(task, units, {f"RWG on the targets alone, {name}": alone for name in names})


def target_curves(task: Task, config: Targets) -> dict:
    """D3M, and training on the targets, over their number, for both mixes."""
    methods = ("D3M", "RWG on the targets alone")
    return {
        f"targets {mix}": {method: {count: f"{method}, {name}" for count, name in sets.items()} for method in methods}
        for mix, sets in target_sets(task, config).items()
    }


TARGETS_STUDY = ablation(
    "ablate_targets",
    targets,
    curves=target_curves,
    config=Targets(),
    rows=target_rows,
    claim="D3M gains more from any set of targets than training on it does, and most where targets are few.",
    about="Fewer targets of the same mix, or equally many of each group; D3M beside training on the same targets.",
    headline=("patch", "D3M, 40 targets in equal groups", "gap_closed"),
    minutes=2,
    smoke=lambda config: ablations.small(config, sizes=(100,), each=(2, 5)),
)


def regime(task: Task, steps: int, decay: float) -> Task:
    """The task with another number of steps and weight decay."""
    return replace(task, name=f"{task.name}, {steps} steps, decay {decay:g}", steps=steps, decay=decay)


REGIMES = {
    at.name: at
    for task in (ADULT, PATCH)
    for at in [regime(task, steps, task.decay) for steps in (200, 800, 3200)]
    + [regime(task, task.steps, decay) for decay in (1e-4, 1e-3, 1e-2, 5e-2)]
}


@dataclass(frozen=True)
class Regimes(ablations.Config):
    """What determines the numbers of `ablate_regime`; its tasks are regimes."""

    tasks: tuple[str, ...] = tuple(REGIMES)


def regimes(task: Task, config: Regimes, data: Data, seed: int) -> dict[str, Variant]:
    """D3M and RWG; all training is under the regime."""
    scores = alignment(*standard(task, config, data, seed), config.beta)
    by_group = baselines.balanced_weights(jnp.asarray(data.train.group), len(task.group_names))
    return {"D3M": Variant(keep(task, data, scores)), "RWG": Variant(by_group, fit="resampled")}


REGIME_STUDY = ablation(
    "ablate_regime",
    regimes,
    config=Regimes(),
    tasks=REGIMES,
    rows=lambda task, _config, units: rows_of(task, units, {"RWG": Kind("yardstick", "training groups")}),
    claim="Removal beats reweighting where training fits everything; with strong regularisation reweighting is better.",
    about="All methods, and the checkpoints behind D3M, are trained for these steps with this weight decay.",
    headline=("patch, 3200 steps, decay 0.001", "D3M", "gap_closed"),
    minutes=8,
    smoke=lambda config: ablations.small(config, tasks=config.tasks[:1]),
)

DRAWS = ("all targets", "other checkpoints", "one half of the targets", "the other half of the targets")


def overlap(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Jaccard index of the examples that two keep masks remove, and its mean for random sets of their sizes."""
    a, b = (float((~mask).mean()) for mask in (one, other))
    both, either = (~one & ~other).sum(), (~one | ~other).sum()
    return {"overlap": float(both / max(either, 1)), "overlap by chance": a * b / max(a + b - a * b, 1e-9)}


def draws(task: Task, config: ablations.Config, data: Data, seed: int) -> dict[str, Variant]:
    """D3M's rule from one set of checkpoints and all targets, and with either replaced."""
    count = config.source.models
    first = (train(task, data, seed, count), Ablation.COLUMNS)
    other = (train(task, data, seed, count, family=Ablation.OTHER), Ablation.OTHER_COLUMNS)
    group = jnp.asarray(data.target.group)
    half = jnp.asarray(np.random.default_rng(seed).permutation(len(group)) % 2 == 0)
    sides = (group, group, jnp.where(half, group, -1), jnp.where(half, -1, group))
    masks = {}
    for name, (models, family), side in zip(DRAWS, (first, other, first, first), sides, strict=True):
        part = data._replace(target=data.target._replace(group=side))
        parts = attribute(task, part, seed, models.variables, trak_options(task, config.source), family=family)
        scores = alignment(per_checkpoint.combine(*parts), models.losses.mean(0), config.beta)
        masks[f"D3M, {name}"] = keep(task, data, scores)
    reference = masks[f"D3M, {DRAWS[0]}"]
    return {name: Variant(mask, overlap(reference, mask)) for name, mask in masks.items()}


STABILITY_STUDY = ablation(
    "stability",
    draws,
    claim="Sets removed from other checkpoints or targets overlap far more than chance, and less than their effects.",
    about="Overlap: the Jaccard index of the removed sets with that of the first row, 1 if they are the same.",
    headline=("patch", "D3M, other checkpoints", "overlap"),
    minutes=3,
)


@dataclass(frozen=True)
class LabelErrors(ablations.Config):
    """What determines the numbers of `label_errors`."""

    tasks: tuple[str, ...] = ("label-errors",)
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)  # of the training set, removed


RANKINGS = {
    "lowest D3M score": ablations.OURS,
    "highest loss": Kind("control", controls="score"),
    "highest self-influence": Kind("control", controls="score"),
    "random": Kind("control", controls="number"),
}


def share_removed(ranking: str, share: float) -> str:
    """Name of a variant."""
    return f"{ranking}, {share:.0%} removed"


def label_errors(task: Task, config: LabelErrors, data: Data, seed: int) -> dict[str, Variant]:
    """Remove the first of every ranking, and count the wrong labels among them."""
    scores = alignment(*standard(task, config, data, seed), config.beta)
    losses, influence = rank(
        task, config.source, data, members(jax.random.key(seed), Ablation.CHECKPOINTS, config.source.models)
    )
    noise = np.random.default_rng(seed).random(len(scores)).astype(np.float32)
    wrong = np.isin(data.train.id, task.wrong(seed, smoke=config.smoke))
    variants = {}
    for ranking, by in zip(RANKINGS, (scores, -losses, -influence, noise), strict=True):
        quality = float(effects.retrieval(-jnp.asarray(by), wrong).average_precision)
        for share in config.shares:
            mask = selection.drop_lowest(by, int(share * len(noise)))
            precision = float(selection.share_of_removed(jnp.asarray(wrong), mask))
            recall = float((wrong & ~np.asarray(mask)).sum() / wrong.sum())
            values = {"precision": precision, "recall": recall, "average precision": quality}
            variants[share_removed(ranking, share)] = Variant(mask, values)
    first, rows = next(iter(variants)), np.argsort(scores)[: examples.COUNT]
    arrays = {"score": scores, "wrong": wrong, **examples.stored(task, seed, data.train, rows)}
    return variants | {first: variants[first]._replace(arrays=arrays)}


def lowest(task: Task, units: list[Unit]) -> tuple[dict, dict]:
    """Pictures or sentences of lowest score of the first seed, their labels, and whether those are wrong."""
    first = units[0][1]
    rows = first.get("shown_row", np.zeros(0, int))
    labels = [task.class_names[y] for y in first["y"][rows]]
    marks = ["wrong" if wrong else "right" for wrong in first["wrong"][rows]]
    return examples.shown("Training {} of lowest score (first seed).", first, {"label": labels, "it is": marks})


def label_error_rows(task: Task, config: LabelErrors, units: list[Unit]) -> list[dict[str, Any]]:
    """Rankings other than D3M's are controls."""
    kinds = {share_removed(name, share): kind for name, kind in RANKINGS.items() for share in config.shares}
    return rows_of(task, units, kinds)


def label_error_curves(_task: Task, config: LabelErrors) -> dict:
    """Every ranking over the removed share."""
    names = {ranking: {share: share_removed(ranking, share) for share in config.shares} for ranking in RANKINGS}
    return {"the removed share of the training set": names}


LABEL_ERRORS_STUDY = ablation(
    "label_errors",
    label_errors,
    tasks=TASKS | cifar_tasks.TASKS,
    curves=label_error_curves,
    examples=lowest,
    config=LabelErrors(),
    rows=label_error_rows,
    claim="D3M's lowest scores are mostly planted wrong labels; the highest losses and self-influences are not.",
    about="Precision: the share of wrong labels among the first of each ranking.",
    headline=("label-errors", "lowest D3M score, 10% removed", "precision"),
    minutes=1,
    smoke=lambda config: ablations.small(config, shares=(0.05, 0.1)),
)


@dataclass(frozen=True)
class Counterfactuals(ablations.Config):
    """What determines the numbers of `group_counterfactuals`."""

    shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)  # of the training set, removed
    retrains: int = 10  # behind every actual change
    curvature: bool = True  # better predictions: see the study lds_trak


REMOVALS = {
    "lowest scores": ablations.OURS,
    "highest scores": Kind("control", "validation groups", "sign"),
    "random": Kind("control", "validation groups", "number"),
}


def counterfactuals(task: Task, config: Counterfactuals, data: Data, seed: int) -> dict[str, Variant]:
    """Removals by D3M's score in both directions and at random, with the predicted change of each group's loss."""
    models = train(task, data, seed, config.source.models)
    options = trak_options(task, config.source)._replace(
        target_output=gradients.negative_loss_output,
        curvature=gradients.logistic_curvature if config.curvature else None,
    )
    b = per_checkpoint.combine(*attribute(task, data, seed, models.variables, options))
    scores = alignment(b, models.losses.mean(0), config.beta)
    noise = np.random.default_rng(seed).random(len(scores)).astype(np.float32)
    variants = {}
    for removal, by in zip(REMOVALS, (scores, -scores, noise), strict=True):
        for share in config.shares:
            mask = selection.drop_lowest(by, int(share * len(noise)))
            # The column is of minus the loss, and what is removed counts with the opposite sign.
            change = np.asarray(jnp.where(mask[:, None], 0, b).sum(0))
            predicted = {f"predicted/{g}": float(c) for g, c in enumerate(change)}
            variants[share_removed(removal, share)] = Variant(mask, predicted)
    return variants


def changes(task: Task, config: Counterfactuals, unit: Unit, removal: str) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and actual change of loss ``[shares G]``."""
    facts, arrays = unit
    names = [share_removed(removal, share) for share in config.shares]
    predicted = [[facts[name][f"predicted/{g}"] for g in range(len(task.group_names))] for name in names]
    actual = [arrays[f"losses/{name}"].mean(0) - arrays["losses/ERM"].mean(0) for name in names]
    return np.array(predicted), np.array(actual)


def counterfactual_rows(task: Task, config: Counterfactuals, units: list[Unit]) -> list[dict[str, Any]]:
    """One row a kind of removal: agreement of predicted and actual changes over sizes and groups."""
    made = []
    for removal, kind in REMOVALS.items():
        agreements = [effects.agreement(*changes(task, config, unit, removal)) for unit in units]
        per_seed = {name: [getattr(a, name) for a in agreements] for name in ("pearson", "spearman", "slope")}
        made.append(row_of(task.name, f"{removal} removed", per_seed, kind))
    return made


def counterfactual_figures(task: Task, config: Counterfactuals, units: list[Unit]) -> dict:
    """Predicted against actual changes of the first seed, a colour for each group."""
    points = {}
    for removal in REMOVALS:
        predicted, actual = changes(task, config, units[0], removal)
        points[removal] = {name: (predicted[:, g], actual[:, g]) for g, name in enumerate(task.group_names)}
    drawn = plots.scatters(points, xlabel="predicted change of loss", ylabel="actual change")
    return {"Change of each group's mean loss over the targets (first seed).": drawn}


COUNTERFACTUALS_STUDY = ablation(
    "group_counterfactuals",
    counterfactuals,
    figures=counterfactual_figures,
    config=Counterfactuals(),
    rows=counterfactual_rows,
    claim="Group columns predict which groups gain and which lose, in the right order; they underestimate how much.",
    about="Predicted: the sum of group columns over the removed examples. Actual: the mean of retrainings less ERM's.",
    headline=("patch", "lowest scores removed", "pearson"),
    minutes=1,
    smoke=lambda config: ablations.small(config, shares=(0.1, 0.2)),
)
