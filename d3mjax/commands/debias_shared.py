"""What all divisions of the targets share in d3mjax-debias: the models trained on the whole training set.

Their attribution to the groups of every division is one pass over the training set, and plain training and class
weights need no division at all. So the spread over divisions covers the division of the targets and the retraining of
candidates, and neither the checkpoints nor plain training.

Where labels are numbers, weights by interval of the label take the place of class weights.

Arrays: ``columns [r n D G]``; ``covariances [c D G G]`` and ``covariance_of_mean [D G G]`` of the kernels' columns over
train examples; ``group_losses [D G]`` in nats, or half the mean squared error of standardised labels; ``suspect [n]``;
``selecting/NAME`` and ``reporting/NAME``, logits ``[m t C]`` on the pool of the models of `BALANCES` that select and
that report; with --auto ``target_id [D t]`` and ``pseudo_group [D t]``.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key

from d3mjax import keys, metrics
from d3mjax.commands import debias_auto, debias_divisions, debias_trust
from d3mjax.commands.debias_recipe import Recipe, train
from d3mjax.debiasing import auto, sources
from d3mjax.runtime import hosts, runs
from d3mjax.runtime.progress import Progress
from d3mjax.types import Data

PLAIN = "ERM"
BALANCES = {PLAIN: 0.0, "class weights, root": 0.5, "class weights": 1.0}
"""Weightings by class, or interval of the label: an example weighs ``n_class ** -power``, relative to the mean."""


def num_models(recipe: Recipe) -> int:
    """Models that are trained here."""
    others = 2 * len(BALANCES) * recipe.counts.retrains
    return recipe.counts.checkpoints + others + debias_trust.num_models(recipe)


def measure(recipe: Recipe, seed: int, progress: Progress) -> runs.Unit:
    """The unit that all divisions share; ``seed`` is that of the checkpoints and of plain training."""
    root = jax.random.fold_in(jax.random.key(seed), keys.D3M.SHARED)
    parts = [debias_divisions.divide(recipe.data, division) for division in range(recipe.counts.divisions)]
    facts, arrays = attribute(root, recipe, parts, progress)
    progress(0, "plain training and class weights")
    count = recipe.counts.retrains
    for name, power in BALANCES.items():
        row = class_weights(debias_divisions.strata(recipe.data, recipe.data.train.y), power)
        for part, family in (("selecting", keys.D3M.SELECT), ("reporting", keys.D3M.REPORT)):
            members = keys.members(root, family, count)
            arrays[f"{part}/{name}"] = train(recipe, members, [row] * count, progress=progress)
    return facts, arrays


def class_weights(y: Int[np.ndarray, "n"], power: float) -> Float[np.ndarray, "n"]:
    """Weights ``n_class ** -power`` of mean 1; 0 weighs all examples the same, 1 all classes."""
    weights = np.bincount(y).clip(1).astype(np.float64) ** -power
    return (weights[y] / weights[y].mean()).astype(np.float32)


def attribute(
    root: Key[Array, ""], recipe: Recipe, parts: Sequence[Data], progress: Progress
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts and arrays of the checkpoints: the columns of the groups of all divisions in one pass.

    One block of checkpoints and its columns exist at a time. With --auto all checkpoints are trained first, and every
    division splits its own scoring targets by the attribution of all targets, which is made once.
    """
    count, on_devices = recipe.counts.checkpoints, {"width": recipe.width, "mesh": recipe.mesh}
    members = keys.members(root, keys.D3M.COLUMNS, count)
    train_keys, projection_keys = (jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(members) for i in (0, 1))
    blocks = [np.arange(first, min(first + recipe.block, count)) for first in range(0, count, recipe.block)]
    target = hosts.place(recipe.data.target, recipe.mesh)
    data = Data(recipe.train, target, target, target)

    def trained():
        for ids in blocks:
            arguments = (train_keys[ids], recipe.model, recipe.trainer, data, recipe.schedule.steps)
            yield auto.train_checkpoints(*arguments, **on_devices)
            progress(len(ids))

    checkpoints, facts, arrays, groups = trained(), {}, {}, scoring_groups(recipe, parts)
    if recipe.auto:
        checkpoints = list(checkpoints)
        progress(0, "splitting the targets")
        facts, arrays, groups = split(root, recipe, data, checkpoints, parts)
        progress(0, "attributing checkpoints")
    data = data._replace(target=target._replace(group=hosts.place(groups, recipe.mesh)))
    sums, spreads, right, losses, checked = None, [], [], [], []
    for ids, block in zip(blocks, checkpoints, strict=True):
        arguments = (projection_keys[ids], recipe.model, block, data, recipe.num_groups, recipe.attribution)
        kernel, factor, info = auto.attribute_kernels(*arguments, **on_devices)
        checked.append(recipe.attribution.check(info, data))
        sums = sources.add_checkpoints(sums, kernel, factor)
        spreads.append(sources.covariances(kernel[:, 0], len(parts)))
        right.append(np.asarray(block.right).any(0))
        margins = np.asarray(block.margins)
        numbers = recipe.data.num_classes is None
        losses.append(-margins if numbers else np.logaddexp(0, -margins))  # cross-entropy of a soft margin
    assert sums is not None
    kernel, factor = (a / count for a in sums)
    columns = (kernel * factor[..., None]).reshape(*kernel.shape[:2], len(parts), -1)
    loss = np.concatenate(losses).mean(0)
    arrays |= {
        "columns": columns,
        "covariances": np.concatenate(spreads),
        "covariance_of_mean": sources.covariances(kernel[:1], len(parts))[0],
        "suspect": ~np.any(right, axis=0),
        "group_losses": np.stack([metrics.group_means(loss, g, recipe.num_groups) for g in groups.T]),
    }
    if debias_trust.num_models(recipe):
        progress(0, "how far to trust the scores")
        facts["trust"] = debias_trust.measure(root, recipe, columns[0, :, 0], groups[:, 0], progress)
    # The worst of all checkpoints: residuals are bounded above, pivots below.
    worst = {name: (min if "smallest" in name else max)(facts[name] for facts in checked) for name in checked[0]}
    return {name: float(value) for name, value in worst.items()} | facts, arrays


