"""Curvature of a training objective as products with vectors, for influence functions and edits.

A `Problem` is the objective ``J = sum_i w_i loss_i(theta)`` at a solution. A curvature is a function of it that
returns ``v -> H v``, a sum over examples without damping: `ggn` (positive semi-definite), `hessian` (indefinite away
from a minimum) or `one_vs_rest`. Source: Martens, 2020 (GGN).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from d3mjax.attribution.microbatches import scan_microbatches
from d3mjax.linalg.iterative import Matvec, relative_residual
from d3mjax.types import Solve, Split


class Problem(NamedTuple):
    """A training objective at its solution; parameters as a flat vector ``[d]``."""

    logits: Callable[[Any, Any], jax.Array]  # (params, example) -> logits [C]
    loss: Callable[[Any, Any], jax.Array]  # (logits [C], y) -> scalar
    params: Any
    examples: Split
    weights: jax.Array  # Float[n]
    damping: jax.Array  # Float[], absolute: relative damping times the sum of weights
    microbatch: int
    curvature: Callable  # (problem) -> matvec, without damping
    key: jax.Array  # of inverses that draw


Inverse = Callable[[Problem], Callable[[Float[Array, "d"]], Solve]]
"""``inverse(problem) -> solve``, and ``solve(v)`` is about ``(H + damping I)^-1 v`` (`inverses`, `ekfac`)."""


def at_once(problem: Problem, apply: Callable) -> Callable[[Float[Array, "d"]], Solve]:
    """The solve of an inverse that is applied at once, ``apply(v)``: no steps, and the residual by the curvature."""
    matvec = problem.curvature(problem)

    def solve(vector) -> Solve:
        x = apply(vector)
        damped = lambda x: matvec(x) + problem.damping * x
        return Solve(x, relative_residual(damped, x, vector), jnp.int32(0))

    return solve


def cross_entropy(logits: Float[Array, "C"], y: Any) -> Float[Array, ""]:
    """``-log softmax(logits)[y]`` of one example in nats, in float32 at least."""
    return -jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))[y]


def squared_error(logits: Float[Array, "C"], y: Any) -> Float[Array, ""]:
    """``||logits - y||^2 / 2`` of one example: regression, ``y`` a number or a vector."""
    return ((logits - y) ** 2).sum() / 2


def loss(problem: Problem, params: PyTree, example: Split) -> Float[Array, ""]:
    """Loss of one example at ``params``."""
    return problem.loss(problem.logits(params, example), example.y)


def ggn(problem: Problem) -> Matvec:
    """``v -> sum_i w_i J_i' L_i J_i v``: J the Jacobian of the logits, L the loss's Hessian by them.

    For cross-entropy ``L = diag(p) - p p'`` of softmax probabilities; positive semi-definite for any convex loss.
    """

    gradient = jax.grad(problem.loss)
    return _through_logits(problem, lambda logits, u, y: jax.jvp(lambda z: gradient(z, y), (logits,), (u,))[1])


def one_vs_rest(problem: Problem) -> Matvec:
    """``v -> sum_i w_i J_i' diag(s_i (1 - s_i)) J_i v`` with ``s = sigmoid(logits)``: a logistic curvature per class.

    FMD's code has it in place of the GGN; it is not the curvature of the cross-entropy that is minimised.
    """
    return _through_logits(problem, lambda logits, u, _: jax.nn.sigmoid(logits) * jax.nn.sigmoid(-logits) * u)


def hessian(problem: Problem) -> Matvec:
    """``v -> sum_i w_i (second derivative of loss_i) v``: forward over reverse."""
    _, unravel = ravel_pytree(problem.params)

    def rows(params, part, weight):
        total = lambda p: (weight * jax.vmap(partial(loss, problem), (None, 0))(p, part)).sum()
        return lambda v: jax.jvp(jax.grad(total), (params,), (v,))[1]

    return partial(_summed, problem, rows, unravel)


def _through_logits(problem: Problem, inner: Callable) -> Matvec:
    """``v -> sum_i w_i J_i' inner(logits_i, J_i v, y_i)``."""
    flat, unravel = ravel_pytree(problem.params)

    def rows(params, part, weight):
        of_all = lambda p: jax.vmap(problem.logits, (None, 0))(p, part)
        logits, push = jax.linearize(of_all, params)
        _, pull = jax.vjp(of_all, params)

        def product(v):
            u = jax.vmap(inner)(logits.astype(flat.dtype), push(v).astype(flat.dtype), part.y)
            u = weight[:, None] * u
            return pull(u.astype(logits.dtype))[0]

        return product

    return partial(_summed, problem, rows, unravel)


def _summed(problem: Problem, rows: Callable, unravel: Callable, vector):
    """Sum over microbatches of ``rows(params, part, weight)(v)``, as a flat vector."""
    v = unravel(vector)

    def add(total, part, valid):
        examples, weight = part
        product = rows(problem.params, examples, jnp.where(valid, weight, 0))(v)
        return jax.tree.map(jnp.add, total, product), None

    zeros = jax.tree.map(jnp.zeros_like, v)
    total, _ = scan_microbatches(add, zeros, (problem.examples, problem.weights), microbatch=problem.microbatch)
    return ravel_pytree(total)[0]
