"""Gradients of any output, one example at a time, streamed in microbatches; and output functions.

An output function is ``(params, example) -> scalar``: ``params`` any pytree of floats, ``example`` one row of whatever
pytree of arrays is passed as ``examples`` (for the builders here, one row of a `Split`). With ``f_i(params)`` the
output of row i and ``g_i = grad f_i(params)``:

    per_example          g_i                     for every row            [n, ...] per leaf
    weighted_gradients   sum_i mix[i, k] g_i     one reverse pass for k   [k, ...] per leaf
    jvp                  g_i . tangent[k]        one forward pass for k   [n k]

``microbatch`` bounds memory and, up to rounding, changes nothing else; None for `microbatches.default_microbatch`,
which bounds the bytes. Statistics that are not parameters are frozen.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from d3mjax.attribution.microbatches import default_microbatch, map_microbatches, scan_microbatches
from d3mjax.attribution.outputs import soft_margin
from d3mjax.types import Model, Split

Output = Callable[[Any, Any], jax.Array]
"""``(params, example) -> scalar``"""


def per_example(output: Output, params: PyTree, examples: PyTree, *, microbatch: int | None = None) -> PyTree:
    """Gradient of every row: the tree of ``params`` with a leading axis ``n``. Holds ``n * d`` numbers: see `jvp`."""
    rows = lambda part: jax.vmap(jax.grad(output), (None, 0))(params, part)
    microbatch = default_microbatch(output, params, examples) if microbatch is None else microbatch
    return map_microbatches(rows, examples, microbatch=microbatch)


def jvp(
    output: Output, params: PyTree, tangents: PyTree, examples: PyTree, *, microbatch: int | None = None
) -> tuple[Float[Array, "n"], Float[Array, "n k"]]:
    """Outputs ``[n]`` and their derivatives ``[n k]`` along each of ``tangents`` (tree with leading axis ``k``).

    Forward mode over whole microbatches: no per-example gradient exists, memory is that of a forward pass.
    """

    def rows(part):
        values, push = jax.linearize(lambda p: jax.vmap(output, (None, 0))(p, part), params)
        return values, jax.vmap(push)(tangents).T

    microbatch = default_microbatch(output, params, examples) if microbatch is None else microbatch
    return map_microbatches(rows, examples, microbatch=microbatch)


def weighted_gradients(
    output: Output, params: PyTree, mix: Float[Array, "n k"], examples: PyTree, *, microbatch: int | None = None
) -> PyTree:
    """``sum_i mix[i, k] g_i``: the tree of ``params`` with a leading axis ``k``, by ``k`` reverse passes."""

    def add(total, part, valid):
        rows, weight = part
        values, pull = jax.vjp(lambda p: jax.vmap(output, (None, 0))(p, rows), params)
        weight = jnp.where(valid[:, None], weight, 0).astype(values.dtype)
        return jax.tree.map(jnp.add, total, jax.vmap(lambda w: pull(w)[0])(weight.T)), None

    zeros = jax.tree.map(lambda p: jnp.zeros((mix.shape[1], *p.shape), p.dtype), params)
    microbatch = default_microbatch(output, params, examples) if microbatch is None else microbatch
    return scan_microbatches(add, zeros, (examples, mix), microbatch=microbatch)[0]


def subset(output: Output, params: PyTree, keep: Callable[[str], bool]) -> tuple[Output, PyTree]:
    """``output`` as a function of the leaves whose path ``keep`` accepts, and those leaves; the others are constants.

    A path looks like ``"['Dense_1']['kernel']"``, so ``lambda path: "Dense_1" in path`` is that layer alone. The tree
    keeps its structure, with None for leaves that are not chosen.

    Raises:
      ValueError: no leaf is accepted; names all paths.
    """
    chosen = jax.tree.map_with_path(lambda path, a: a if keep(jax.tree_util.keystr(path)) else None, params)
    if not jax.tree.leaves(chosen):
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
        raise ValueError(f"keep: accepts none of the parameters {paths}")

    def of_chosen(chosen, example):
        whole = jax.tree.map(lambda c, p: p if c is None else c, chosen, params, is_leaf=lambda a: a is None)
        return output(whole, example)

    return of_chosen, chosen


def logits_of(model: Model, variables: PyTree) -> Callable:
    """``(params, example) -> logits`` of one example in evaluation mode, all but ``params`` frozen."""
    frozen = {name: value for name, value in variables.items() if name != "params"}

    def logits(params, example: Split):
        return model.apply({"params": params, **frozen}, jax.tree.map(lambda a: a[None], example.x))[0][0]

    return logits


def margin_output(model: Model, variables: PyTree) -> Output:
    """Soft margin ``log(p_y / (1 - p_y))`` of a classifier with two logits or more, text classifiers included."""
    logits = logits_of(model, variables)

    def output(params, example: Split):
        scores = logits(params, example)
        if scores.ndim != 1 or scores.shape[0] < 2:
            raise ValueError(f"margin_output: found logits of shape {scores.shape} per example, expected [C], C >= 2")
        return soft_margin(scores, example.y)

    return output


def negative_loss_output(model: Model, variables: PyTree) -> Output:
    """Minus the cross-entropy, ``log p_y = log sigmoid(margin)``; its gradient is ``(1 - p_y)`` times the margin's."""
    margin = margin_output(model, variables)
    return lambda params, example: jax.nn.log_sigmoid(margin(params, example))


