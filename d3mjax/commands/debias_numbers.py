"""The option ``--regression`` of d3mjax-debias: errors of numbers on a division of the targets, in the label's unit.

Numbers have no class offsets. The control that needs no training is a shift, one number added to all predictions
(`regression.shift`); weights and matched removals go by the interval of the label (`debias_divisions.strata`).
"""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from d3mjax.commands.debias_recipe import Recipe
from d3mjax.data import splits
from d3mjax.debiasing import regression, selection
from d3mjax.debiasing.regression import Errors
from d3mjax.types import AnyArray, Data

SHIFT, WEIGHTS = "ERM, shifted", "label weights, by selection"
MATCHED = "label-matched random removal"


def evaluate(recipe: Recipe, data: Data, predictions: Float[AnyArray, "m t 1"]) -> Errors:
    """Errors of m models on a division, from their predictions of standardised labels on the pool."""
    at = [splits.rows_of(part.id, recipe.pool.id) for part in data[1:]]
    judge = partial(_judged, data=_without_features(data), num_groups=recipe.num_groups)
    several = [jax.device_get(judge(*(of_model[i] for i in at))) for of_model in np.asarray(predictions)]
    assert recipe.data.scale is not None
    return regression.in_unit(jax.tree.map(lambda *a: np.stack(a), *several), recipe.data.scale.std)


def shifts(recipe: Recipe, data: Data, predictions: Float[AnyArray, "m t 1"]) -> Float[np.ndarray, "m"]:
    """The shift of each model, of standardised labels, by the targets that score and select."""
    chosen = splits.concatenate(*_without_features(data)[1:3])
    at = splits.rows_of(chosen.id, recipe.pool.id)
    residuals = jnp.asarray(chosen.y)[None] - jnp.asarray(predictions)[:, at, 0]
    one = lambda of_model: regression.shift(of_model, chosen.group, recipe.num_groups)
    return np.asarray(jax.jit(jax.vmap(one))(residuals))


def better_half(evaluations: Mapping[str, Errors], names: list[str], group: AnyArray) -> list[str]:
    """The better half of some candidates by the largest error of a group on the selection split."""
    errors = np.array([np.asarray(evaluations[name].selection).mean(0) for name in names])
    counts = np.bincount(group, minlength=errors.shape[1])
    average = np.where(counts > 0, errors, 0) ** 2 @ counts
    left = set(selection.survivors(-errors[:, None], -average[:, None], -(-len(names) // 2)).tolist())
    return [name for i, name in enumerate(names) if i in left]


def _without_features(data: Data) -> Data:
    return Data(*(part._replace(x=np.zeros((len(part.y), 0), np.float32)) for part in data))


@partial(jax.jit, static_argnames=("num_groups",))
def _judged(target, selected, test, *, data, num_groups):
    return regression.judge(target, selected, test, data, num_groups)