def scoring_groups(recipe: Recipe, parts: Sequence[Data]) -> Int[np.ndarray, "t D"]:
    """The group of every target in each division; -1 where the division does not score on it."""
    target = recipe.data.target
    groups = np.full((len(target.y), len(parts)), -1, np.int32)
    for division, part in enumerate(parts):
        groups[np.searchsorted(target.id, part.target.id), division] = part.target.group
    return groups


def split(
    root: Key[Array, ""], recipe: Recipe, data: Data, blocks: Sequence[auto.Checkpoints], parts: Sequence[Data]
) -> tuple[dict[str, Any], dict[str, Any], Int[np.ndarray, "t D"]]:
    """Facts, arrays and the pseudo-groups of the scoring targets of every division, from one attribution of all."""
    checkpoints = jax.tree.map(lambda *leaves: np.concatenate(leaves), *blocks)
    key = jax.random.fold_in(jax.random.fold_in(root, keys.D3M.SPLIT), keys.Auto.COLUMNS)
    tau = auto.attribute_targets(key, recipe.model, checkpoints, data, recipe.options)
    pseudo = []
    for part in parts:
        at = np.searchsorted(recipe.data.target.id, part.target.id)
        scored = checkpoints._replace(margins=checkpoints.margins[:, at])
        arguments = (tau[at], scored, part.target.y, len(recipe.data.class_names))
        pseudo.append(auto.split_targets(*arguments, min_loss_share=debias_auto.LEAST))
    of_parts = [debias_auto.unit_of(one, part.target) for one, part in zip(pseudo, parts, strict=True)]
    facts = {"auto": [facts["auto"] for facts, _ in of_parts]}
    arrays = {name: np.stack([arrays[name] for _, arrays in of_parts]) for name in of_parts[0][1]}
    scored = [
        part._replace(target=part.target._replace(group=one.group)) for one, part in zip(pseudo, parts, strict=True)
    ]
    return facts, arrays, scoring_groups(recipe, scored)
