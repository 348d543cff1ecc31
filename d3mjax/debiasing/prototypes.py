"""Diversified prototypical ensembles (DPE): many nearest-prototype heads on frozen features, unlike one another.

A head has one prototype p_c a class and a scale s. With f^ and p^ of unit length, its logits are

    -|s| |f^ - p^_c|        trained with cross-entropy of the logits times ``sharpness``

Each head is fitted to a balanced random subset of its own, beside a penalty on its likeness to the heads before it,

    diversity * mean over classes and earlier heads j of |<p^_c, p^_c^(j)>|

and the ensemble predicts the mean of their softmax outputs. Features of each example are standardised over themselves
first. Published with class-balanced subsets where no group is known, group-balanced ones elsewhere.
Source: To et al., "Diverse prototypical ensembles improve robustness to subpopulation shift", ICML 2025
(arXiv 2505.23027). There the penalty is on prototypes of any length, weighs 1e5, and SGD takes small batches; with unit
prototypes and all rows of a subset in each Adam step, ``diversity`` has no unit.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from d3mjax.debiasing import last_layer
from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray, Model, checked_names


@checked_names
class Options(NamedTuple):
    """Options of `fit`: Adam steps of each head and their rate, and the sharpness of the logits in training."""

    steps: int = 300
    rate: float = 0.01
    sharpness: float = 10.0


class Ensemble(NamedTuple):
    """Prototypes of unit length and scales of all heads."""

    prototypes: jax.Array  # Float[r C p]
    scales: jax.Array  # Float[r], not negative


def fit(
    key: Key[Array, ""],
    features: Float[AnyArray, "n p"],
    y: Int[AnyArray, "n"],
    num_classes: int,
    subsets: Float[AnyArray, "r n"],
    *,
    diversity: Float[Array, ""] | float = 1.0,
    options: Options = Options(),
) -> Ensemble:
    """One head a row of ``subsets``, which weighs the examples (`last_layer.balanced_subsets`); one after the other."""
    rows, y, subsets = _unit(_standard(jnp.asarray(features))), jnp.asarray(y), jnp.asarray(subsets)
    tx = optax.adam(options.rate)

    def loss(params: Any, weights, earlier, count):
        prototypes, scale = params
        logits = -options.sharpness * jnp.abs(scale) * _distances(rows, prototypes)
        fitted = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        likeness = jnp.abs((_unit(prototypes)[None] * earlier).sum(-1)).mean(1).sum()
        return (weights * fitted).sum() / weights.sum() + diversity * likeness / jnp.maximum(count, 1)

    def member(earlier, of_member):
        i, key, weights = of_member
        start: Any = 0.01 * jax.random.normal(key, (num_classes, rows.shape[1]), rows.dtype), jnp.ones((), rows.dtype)

        def step(state: Any, _) -> tuple[Any, None]:
            params, moments = state
            updates, moments = tx.update(jax.grad(loss)(params, weights, earlier, i), moments)
            return (optax.apply_updates(params, updates), moments), None

        (fitted, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=options.steps)
        prototypes, scale = fitted
        prototypes = _unit(prototypes)
        return earlier.at[i].set(prototypes), (prototypes, jnp.abs(scale))

    count = len(subsets)
    none = jnp.zeros((count, num_classes, rows.shape[1]), rows.dtype)  # zeros are like nothing
    each = jnp.arange(count), jax.random.split(key, count), subsets
    return Ensemble(*jax.lax.scan(member, none, each)[1])


def log_probabilities(ensemble: Ensemble, features: Float[AnyArray, "n p"]) -> Float[Array, "n C"]:
    """Logarithm of the mean over heads of their softmax outputs."""
    rows = _unit(_standard(jnp.asarray(features)))
    of_head = lambda prototypes, scale: jax.nn.log_softmax(-scale * _distances(rows, prototypes))
    each = jax.vmap(of_head)(ensemble.prototypes, ensemble.scales)
    return jax.nn.logsumexp(each, axis=0) - jnp.log(len(ensemble.scales))


def on_features(model: Model, path: last_layer.Path, *, microbatch: int | None = 500) -> Model:
    """The model whose logits are `log_probabilities` of the inputs of ``model``'s last layer.

    Its variables are those of ``model`` and, under "ensemble", what `fit` returned.
    """

    def apply(variables: PyTree, x: PyTree, *_: Any, **__: Any):
        below = {name: value for name, value in variables.items() if name != "ensemble"}
        seen = last_layer.features(model, below, x, path, microbatch=microbatch)
        return log_probabilities(variables["ensemble"], seen), variables

    return model._replace(apply=apply)


def _standard(features):
    """Each row over itself to mean zero and deviation one; constant rows to zero."""
    deviation = features.std(1, keepdims=True)
    return (features - features.mean(1, keepdims=True)) / jnp.where(deviation > 0, deviation, 1)


def _unit(rows):
    """Rows over their length, zero where that is zero."""
    square = (rows**2).sum(-1, keepdims=True)
    return rows * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)


def _distances(rows, prototypes):
    """Distances of unit rows to the directions of prototypes; the root has a derivative where both agree, too."""
    square = 2 - 2 * dot(rows, _unit(prototypes).T)
    return jnp.sqrt(jnp.maximum(square, 1e-12))
