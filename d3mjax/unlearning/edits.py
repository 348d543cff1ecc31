"""Newton steps that edit a model: without some train examples, with others in their place, or along pairs.

    remove               theta + H^-1 sum_k grad loss(z_k)
    replace              theta + H^-1 sum_k [grad loss(z_k) - grad loss(other_k)]
    pairs, no train data theta + eta H^-1 sum_i [grad loss(aligned_i) - grad loss(conflicting_i)]
    Newton on the bias   theta - eta W H^-1 grad B        (W, the sum of weights, makes eta free of n)

H is the curvature of the summed objective at its minimum (`curvatures.Problem`): `refit` the edited parameters first,
or the step also finishes training. The problem's parameters are edited, a last layer or all; `curvatures.ggn`,
`hessian` or `one_vs_rest` are its curvature, `by_last_layer`, `by_dense` or `by_cg` of `inverses` its inverse. Source:
Chen et al., "Fast Model Debias with Machine Unlearning", NeurIPS 2023.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from d3mjax.attribution import curvatures
from d3mjax.attribution.curvatures import Inverse, Problem
from d3mjax.types import AnyArray, Model, Pairs, Split
from d3mjax.unlearning.bias import counterfactual_bias


def loss_gradient(problem: Problem, examples: Split, coefficients: Float[AnyArray, "k"]) -> Float[Array, "d"]:
    """``sum_k coefficients_k grad loss_k`` by the problem's parameters, flat."""
    examples = jax.tree.map(jnp.asarray, examples)

    def total(params):
        each = jax.vmap(lambda example: curvatures.loss(problem, params, example))(examples)
        return (jnp.asarray(coefficients) * each).sum()

    return ravel_pytree(jax.grad(total)(problem.params))[0]


def objective_gradient(problem: Problem) -> Float[Array, "d"]:
    """Gradient of ``sum_i w_i loss_i + (damping / 2) ||theta||^2``, which is 0 at the minimum."""
    return loss_gradient(problem, problem.examples, problem.weights) + problem.damping * ravel_pytree(problem.params)[0]


def stationarity(problem: Problem) -> Float[Array, ""]:
    """Norm of `objective_gradient` over ``sum_i w_i ||grad loss_i||``: 0 at a minimum."""
    grad = jax.grad(lambda params, example: curvatures.loss(problem, params, example))
    norms = jax.vmap(lambda example: jnp.linalg.norm(ravel_pytree(grad(problem.params, example))[0]))(problem.examples)
    return jnp.linalg.norm(objective_gradient(problem)) / (problem.weights * norms).sum()


def check_stationary(stationarity: Float[AnyArray, ""], *, rtol: float = 1e-3) -> None:
    """Raises ValueError where `stationarity` is above ``rtol``: edits need a model at the minimum of its objective."""
    if not float(stationarity) <= rtol:
        raise ValueError(
            f"problem: found a gradient of {float(stationarity):.1e} of the sum of its parts, expected at most "
            f"{rtol:g} of it: refit the edited parameters first (`edits.refit`)"
        )


def refit(problem: Problem, inverse: Inverse, *, steps: int = 20) -> Problem:
    """The problem at the minimum of its objective: damped Newton steps, halved until the gradient shrinks.

    With the GGN of a last layer this converges quadratically; check the `stationarity` that it reaches.
    """
    _, unravel = ravel_pytree(problem.params)

    def step(_, params):
        current = problem._replace(params=params)
        flat, gradient = ravel_pytree(params)[0], objective_gradient(current)
        move = inverse(current)(gradient).value
        shares = 0.5 ** jnp.arange(8.0)
        norm = lambda share: jnp.linalg.norm(objective_gradient(problem._replace(params=unravel(flat - share * move))))
        norms = jax.lax.map(norm, shares)
        share = jnp.where(norms.min() < jnp.linalg.norm(gradient), shares[jnp.argmin(norms)], 0)
        return unravel(flat - share * move)

    return problem._replace(params=jax.lax.fori_loop(0, steps, step, problem.params))


