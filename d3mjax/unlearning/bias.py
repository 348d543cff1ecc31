"""Counterfactual bias of a model on pairs, and the influence of train examples on it.

Pairs are examples and the same examples with the protected attribute flipped, ``y`` unchanged; ``p_y`` is the softmax
probability of the true class, ``d_i = p_y(x_i) - p_y(flipped x_i)``:

    counterfactual bias  B = mean |d_i|        signed bias  mean d_i        flip rate: predictions that differ

    influence on bias    dB / dw_k = - grad B' (H + damping)^-1 grad loss_k        positive: including k raises the bias

`metagradients_on_biases` takes the same derivatives exactly, through the training that made the model; `trak_on_biases`
from one checkpoint. Flat predictions have little bias: report accuracy and flip rate beside it. Source: Chen et al.,
"Fast Model Debias with Machine Unlearning" (FMD), NeurIPS 2023.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from d3mjax.attribution import gradients, influence, metagradient, outputs, trak
from d3mjax.types import AnyArray, Model, Pairs, Split, Trainer

Measure = Callable[[Model, PyTree, Pairs], Float[Array, ""]]
"""A number of a model on pairs, such as `counterfactual_bias`: ``(model, variables, pairs) -> Float[]``."""


class Bias(NamedTuple):
    """All measures of a model on pairs; a leading axis where there are several models."""

    absolute: jax.Array  # Float[], counterfactual bias
    signed: jax.Array  # Float[], positive where the unflipped side is favoured
    flips: jax.Array  # Float[], share of pairs whose predictions differ
    accuracy: jax.Array  # Float[], on the unflipped side
    flipped_accuracy: jax.Array  # Float[]

    @property
    def both(self) -> jax.Array:
        """Mean accuracy of the two sides."""
        return (self.accuracy + self.flipped_accuracy) / 2


def differences(model: Model, variables: PyTree, pairs: Pairs) -> Float[Array, "p"]:
    """``p_y(x) - p_y(flipped x)`` of every pair, in float32 at least."""
    return _probability(model, variables, pairs.x, pairs.y) - _probability(model, variables, pairs.flipped, pairs.y)


def counterfactual_bias(model: Model, variables: PyTree, pairs: Pairs) -> Float[Array, ""]:
    """``B = mean |d|``, in 0..1; a pair whose sides are equal has gradient 0."""
    return jnp.abs(differences(model, variables, pairs)).mean()


def signed_bias(model: Model, variables: PyTree, pairs: Pairs) -> Float[Array, ""]:
    """``mean d``, in -1..1: positive where the unflipped side is favoured."""
    return differences(model, variables, pairs).mean()


def measure(model: Model, variables: PyTree, pairs: Pairs) -> Bias:
    """Bias, flip rate, and accuracy of both sides."""
    one, other = (outputs.logits(model, variables, x).argmax(-1) for x in (pairs.x, pairs.flipped))
    d, y = differences(model, variables, pairs), jnp.asarray(pairs.y)
    return Bias(jnp.abs(d).mean(), d.mean(), (one != other).mean(), (one == y).mean(), (other == y).mean())


def gradient_of(
    model: Model,
    measure: Measure,
    variables: PyTree,
    pairs: Pairs,
    *,
    keep: Callable[[str], bool] | None = None,
) -> PyTree:
    """Gradient of a measure by the parameters; with ``keep``, None in place of leaves whose path it rejects."""
    of_params = lambda params: measure(model, {**variables, "params": params}, pairs)
    gradient = jax.grad(of_params)(variables["params"])
    if keep is None:
        return gradient
    return jax.tree.map_with_path(lambda path, a: a if keep(jax.tree_util.keystr(path)) else None, gradient)


def influence_on(
    model: Model,
    measure: Measure,
    variables: PyTree,
    train: Split,
    pairs: Pairs,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    options: influence.Options = influence.Options(),
) -> tuple[Float[Array, "n"], influence.Info]:
    """``d measure / d w_i`` of every train example, by one solve; ``weights`` and options as of `influence.scores`.

    Positive: including the example raises the measure. For D3M's rules, where larger scores stay, take its negative.
    """
    gradient = gradient_of(model, measure, variables, pairs, keep=options.keep)
    gradient = jax.tree.map(lambda a: a[None], gradient)
    problem = influence.problem_of(model, variables, train, weights=weights, options=options)
    columns, info = influence.along(problem, options.inverse, gradient)
    return columns[:, 0], info


def metagradients_on_biases(
    key: Key[Array, ""],
    model: Model,
    trainer: Trainer,
    train: Split,
    pairs: Pairs,
    num_steps: int,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    options: metagradient.Options = metagradient.Options(),
) -> tuple[Float[Array, "n 2"], metagradient.Info]:
    """`influence_on` the counterfactual and the signed bias by derivatives of the training of ``key``: one replay.

    Not checked: see `metagradient.check_trainer` and `metagradient.check`. ``options.target_output`` is not read.
    """
    measures = (counterfactual_bias, signed_bias)
    both = jax.jacrev(lambda variables: jnp.stack([measure(model, variables, pairs) for measure in measures]))
    rows, info = metagradient.derivatives(key, trainer, train, num_steps, both, weights=weights, options=options)
    return rows.T, info


def trak_on_biases(
    key: Key[Array, ""],
    model: Model,
    variables: PyTree,
    train: Split,
    pairs: Pairs,
    *,
    options: trak.Options = trak.Options(),
) -> Float[Array, "n 2"]:
    """`influence_on` the counterfactual and the signed bias by TRAK of one checkpoint: differences of means over sides.

    Outputs of targets are probabilities of the true class, whatever ``options.target_output``.
    """
    favoured, count = differences(model, variables, pairs) >= 0, len(pairs.y)
    # Each bias is the mean over two groups of sides, one counted up, one down; the absolute one swaps some pairs.
    sides = [jnp.where(favoured, 0, 1), jnp.where(favoured, 1, 0), jnp.full(count, 2), jnp.full(count, 3)]
    x, y = jnp.concatenate([pairs.x, pairs.flipped] * 2), jnp.tile(jnp.asarray(pairs.y), 4)
    target = Split(x, y, jnp.concatenate(sides), jnp.arange(4 * count))
    options = options._replace(target_output=probability_output)
    kernel, factor, _ = trak.group_columns(key, model, variables, train, target, 4, options=options)
    columns = kernel * factor[:, None]
    return columns[:, ::2] - columns[:, 1::2]


def probability_output(model: Model, variables: PyTree) -> Callable[[PyTree, Split], Float[Array, ""]]:
    """The probability of the true class as an output of one example, ``(params, example) -> p_y``."""
    margin = gradients.margin_output(model, variables)
    return lambda params, example: jax.nn.sigmoid(margin(params, example))


def removal_count(
    on_bias: Float[AnyArray, "n"], on_signed: Float[AnyArray, "n"], signed: Float[AnyArray, ""]
) -> Int[Array, ""]:
    """How many examples to remove, most biasing first, until the *predicted* signed bias reaches zero.

    Removing k changes the signed bias by minus the sum of their influence on it. At most the number of examples whose
    influence on the bias is positive.
    """
    order = jnp.argsort(-jnp.asarray(on_bias))
    after = signed - jnp.cumsum(jnp.asarray(on_signed)[order])
    crossed = after * jnp.sign(signed) <= 0
    reached = jnp.where(crossed.any(), jnp.argmax(crossed) + 1, len(order))
    return jnp.minimum(reached, (jnp.asarray(on_bias) > 0).sum())


def check_pairs(pairs: Pairs, num_classes: int, *, least: int = 20) -> None:
    """Host-side check of pairs; warns where they are fewer than ``least``, naming the standard error of their bias.

    Raises:
      ValueError: sides of different shapes, labels of another length or outside the classes, no pairs, or two sides
        that are equal everywhere.
    """
    shapes = [jax.tree.map(np.shape, x) for x in (pairs.x, pairs.flipped)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"pairs: found sides of shapes {shapes[0]} and {shapes[1]}, expected the same")
    y, lengths = np.asarray(pairs.y), {len(leaf) for leaf in jax.tree.leaves(pairs.x)}
    if lengths != {len(y)}:
        raise ValueError(f"pairs.y: found {len(y)} labels for {sorted(lengths)} pairs, expected one each")
    if not len(y):
        raise ValueError("pairs: found none, expected some")
    if y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f"pairs.y: found labels {y.min()}..{y.max()}, expected 0..{num_classes - 1}")
    if all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (pairs.x, pairs.flipped)), strict=True)):
        raise ValueError("pairs: found both sides equal everywhere, expected the attribute flipped")
    if len(y) < least:
        # Of numbers in 0..1 the standard deviation is 1/2 at most.
        warnings.warn(
            f"pairs: found {len(y)}, expected at least {least}: the standard error of their bias may be "
            f"{0.5 / len(y) ** 0.5:.2f}, that of {least} is {0.5 / least**0.5:.2f} at most",
            RuntimeWarning,
            stacklevel=2,
        )


def _probability(model: Model, variables, x, y):
    logits = outputs.logits(model, variables, x)
    p = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
    return jnp.take_along_axis(p, jnp.asarray(y)[:, None], axis=1)[:, 0]
