"""FMD: measure counterfactual bias, find the train examples behind it, and unlearn it by Newton steps.

Pairs are examples and the same examples with the protected attribute flipped, ``y`` unchanged; ``p_y`` is the softmax
probability of the true class, ``d_i = p_y(x_i) - p_y(flipped x_i)``:

    counterfactual bias  B = mean |d_i|        signed bias  mean d_i        flip rate: predictions that differ

    influence on bias    dB / dw_k = - grad B' (H + damping)^-1 grad loss_k        positive: including k raises the bias
    remove               theta + H^-1 sum_k grad loss(z_k)
    replace              theta + H^-1 sum_k [grad loss(z_k) - grad loss(other_k)]
    pairs, no train data theta + eta H^-1 sum_i [grad loss(aligned_i) - grad loss(conflicting_i)]
    Newton on the bias   theta - eta W H^-1 grad B        (W, the sum of weights, makes eta free of n)

H is the curvature of the summed objective at its minimum (`influence.Problem`): `refit` what is edited first, or the
step also finishes training. What is edited are the problem's parameters, a last layer or all; `influence.ggn`,
`hessian` or `one_vs_rest` are its curvature, `by_dense` or `by_cg` its inverse. B is gamed by flat predictions: look at
accuracy and flip rate beside it. Source: Chen et al., "Fast Model Debias with Machine Unlearning", NeurIPS 2023.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from d3mjax.attribution import influence, outputs
from d3mjax.attribution.influence import Inverse, Problem
from d3mjax.types import AnyArray, Model, Pairs, Split


class Bias(NamedTuple):
    """What is measured on pairs; ``accuracy`` is that on the unflipped ones."""

    absolute: jax.Array  # Float[]
    signed: jax.Array  # Float[]
    flips: jax.Array  # Float[]
    accuracy: jax.Array  # Float[]


def differences(model: Model, variables: PyTree, pairs: Pairs) -> Float[Array, " p"]:
    """``p_y(x) - p_y(flipped x)`` of every pair."""
    return _probability(model, variables, pairs.x, pairs.y) - _probability(model, variables, pairs.flipped, pairs.y)


def counterfactual_bias(model: Model, variables: PyTree, pairs: Pairs) -> Float[Array, ""]:
    """``B = mean |d|``; the gradient of a pair without any difference is 0."""
    return jnp.abs(differences(model, variables, pairs)).mean()


def signed_bias(model: Model, variables: PyTree, pairs: Pairs) -> Float[Array, ""]:
    """``mean d``: positive where the unflipped side is favoured."""
    return differences(model, variables, pairs).mean()


def measure(model: Model, variables: PyTree, pairs: Pairs) -> Bias:
    """All that should be looked at together."""
    one, other = (outputs.logits(model, variables, x) for x in (pairs.x, pairs.flipped))
    d = differences(model, variables, pairs)
    right = (one.argmax(-1) == jnp.asarray(pairs.y)).mean()
    return Bias(jnp.abs(d).mean(), d.mean(), (one.argmax(-1) != other.argmax(-1)).mean(), right)


def influence_on(
    model: Model,
    measure: Callable[[Model, PyTree, Pairs], Float[Array, ""]],
    variables: PyTree,
    train: Split,
    pairs: Pairs,
    *,
    weights: Float[AnyArray, " n"] | None = None,
    options: influence.Options = influence.Options(),
) -> tuple[Float[Array, " n"], influence.Info]:
    """``d measure / d w_i`` of every train example, by one solve; arguments as of `influence.along`.

    Positive: including the example raises the measure. For D3M's rules, where larger scores stay, take its negative.
    """
    gradient = bias_gradient(model, measure, variables, pairs, keep=options.keep)
    gradients = jax.tree.map(lambda a: a[None], gradient)
    columns, info = influence.along(model, variables, train, gradients, weights=weights, options=options)
    return columns[:, 0], info


def bias_gradient(
    model: Model,
    measure: Callable[[Model, PyTree, Pairs], Float[Array, ""]],
    variables: PyTree,
    pairs: Pairs,
    *,
    keep: Callable[[str], bool] | None = None,
) -> PyTree:
    """Gradient of a measure by the parameters, those of accepted paths alone where ``keep`` is given."""
    of_params = lambda params: measure(model, {**variables, "params": params}, pairs)
    gradient = jax.grad(of_params)(variables["params"])
    if keep is None:
        return gradient
    return jax.tree.map_with_path(lambda path, a: a if keep(jax.tree_util.keystr(path)) else None, gradient)


def removal_count(
    on_bias: Float[AnyArray, " n"], on_signed: Float[AnyArray, " n"], signed: Float[AnyArray, ""]
) -> Int[Array, ""]:
    """How many examples to remove, most biasing first, until the *predicted* signed bias reaches zero.

    Removing k changes the signed bias by minus the sum of their influence on it. Never more than there are examples
    whose influence on the bias is positive.
    """
    order = jnp.argsort(-jnp.asarray(on_bias))
    after = signed - jnp.cumsum(jnp.asarray(on_signed)[order])
    crossed = after * jnp.sign(signed) <= 0
    reached = jnp.where(crossed.any(), jnp.argmax(crossed) + 1, len(order))
    return jnp.minimum(reached, (jnp.asarray(on_bias) > 0).sum())


def loss_gradient(problem: Problem, examples: Split, coefficients: Float[AnyArray, " k"]) -> Float[Array, " d"]:
    """``sum_k coefficients_k grad loss_k`` by the problem's parameters, flat."""
    examples = jax.tree.map(jnp.asarray, examples)

    def total(params):
        each = jax.vmap(lambda example: influence.loss(problem, params, example))(examples)
        return (jnp.asarray(coefficients) * each).sum()

    return ravel_pytree(jax.grad(total)(problem.params))[0]


