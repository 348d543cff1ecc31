"""D3M and what it is compared with on one division of the targets: the unit of work of d3mjax-debias."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from d3mjax import keys
from d3mjax.attribution import trak
from d3mjax.commands import debias_auto, debias_data
from d3mjax.commands.debias_data import UserData
from d3mjax.data import splits
from d3mjax.debiasing import auto, baselines, d3m, group_weighting, selection, sources
from d3mjax.debiasing.d3m import Evaluation
from d3mjax.runtime import hosts, runs
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Data, Model, Sampler, Split, Trainer

BATCH = 50  # examples of a training step
GRID = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)  # shares of the training set on the curve
PLAIN, TARGETS_ALONE = "ERM", "RWG on the targets alone"
RANDOM, MATCHED = "random removal", "class-matched random removal"
PARTS = ("target", "selection", "test")
NEGATIVE, TENTH, SELECTED = "D3M, drop negative", "D3M, 10 % removed", "D3M, by selection"


class Recipe(NamedTuple):
    """All that is compiled, placed on devices and decided once for all seeds."""

    data: UserData
    train: Split  # on the devices of the mesh
    model: Model
    trainer: Trainer
    resampling: Trainer  # draws examples by weight, for the targets alone
    options: trak.Options
    attribution: sources.Attribution
    num_steps: int
    checkpoints: int
    retrains: int
    auto: bool
    num_groups: int  # with auto two for each class
    width: int
    mesh: Mesh


class Comparison(NamedTuple):
    """Models trained without some examples: weights and evaluations by method, and facts and arrays to store."""

    weights: dict[str, Any]
    tested: dict[str, Evaluation]
    facts: dict[str, Any]
    arrays: dict[str, Any]


def make_recipe(
    model: Model, data: UserData, *, num_steps: int, rate: float, checkpoints: int, retrains: int, auto: bool
) -> Recipe:
    """SGD with momentum and weight decay, the rate falling linearly to zero; TRAK at two dampings."""
    n, mesh = len(data.train.y), hosts.local_mesh()

    def trainer(sampler: Sampler) -> Trainer:
        tx = optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(optax.linear_schedule(rate, 0.0, num_steps), 0.9))
        return make_trainer(model, objectives.cross_entropy(), tx, sampler, batch_size=BATCH)

    return Recipe(
        data=data,
        train=hosts.place(data.train, mesh),
        model=model,
        trainer=trainer(sampling.shuffled()),
        resampling=trainer(sampling.resampled()),
        options=d3m.default_options(n),
        attribution=d3m.default_attribution(n),
        num_steps=num_steps,
        checkpoints=checkpoints,
        retrains=retrains,
        auto=auto,
        num_groups=2 * len(data.class_names) if auto else len(data.group_names),
        width=hosts.models_at_once(),
        mesh=mesh,
    )


def num_models(recipe: Recipe) -> int:
    """Models that one seed trains, or somewhat fewer where a choice is made twice."""
    tried = len(GRID) + 1 + (len(recipe.attribution.readings) - 1) * (len(d3m.SHARES) + 1)
    return recipe.checkpoints + recipe.retrains * (1 + tried + len(GRID) + 1 + 2 + 1)


def measure(recipe: Recipe, seed: int, progress: Callable[[int], object]) -> runs.Unit:
    """Facts for JSON and arrays of one seed. Where AUTO-D3M refuses, they hold plain training and the targets alone."""
    root, parts = jax.random.key(seed), debias_data.divide(recipe.data, seed)
    data, source, facts, arrays = attribute(root, recipe, parts, progress)
    assert source.kernel is not None  # columns of checkpoints have both
    assert source.right is not None
    retrain = partial(evaluate, root, recipe, data, progress)
    everything = {PLAIN: np.ones(len(parts.train.y), np.float32)}
    losses = retrain(keys.D3M.SCORE, everything)[PLAIN].losses.mean(0)
    scored, suspect = d3m.score(source.columns, losses), selection.label_suspects(source.right)
    if debias_auto.refused([facts["auto"]] if recipe.auto else []):
        nothing = {"score": jnp.zeros_like(scored.scores), "kept": everything[PLAIN] > 0}
        compared = Comparison(everything, retrain(keys.D3M.REPORT, everything), {"reading": 0}, nothing)
    else:
        compared = compare(root, recipe, parts, scored.scores, retrain)
    balanced = baselines.balanced_weights(np.asarray(data.target.group), recipe.num_groups)
    tested = compared.tested | retrain(keys.D3M.REPORT, {TARGETS_ALONE: balanced}, on_targets=True)

    num_groups = len(recipe.data.group_names)
    keep = {name: np.asarray(weights) > 0 for name, weights in compared.weights.items()}
    facts |= source.facts | compared.facts
    facts |= {"checkpoints": recipe.checkpoints, "suspects": suspect.mean()}
    facts["effective_checkpoints"] = group_weighting.effective_checkpoints(source.kernel, scored.group_weights)
    facts["sizes"] = {name: splits.group_sizes(getattr(parts, name), num_groups) for name in PARTS}
    facts["removed"] = {name: 1 - float(np.mean(rows)) for name, rows in keep.items()}
    facts["suspects_removed"] = {
        name: selection.share_of_removed(suspect, rows) for name, rows in keep.items() if not rows.all()
    }
    arrays |= {"columns": source.columns, "group_losses": losses, "suspect": suspect} | compared.arrays
    arrays |= {f"test/{name}": evaluation.test for name, evaluation in tested.items()}
    arrays |= {f"average/{name}": evaluation.average for name, evaluation in tested.items()}
    return facts, {name: np.asarray(value) for name, value in arrays.items()}


def attribute(
    root: Key[Array, ""], recipe: Recipe, parts: Data, progress: Callable[[int], object]
) -> tuple[Data, sources.Columns, dict[str, Any], dict[str, Any]]:
    """The data on the devices, group columns, and facts and arrays of AUTO-D3M.

    With ``auto`` one set of checkpoints serves the split of the targets and the columns of the groups that it makes.
    """
    on_devices = {"width": recipe.width, "mesh": recipe.mesh}
    data = debias_auto.by_pseudo_group(parts) if recipe.auto else parts
    data = hosts.place(data._replace(train=recipe.train), recipe.mesh)
    if not recipe.auto:
        key = jax.random.fold_in(root, keys.D3M.COLUMNS)
        arguments = (data, recipe.num_groups, recipe.num_steps, recipe.attribution)
        source = sources.from_checkpoints(
            key, recipe.model, recipe.trainer, *arguments, checkpoints=recipe.checkpoints, **on_devices
        )
        progress(recipe.checkpoints)
        return data, source, {}, {}
    members = keys.members(root, keys.D3M.COLUMNS, recipe.checkpoints)
    train_keys, projection_keys = (jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(members) for i in (0, 1))
    checkpoints = auto.train_checkpoints(train_keys, recipe.model, recipe.trainer, data, recipe.num_steps, **on_devices)
    progress(recipe.checkpoints)
    key = jax.random.fold_in(jax.random.fold_in(root, keys.D3M.SPLIT), keys.Auto.COLUMNS)
    tau = auto.attribute_targets(key, recipe.model, checkpoints, data, recipe.options)
    num_classes = len(recipe.data.class_names)
    pseudo = auto.split_targets(tau, checkpoints, parts.target.y, num_classes, min_loss_share=debias_auto.LEAST)
    data = data._replace(target=data.target._replace(group=hosts.place(pseudo.group, recipe.mesh)))
    source = auto.attribute_groups(
        projection_keys, recipe.model, checkpoints, data, recipe.num_groups, recipe.attribution, **on_devices
    )
    return data, source, *debias_auto.unit_of(pseudo, parts.target)


def compare(
    root: Key[Array, ""], recipe: Recipe, parts: Data, scores: Float[Array, "r n"], retrain: Callable
) -> Comparison:
    """The candidates of every reading, the one that selection takes, and random removals of as many examples."""
    y, num_classes = parts.train.y, len(recipe.data.class_names)
    tried: dict[str, Any] = {}
    readings: dict[str, int] = {}
    for reading, name in enumerate(recipe.attribution.readings):
        shares = d3m.SHARES if reading else GRID
        more = d3m.candidates(scores[reading], y, num_classes, name=name, shares=shares)
        tried, readings = tried | more, readings | dict.fromkeys(more, reading)
    *curve, rule = list(tried)[: len(GRID) + 1]
    selected = retrain(keys.D3M.SELECT, tried)
    chosen = d3m.choose(selected, parts.selection.group, offsets=False).name

    draws = keys.members(root, keys.D3M.DRAW, recipe.retrains)

    def like(cell, count):
        def draw(key):
            keep = selection.drop_random_like(key, tried[chosen], cell, count)
            # A rare class keeps one example, at random, as it does among the candidates.
            return selection.guard(jax.random.uniform(key, keep.shape), keep, y, num_classes, max_drop=1.0)[0]

        return jax.vmap(draw)(draws)

    random = {RANDOM: like(np.zeros_like(y), 1), MATCHED: like(y, num_classes)}
    reported = {name: tried[name] for name in dict.fromkeys((*curve, rule, chosen))} | random
    tested = retrain(keys.D3M.REPORT, reported)
    methods = {PLAIN: curve[0], RANDOM: RANDOM, MATCHED: MATCHED}
    methods |= {NEGATIVE: rule, TENTH: curve[GRID.index(0.1)], SELECTED: chosen}
    return Comparison(
        {method: reported[name] for method, name in methods.items()},
        {method: tested[name] for method, name in methods.items()},
        {"chosen": chosen, "reading": readings[chosen], "shares": GRID},
        {
            "score": scores,
            "kept": tried[chosen],
            "curve": np.stack([tested[name].test for name in curve]),
            "selection": np.stack([evaluation.selection for evaluation in selected.values()]),
        },
    )


def evaluate(
    root: Key[Array, ""],
    recipe: Recipe,
    data: Data,
    progress: Callable[[int], object],
    family: int,
    weights: Mapping[str, Any],
    *,
    on_targets: bool = False,
) -> dict[str, Evaluation]:
    """Models of one family of keys trained under every weighting, of the training set or of the targets alone."""
    members = keys.members(root, family, recipe.retrains)
    trainer, split = (recipe.resampling, data.target) if on_targets else (recipe.trainer, data.train)
    statics = (recipe.num_groups, recipe.num_steps)

    def fit(model_keys, rows):
        arguments = (recipe.model, trainer, split, data, rows, *statics)
        return d3m.retrain(model_keys, *arguments, width=recipe.width, mesh=recipe.mesh)

    evaluations = {}
    for name, rows in weights.items():  # one after the other: one program serves all, and progress shows
        evaluation = d3m.retrain_each(fit, members, {name: rows})[name]
        evaluations[name] = debias_auto.by_class(evaluation) if recipe.auto else evaluation
        progress(recipe.retrains)
    return evaluations
