"""The LDS that d3mjax-debias predicts for its group columns before any removal, and what the report makes of it.

The columns of the first division stand for all. Models trained on few random halves (`attribution.trust`) have mean
margins of its groups of scored targets, which the columns predict well or badly.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from d3mjax import keys, metrics
from d3mjax.attribution import outputs, per_checkpoint, trust
from d3mjax.commands.debias_recipe import Recipe, train
from d3mjax.runtime.progress import Progress
from d3mjax.training import masks
from d3mjax.types import AnyArray

LEVEL = 0.3  # predicted LDS below which the order of examples is withdrawn as an explanation
RELIABLE = 0.2  # reliability of halves below which the prediction itself is
HALVES, TRAININGS = 16, 2


def num_models(recipe: Recipe) -> int:
    """Models that are trained for it: none in a quick look, or where labels are numbers."""
    quick = recipe.counts.retrains < 2
    return 0 if quick or recipe.data.num_classes is None else HALVES * TRAININGS


def measure(
    root: Key[Array, ""],
    recipe: Recipe,
    columns: Float[AnyArray, "n G"],
    group: Int[AnyArray, "t"],
    progress: Progress,
) -> dict[str, float]:
    """`trust.Predicted` of the columns as a dict, by the groups of the targets; -1 is none.

    Nothing where nothing is predicted, or where a class is too rare for halves without it to be unlikely.
    """
    known = np.isfinite(columns).all(0)
    n, rarest = len(recipe.data.train.y), np.bincount(recipe.data.train.y).min()
    if not num_models(recipe) or not known.any() or rarest < 20:
        return {}
    halves = np.asarray(masks.fixed_size(jax.random.fold_in(root, keys.Trust.DRAW), np.arange(HALVES), n, n // 2))
    members = jnp.tile(keys.members(root, keys.Trust.TRAIN, TRAININGS), HALVES)
    logits = train(recipe, members, [half for half in halves for _ in range(TRAININGS)], progress=progress)
    y = np.broadcast_to(recipe.data.target.y, (len(logits), len(recipe.data.target.y)))
    margins = np.asarray(outputs.soft_margin(jnp.asarray(logits[:, : y.shape[1]]), y))
    means = margins @ np.asarray(per_checkpoint.group_mix(group, columns.shape[1])[0])[:, known]
    predictions = metrics.subset_predictions(np.asarray(columns)[:, known].T, halves)
    found = trust.predicted_lds(predictions, means.reshape(HALVES, TRAININGS, -1))
    return {name: float(value) for name, value in found._asdict().items()}


def sentences(facts: Mapping[str, Any]) -> Iterator[str]:
    """What the report says of it, from the facts of a unit."""
    if found := facts.get("trust"):
        between = f"{found['low']:.2f} to {found['high']:.2f}"
        if found["reliability"] < RELIABLE:
            yield (
                "Do not read the order of examples.csv as an explanation: models of one half of the training set "
                "differ more than those of different halves do. Lower the learning rate, or train longer."
            )
        elif found["lds"] < LEVEL:
            yield (
                f"Do not read the order of examples.csv as an explanation: on random halves of the training set the "
                f"scores predict the groups with a correlation (LDS) of {found['lds']:.2f} only ({between}; {LEVEL} is "
                "asked). Raise --checkpoints, or train longer."
            )
        else:
            yield (
                f"On random halves of the training set the scores predict the groups with a correlation (LDS) of "
                f"{found['lds']:.2f} ({between})."
            )