def objective_gradient(problem: Problem) -> Float[Array, " d"]:
    """Gradient of ``sum_i w_i loss_i + (damping / 2) ||theta||^2``, which is 0 at the minimum."""
    return loss_gradient(problem, problem.examples, problem.weights) + problem.damping * ravel_pytree(problem.params)[0]


def stepped(problem: Problem, inverse: Inverse, gradient: Float[Array, " d"], *, eta: Any = 1.0) -> Problem:
    """The problem at ``theta + eta H^-1 gradient``."""
    flat, unravel = ravel_pytree(problem.params)
    return problem._replace(params=unravel(flat + eta * inverse(problem)(gradient).value))


def refit(problem: Problem, inverse: Inverse, *, steps: int = 20) -> Problem:
    """The problem at the minimum of its objective: damped Newton steps, halved until the gradient shrinks.

    With the GGN of a last layer this converges quadratically; look at `objective_gradient` after it.
    """

    def step(_, params):
        here = problem._replace(params=params)
        flat, unravel = ravel_pytree(params)
        gradient = objective_gradient(here)
        move = inverse(here)(gradient).value
        shares = 0.5 ** jnp.arange(8.0)
        norm = lambda share: jnp.linalg.norm(objective_gradient(problem._replace(params=unravel(flat - share * move))))
        norms = jax.lax.map(norm, shares)
        share = jnp.where(norms.min() < jnp.linalg.norm(gradient), shares[jnp.argmin(norms)], 0)
        return unravel(flat - share * move)

    return problem._replace(params=jax.lax.fori_loop(0, steps, step, problem.params))


def remove(problem: Problem, inverse: Inverse, rows: Bool[AnyArray, " n"], *, edited: bool = True) -> Problem:
    """The model without the train examples ``rows``, by one step.

    ``edited``: the curvature is that of what remains, which makes the step exact where the loss is quadratic.
    """
    rows = jnp.asarray(rows)
    gradient = loss_gradient(problem, problem.examples, problem.weights * rows)
    rest = problem._replace(weights=jnp.where(rows, 0, problem.weights))
    step = inverse(rest if edited else problem)(gradient).value
    flat, unravel = ravel_pytree(problem.params)
    return rest._replace(params=unravel(flat + step))


def replace(
    problem: Problem, inverse: Inverse, rows: Int[AnyArray, " k"], others: Split, *, edited: bool = True
) -> Problem:
    """The model with ``others`` in place of the train examples ``rows``, by one step; ``edited`` as in `remove`."""
    rows = jnp.asarray(rows)
    old = jax.tree.map(lambda a: jnp.asarray(a)[rows], problem.examples)
    weights = problem.weights[rows]
    gradient = loss_gradient(problem, old, weights) - loss_gradient(problem, others, weights)
    put = lambda a, b: jnp.asarray(a).at[rows].set(jnp.asarray(b))
    after = problem._replace(examples=jax.tree.map(put, problem.examples, others))
    step = inverse(after if edited else problem)(gradient).value
    flat, unravel = ravel_pytree(problem.params)
    return after._replace(params=unravel(flat + step))


