"""Solvers that see a matrix only through its products with vectors, and a step that others are made of."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3mjax.types import Solve


def shifted_cg(
    matvec: Callable[[Float[Array, "n"]], Float[Array, "n"]],
    vector: Float[Array, "n"],
    shifts: Float[Array, "l"],
    *,
    rtol: float = 1e-5,
    max_steps: int = 200,
) -> Solve:
    """``(A + shift_l I)^-1 vector`` for all shifts at the price of one: value ``[l n]``, residual ``[l]``, steps.

    ``A`` is symmetric positive semi-definite and the shifts are positive. Conjugate gradients on the smallest shift,
    whose residuals are parallel to those of every other shift, because Krylov spaces do not change under shifts
    (Jegerlehner, 1996). Each shift stops at a residual ``||r|| <= rtol ||vector||``, all after ``max_steps``: look at
    the residual returned, the recursive one over ``||vector||``. Map it over vectors.
    """
    base = jnp.min(shifts)
    offset = shifts - base
    dot = lambda a, b: jnp.vdot(a, b, precision=jax.lax.Precision.HIGHEST)
    norm2 = dot(vector, vector)

    def advance(state):
        x, directions, zeta_before, zeta, residual, r, p, rr, alpha_before, beta_before, step = state
        product = matvec(p) + base * p
        alpha = rr / dot(p, product)
        bottom = alpha_before * zeta_before * (1 + offset * alpha) + alpha * beta_before * (zeta_before - zeta)
        # A shift that is done stands still: its factor zeta would underflow long before the smallest shift is done.
        active = residual > rtol
        zeta_after = jnp.where(active, zeta * zeta_before * alpha_before / jnp.where(active, bottom, 1), zeta)
        ratio = zeta_after / zeta
        x += jnp.where(active, alpha * ratio, 0)[:, None] * directions
        r -= alpha * product
        rr_before, rr = rr, dot(r, r)
        beta = rr / rr_before
        directions = zeta_after[:, None] * r[None] + (beta * ratio**2)[:, None] * directions
        residual = jnp.where(active, jnp.abs(zeta_after) * jnp.sqrt(rr / norm2), residual)
        return x, directions, zeta, zeta_after, residual, r, r + beta * p, rr, alpha, beta, step + 1

    ones = jnp.ones_like(shifts)
    directions = jnp.broadcast_to(vector, (*shifts.shape, *vector.shape))
    scalars = (jnp.ones((), vector.dtype), jnp.zeros((), vector.dtype), jnp.int32(0))
    residual = jnp.where(norm2 > 0, ones, 0)
    start = (jnp.zeros_like(directions), directions, ones, ones, residual, vector, vector, norm2, *scalars)
    unfinished = lambda state: (jnp.max(state[4]) > rtol) & (state[-1] < max_steps)
    end = jax.lax.while_loop(unfinished, advance, start)
    return Solve(end[0], end[4], end[-1])


def shrink(x: Float[Array, "t n"], by: Float[Array, "#t #n"]) -> Float[Array, "t n"]:
    """Soft thresholding, ``sign(x) max(|x| - by, 0)``: the proximal step of ``by * sum |x|``."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - by, 0)
