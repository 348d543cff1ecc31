"""Paths of edits: parameters after each of several steps on pairs, among which other pairs choose.

An edit is a function ``(editable, pairs) -> parameters``, the steps along a leading axis k. `one_shot`, `in_rounds` and
`newton` are Newton steps of `edits`; `fine_tuned` and `dfr` need no curvature: baselines on the same pairs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from d3mjax.attribution.curvatures import Inverse, Problem
from d3mjax.debiasing import last_layer
from d3mjax.types import AnyArray, Model, Pairs
from d3mjax.unlearning import edits
from d3mjax.unlearning.bias import Bias, measure


class Editable(NamedTuple):
    """A model, the objective that some of its parameters minimise, and how the objective's curvature is inverted."""

    model: Model
    variables: PyTree  # of the model; the problem's parameters stand for their part of ``params``
    problem: Problem
    inverse: Inverse


Edit = Callable[[Editable, Pairs], PyTree]
"""``(editable, pairs) -> parameters [k ...]`` after each step of a path."""


def one_shot(
    editable: Editable, pairs: Pairs, *, etas: Float[AnyArray, "k"] | tuple[float, ...], sign: Any = 1.0
) -> PyTree:
    """FMD's step (`edits.from_pairs`) of every size ``etas``, each from the start."""
    start = editable.problem.params
    after = edits.from_pairs(editable.problem, editable.inverse, pairs, sign=sign).params
    step = jax.tree.map(jnp.subtract, after, start)
    return jax.vmap(lambda eta: jax.tree.map(lambda a, b: a + eta * b, start, step))(jnp.asarray(etas))


def in_rounds(
    editable: Editable,
    pairs: Pairs,
    *,
    etas: Float[AnyArray, "k"] | tuple[float, ...],
    sign: Any = 1.0,
    aligned: Any = 1.0,
    keep: Any = None,
) -> PyTree:
    """FMD's steps one after the other, curvature and gradients anew for each; options as in `edits.from_pairs`."""
    options = {"sign": sign, "aligned": aligned, "keep": keep}

    def step(params, eta):
        current = editable.problem._replace(params=params)
        after = edits.from_pairs(current, editable.inverse, pairs, eta=eta, **options).params
        return after, after

    return jax.lax.scan(step, editable.problem.params, jnp.asarray(etas))[1]


def newton(editable: Editable, pairs: Pairs, *, eta: float, rounds: int) -> PyTree:
    """Steps of `edits.newton_on_bias` one after the other, curvature and gradient anew for each."""

    def step(params, _):
        current = editable.problem._replace(params=params)
        variables = edits.merged(editable.variables, params)
        after = edits.newton_on_bias(editable.model, variables, current, editable.inverse, pairs, eta=eta).params
        return after, after

    return jax.lax.scan(step, editable.problem.params, None, length=rounds)[1]


def fine_tuned(editable: Editable, pairs: Pairs, *, rate: float, steps: int, keep: int) -> PyTree:
    """Gradient descent (Adam) on the cross-entropy of both sides; ``keep`` of the ``steps`` are returned."""
    x, y = _both_sides(pairs)
    tx = optax.adam(rate)

    def loss(params):
        logits = editable.model.apply(edits.merged(editable.variables, params), x)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def advance(state, _):
        params, opt_state = state
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    def stretch(state, _):
        state, _ = jax.lax.scan(advance, state, None, length=steps // keep)
        return state, state[0]

    start = (editable.problem.params, tx.init(editable.problem.params))
    return jax.lax.scan(stretch, start, None, length=keep)[1]


def dfr(
    key: Key[Array, ""], editable: Editable, pairs: Pairs, num_classes: int, *, strengths: Float[AnyArray, "k"]
) -> PyTree:
    """DFR on both sides of the pairs, groups being label by side; one head for each inverse strength of its L1.

    The problem is that of `last_layer_of`: its examples are the features of the training set.
    """
    x, y = _both_sides(pairs)
    side = jnp.repeat(jnp.arange(2), len(pairs.y))
    subsets = last_layer.balanced_subsets(key, 2 * y + side, 2 * num_classes, num_subsets=10)
    scale = last_layer.scale_of(editable.problem.examples.x)
    standard = last_layer.standardise(x, scale)
    variables, path = editable.variables, last_layer.find(editable.variables["params"], num_classes)

    def one(strength):
        head = last_layer.average_fits(standard, y, num_classes, subsets, inverse_strength=strength)
        return last_layer.with_head(variables, path, head, scale)["params"]

    return jax.lax.map(one, jnp.asarray(strengths))


def measure_each(model: Model, variables: PyTree, params: PyTree, pairs: Pairs) -> Bias:
    """`bias.measure` after each step of a path ``params [k ...]``; leading axis k."""
    return jax.vmap(lambda one: measure(model, edits.merged(variables, one), pairs))(params)


def least_bias(tried: Bias, start: Bias, *, tolerance: float) -> Int[Array, ""]:
    """The step of least absolute bias that costs at most ``tolerance`` of accuracy over both sides; -1: none."""
    tried = _after(start, tried)
    return jnp.argmin(jnp.where(tried.both >= tried.both[0] - tolerance, tried.absolute, jnp.inf)) - 1


def best_worse_side(tried: Bias, start: Bias) -> Int[Array, ""]:
    """The step of highest accuracy on the side that is worse; -1: none."""
    tried = _after(start, tried)
    return jnp.argmax(jnp.minimum(tried.accuracy, tried.flipped_accuracy)) - 1


def _after(start: Bias, tried: Bias) -> Bias:
    return jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a)[None], jnp.asarray(b)]), start, tried)


def _both_sides(pairs: Pairs):
    return jnp.concatenate([pairs.x, pairs.flipped]), jnp.concatenate([pairs.y, pairs.y])
