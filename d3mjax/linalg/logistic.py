"""Multinomial logistic regression with L1 and L2 penalties, by accelerated proximal steps.

    minimise over W, b:  sum_i w_i loss(W x_i + b, y_i) / sum_i w_i  +  l1 sum |W|  +  (l2 / 2) sum W^2

with the cross-entropy loss in nats; the bias is not penalised. scikit-learn's ``LogisticRegression(C=c)`` is ``1 / (c
sum_i w_i)`` for l1, or for l2 with three classes or more. With two classes both rows of W carry the penalty: l1 then
means the same as for a single row of log-odds, l2 half as much.

Letters: ``m`` rows, ``p`` features, ``C`` classes. Source: Beck and Teboulle, 2009; O'Donoghue and Candes, 2015
(restarts).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from d3mjax.linalg.lasso import shrink
from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray, Linear


class Fit(NamedTuple):
    """Minimiser, violation of its optimality conditions relative to the gradient at zero, and steps taken."""

    head: Linear  # weight Float[C p], bias Float[C]
    residual: jax.Array  # Float[]
    steps: jax.Array  # Int[]


def fit(
    x: Float[AnyArray, "m p"],
    y: Int[AnyArray, "m"],
    num_classes: int,
    *,
    weights: Float[AnyArray, "m"] | None = None,
    l1: Float[Array, ""] | float = 0.0,
    l2: Float[Array, ""] | float = 0.0,
    rtol: float = 1e-4,
    max_steps: int = 5000,
) -> Fit:
    """Multinomial logistic regression: the minimiser of the objective above, and its residual.

    Standardise ``x`` first, or convergence is slow and penalties uneven. Without penalty the minimiser of separable
    rows is at infinity: look at the residual. Rows of weight 0 are left out. In the precision of ``x``, float32 at
    least; costs ``p^3`` once and ``m p C`` a step. Reverse-mode derivatives do not exist (`lax.while_loop`).
    """
    x = jnp.asarray(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    l1, l2 = jnp.asarray(l1, x.dtype), jnp.asarray(l2, x.dtype)
    share = jnp.ones(x.shape[0], x.dtype) if weights is None else jnp.asarray(weights, x.dtype)
    share = share / share.sum()
    rows = jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)  # the last column carries the bias
    one_hot = jax.nn.one_hot(y, num_classes, dtype=x.dtype)
    penalised = jnp.ones(rows.shape[1], x.dtype).at[-1].set(0)
    # The Hessian of logsumexp has no eigenvalue above one half.
    step = 1 / (jnp.linalg.eigvalsh(dot(rows.T, rows * share[:, None]))[-1] / 2 + l2)

    def gradient(w):
        error = jax.nn.softmax(dot(rows, w.T)) - one_hot
        return dot((error * share[:, None]).T, rows) + l2 * penalised[None] * w

    def advance(state):
        w, ahead, momentum, _, count = state
        new = shrink(ahead - step * gradient(ahead), step * l1 * penalised[None])
        later = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        uphill = jnp.vdot(ahead - new, new - w) > 0
        factor, later = jnp.where(uphill, 0, (momentum - 1) / later), jnp.where(uphill, 1, later)
        return new, new + factor * (new - w), later, jnp.abs(ahead - new).max() / step / scale, count + 1

    zero = jnp.zeros((num_classes, rows.shape[1]), x.dtype)
    scale = jnp.maximum(jnp.abs(gradient(zero)).max(), jnp.finfo(x.dtype).tiny)
    start = (zero, zero, jnp.ones((), x.dtype), jnp.full((), jnp.inf, x.dtype), jnp.int32(0))
    w, _, _, residual, count = jax.lax.while_loop(lambda s: (s[3] > rtol) & (s[4] < max_steps), advance, start)
    return Fit(Linear(w[:, :-1], w[:, -1]), residual, count)