def binary_margin_output(model: Model, variables: PyTree) -> Output:
    """``(2 y - 1) s`` for a model with one logit s and labels 0 and 1."""
    logits = logits_of(model, variables)
    return lambda params, example: (2 * example.y - 1) * logits(params, example).reshape(()).astype(jnp.float32)


def prediction_output(model: Model, variables: PyTree) -> Output:
    """Prediction of a regression with one output; pair it with `residual_factor`, which may be negative."""
    logits = logits_of(model, variables)
    return lambda params, example: logits(params, example).reshape(())


def negative_squared_error_output(model: Model, variables: PyTree) -> Output:
    """Minus half the squared error of a regression; its gradient is the residual times that of the prediction."""
    prediction = prediction_output(model, variables)
    return lambda params, example: -((prediction(params, example) - example.y) ** 2) / 2


def token_margin_output(model: Model, variables: PyTree) -> Output:
    """Mean soft margin over the labelled tokens of a sequence; ``y[s] = -1`` marks tokens that do not count.

    Logits ``[s C]``. A sequence without a labelled token has output 0. No train-side factor is known: `no_factor`.
    """
    logits = logits_of(model, variables)

    def output(params, example: Split):
        counted = example.y >= 0
        margins = soft_margin(logits(params, example), jnp.maximum(example.y, 0))
        return jnp.where(counted, margins, 0).sum() / jnp.maximum(counted.sum(), 1)

    return output


def logistic_factor(values: Float[Array, "n"], examples: PyTree) -> Float[Array, "n"]:
    """``1 - p_i = sigmoid(-f_i)``, minus the derivative of the cross-entropy by the margin; never rounds to 0 early."""
    del examples
    return jax.nn.sigmoid(-values)


def logistic_curvature(values: Float[Array, "n"], examples: PyTree) -> Float[Array, "n"]:
    """``p_i (1 - p_i)``, the second derivative of the cross-entropy by the margin."""
    del examples
    return jax.nn.sigmoid(values) * jax.nn.sigmoid(-values)


def residual_factor(values: Float[Array, "n"], examples: PyTree) -> Float[Array, "n"]:
    """``y_i - f_i``, minus the derivative of half the squared error by the prediction."""
    return examples.y - values


def no_factor(values: Float[Array, "n"], examples: PyTree) -> Float[Array, "n"]:
    """Factor of 1 for every example."""
    del examples
    return jnp.ones_like(values)