def from_pairs(
    problem: Problem,
    inverse: Inverse,
    pairs: Pairs,
    *,
    eta: Any = 1.0,
    sign: Any = 1.0,
    aligned: Any = 1.0,
    rounds: int = 1,
) -> Problem:
    """The data-free step: ``pairs.x`` are aligned with the bias, ``pairs.flipped`` in conflict with it.

    ``rounds``: in how many equal steps, the curvature and gradients anew for each. ``aligned``: weight of the aligned
    term; with 0 the step only learns the conflicting side. ``sign`` (one number, or one a pair) is for controls: -1
    must raise the bias, random signs do nothing on average.
    """
    count = len(pairs.y)
    sign = jnp.broadcast_to(jnp.asarray(sign, problem.weights.dtype), (count,))
    nobody = jnp.full(count, -1)
    one, other = (Split(x, jnp.asarray(pairs.y), nobody, nobody) for x in (pairs.x, pairs.flipped))

    def step(_, params):
        here = problem._replace(params=params)
        gradient = loss_gradient(here, one, aligned * sign) - loss_gradient(here, other, sign)
        return stepped(here, inverse, gradient, eta=eta / rounds).params

    return problem._replace(params=jax.lax.fori_loop(0, rounds, step, problem.params))


def newton_on_bias(
    model: Model,
    measure: Callable[[Model, PyTree, Pairs], Float[Array, ""]],
    variables: PyTree,
    problem: Problem,
    inverse: Inverse,
    pairs: Pairs,
    *,
    eta: Any = 1.0,
    rounds: int = 1,
) -> Problem:
    """Down the gradient of a measure itself, in ``rounds`` steps of ``eta``, curvature and gradient anew for each.

    ``variables`` are those that the problem was made of.
    """
    of_params = lambda params: measure(model, merged(variables, params), pairs)

    def step(_, params):
        here = problem._replace(params=params)
        gradient = ravel_pytree(jax.grad(of_params)(params))[0]
        return stepped(here, inverse, -problem.weights.sum() * gradient, eta=eta).params

    return problem._replace(params=jax.lax.fori_loop(0, rounds, step, problem.params))


def merged(variables: PyTree, params: PyTree) -> PyTree:
    """The variables with edited parameters put in; None where a leaf was not edited."""
    put = lambda new, old: old if new is None else new
    return {**variables, "params": jax.tree.map(put, params, variables["params"], is_leaf=lambda a: a is None)}


def check_pairs(pairs: Pairs, num_classes: int, *, least: int = 20) -> None:
    """Look at pairs on the host; warns where they are fewer than ``least``, with the error that this leaves.

    Raises:
      ValueError: sides of different shapes, labels of another length or outside the classes, no pairs, or two sides
        that are the same everywhere.
    """
    shapes = [jax.tree.map(np.shape, x) for x in (pairs.x, pairs.flipped)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"pairs: found sides of shapes {shapes[0]} and {shapes[1]}, expected the same")
    y, rows = np.asarray(pairs.y), {len(leaf) for leaf in jax.tree.leaves(pairs.x)}
    if rows != {len(y)}:
        raise ValueError(f"pairs.y: found {len(y)} labels for {sorted(rows)} pairs, expected one each")
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


def check_stationary(problem: Problem, *, rtol: float = 1e-3) -> None:
    """Raises ValueError, with the norm of the gradient, unless the problem is at a minimum of its objective.

    The norm counts relative to that of the sum of the gradients' sizes, ``sum_i w_i ||grad loss_i||`` from above.
    """
    gradient = float(jnp.linalg.norm(objective_gradient(problem)))
    grad = jax.grad(lambda params, example: influence.loss(problem, params, example))
    norms = jax.vmap(lambda e: jnp.linalg.norm(ravel_pytree(grad(problem.params, e))[0]))(problem.examples)
    size = float((problem.weights * norms).sum())
    if gradient > rtol * size:
        raise ValueError(
            f"problem: found a gradient of norm {gradient:.2e}, {gradient / size:.1e} of the sum of its parts, "
            f"expected at most {rtol:g} of it: refit the edited parameters first (`unlearning.refit`)"
        )


def line_search(
    etas: Sequence[float], evaluate: Callable[[float], Bias], *, tolerance: float
) -> tuple[float, list[Bias]]:
    """The step of least absolute bias on selection pairs among those that cost at most ``tolerance`` of accuracy.

    ``evaluate(eta)`` is the bias after a step of that size; eta 0, no step, is always a candidate and the yardstick.
    """
    found = [jax.device_get(evaluate(eta)) for eta in (0.0, *etas)]
    allowed = [i for i, bias in enumerate(found) if bias.accuracy >= found[0].accuracy - tolerance]
    best = min(allowed, key=lambda i: float(found[i].absolute))
    return (0.0, *etas)[best], found


def _probability(model: Model, variables, x, y):
    logits = outputs.logits(model, variables, x)
    p = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
    return jnp.take_along_axis(p, jnp.asarray(y)[:, None], axis=1)[:, 0]