def remove(problem: Problem, inverse: Inverse, rows: Bool[AnyArray, "n"], *, edited: bool = True) -> Problem:
    """The model without the train examples ``rows``, by one step.

    ``edited``: the curvature is that of the remaining examples, which makes the step exact where the loss is quadratic.
    """
    rows = jnp.asarray(rows)
    gradient = loss_gradient(problem, problem.examples, problem.weights * rows)
    rest = problem._replace(weights=jnp.where(rows, 0, problem.weights))
    return _stepped(rest, inverse(rest if edited else problem), gradient)


def replace(
    problem: Problem, inverse: Inverse, rows: Int[AnyArray, "k"], others: Split, *, edited: bool = True
) -> Problem:
    """The model with ``others`` in place of the train examples ``rows``, by one step; ``edited`` as in `remove`."""
    rows = jnp.asarray(rows)
    old = jax.tree.map(lambda a: jnp.asarray(a)[rows], problem.examples)
    weights = problem.weights[rows]
    gradient = loss_gradient(problem, old, weights) - loss_gradient(problem, others, weights)
    put = lambda a, b: jnp.asarray(a).at[rows].set(jnp.asarray(b))
    after = problem._replace(examples=jax.tree.map(put, problem.examples, others))
    return _stepped(after, inverse(after if edited else problem), gradient)


def from_pairs(
    problem: Problem,
    inverse: Inverse,
    pairs: Pairs,
    *,
    eta: Any = 1.0,
    sign: Any = 1.0,
    aligned: Any = 1.0,
    keep: Any = None,
) -> Problem:
    """The step along pairs: ``pairs.x`` are aligned with the bias, ``pairs.flipped`` in conflict with it.

    ``aligned``: weight of the aligned term; with 0 the step only learns the conflicting side. ``sign`` (one number, or
    one a pair) is for controls: -1 must raise the bias, random signs change it little on average. ``keep``: weight of a
    step down the problem's own objective, for models that are not at its minimum and are edited in rounds; None
    takes no such step, and no train data.
    """
    count = len(pairs.y)
    sign = jnp.broadcast_to(jnp.asarray(sign, problem.weights.dtype), (count,))
    unknown = jnp.full(count, -1)
    one, other = (Split(x, jnp.asarray(pairs.y), unknown, unknown) for x in (pairs.x, pairs.flipped))
    gradient = loss_gradient(problem, one, aligned * sign) - loss_gradient(problem, other, sign)
    if keep is not None:
        gradient -= keep * objective_gradient(problem)
    return _stepped(problem, inverse(problem), gradient, eta=eta)


def newton_on_bias(
    model: Model, variables: PyTree, problem: Problem, inverse: Inverse, pairs: Pairs, *, eta: Any = 1.0
) -> Problem:
    """One step down the gradient of the counterfactual bias; ``variables`` are those that the problem was made of."""
    bias = lambda params: counterfactual_bias(model, merged(variables, params), pairs)
    gradient = ravel_pytree(jax.grad(bias)(problem.params))[0]
    return _stepped(problem, inverse(problem), -problem.weights.sum() * gradient, eta=eta)


def merged(variables: PyTree, params: PyTree) -> PyTree:
    """The variables with edited parameters put in; None where a leaf was not edited."""
    put = lambda new, old: old if new is None else new
    return {**variables, "params": jax.tree.map(put, params, variables["params"], is_leaf=lambda a: a is None)}


def _stepped(problem: Problem, solve, gradient: Float[Array, "d"], *, eta: Any = 1.0) -> Problem:
    """The problem at ``theta + eta H^-1 gradient``."""
    flat, unravel = ravel_pytree(problem.params)
    return problem._replace(params=unravel(flat + eta * solve(gradient).value))
