"""Solvers that need a matrix only as a product with a vector: ``(A + damping I)^-1 vector``.

``matvec`` is the product with a symmetric matrix A ``[n n]``; each solver returns the solution, its true relative
residual and the steps it took, and is mapped over vectors by `jax.vmap`. `check` judges residuals on the host.
`cg` and `shifted_cg` are while-loops: they have no reverse-mode derivative.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray, Solve

Matvec = Callable[[Float[Array, "n"]], Float[Array, "n"]]


def cg(
    matvec: Matvec,
    vector: Float[Array, "n"],
    *,
    damping: Float[Array, ""] | float = 0.0,
    rtol: float = 1e-4,
    max_steps: int = 200,
    precondition: Matvec = lambda vector: vector,
    recompute: int = 10,
) -> Solve:
    """Conjugate gradients for a positive definite ``A + damping I``, until ``||r|| <= rtol ||vector||``.

    ``precondition(r)`` is a symmetric guess of the inverse. The residual is computed anew every ``recompute`` steps, as
    the recursive one drifts. Along a direction of negative curvature it stops: the residual stays large. One product a
    step, one for each residual computed anew and one for the residual returned, mapped as unmapped. Reverse-mode
    derivatives do not exist (`lax.while_loop`).
    """
    apply = lambda x: matvec(x) + damping * x
    norm = jnp.linalg.norm(vector)

    # One product an iteration, with p, or with x to compute the residual of the step before anew. A branch for the
    # second would become a select under vmap, and make both products at every step.
    def advance(state):
        x, r, p, rz, convex, anew, step = state
        product = apply(jnp.where(anew, x, p))
        curvature = dot(p, product)
        convex = jnp.where(anew, convex, curvature > 0)
        alpha = jnp.where(convex & ~anew, rz / jnp.where(curvature > 0, curvature, 1), 0)
        x = x + alpha * p
        r = jnp.where(anew, vector - product, r - alpha * product)
        z = precondition(r)
        rz_after = dot(r, z)
        p_after = z + jnp.where(rz > 0, rz_after / jnp.where(rz > 0, rz, 1), 0) * p
        due = ~anew & ((step + 1) % recompute == 0)
        return (
            x,
            r,
            jnp.where(due, p, p_after),
            jnp.where(due, rz, rz_after),
            convex,
            due,
            jnp.where(due, step, step + 1),
        )

    def unfinished(state):
        _, r, _, _, convex, anew, step = state
        return anew | ((jnp.linalg.norm(r) > rtol * norm) & convex & (step < max_steps))

    z = precondition(vector)
    start = (jnp.zeros_like(vector), vector, z, dot(vector, z), norm >= 0, norm < 0, jnp.int32(0))
    x, _, _, _, _, _, steps = jax.lax.while_loop(unfinished, advance, start)
    return Solve(x, relative_residual(apply, x, vector), steps)


def shifted_cg(
    matvec: Callable[[Float[Array, "n"]], Float[Array, "n"]],
    vector: Float[Array, "n"],
    shifts: Float[Array, "l"],
    *,
    rtol: float = 1e-5,
    max_steps: int = 200,
) -> Solve:
    """``(A + shift_l I)^-1 vector`` for all shifts at the cost of one: value ``[l n]``, residual ``[l]``, steps.

    ``A`` is symmetric positive semi-definite and the shifts are positive. Conjugate gradients on the smallest shift,
    whose residuals are parallel to those of every other shift, because Krylov spaces do not change under shifts
    (Jegerlehner, 1996). Each shift stops at a residual ``||r|| <= rtol ||vector||``, all after ``max_steps``. The
    residual returned is the recursive one over ``||vector||``. Reverse-mode derivatives do not exist
    (`lax.while_loop`).
    """
    shifts = jnp.asarray(shifts, vector.dtype)
    base = jnp.min(shifts)
    offset = shifts - base
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


def dense(matvec: Matvec, vector: Float[Array, "n"], *, damping: Float[Array, ""] | float = 0.0) -> Solve:
    """Exact solve by a Cholesky factor of the matrix, formed by n products: for n up to some thousands. No steps."""
    matrix = jax.vmap(matvec)(jnp.eye(vector.shape[0], dtype=vector.dtype))
    matrix = (matrix + matrix.T) / 2 + damping * jnp.eye(vector.shape[0], dtype=vector.dtype)
    x = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix, lower=True), vector)
    return Solve(x, relative_residual(lambda x: dot(matrix, x), x, vector), jnp.int32(0))


def lissa(
    matvec: Matvec,
    vector: Float[Array, "n"],
    *,
    scale: Float[Array, ""] | float,
    depth: int,
    damping: Float[Array, ""] | float = 0.0,
) -> Solve:
    """LiSSA: ``h <- v + h - (A + damping I) h / scale``, ``depth`` times; the value is ``h / scale``.

    Converges for ``scale`` above half the largest eigenvalue of ``A + damping I``; take 1.05 times that (`extremes`),
    and the depth from `lissa_depth`. Source: Agarwal, Bullins and Hazan, 2017.
    """
    apply = lambda x: matvec(x) + damping * x
    h = jax.lax.fori_loop(0, depth, lambda _, h: vector + h - apply(h) / scale, vector)
    return Solve(h / scale, relative_residual(apply, h / scale, vector), jnp.int32(depth))


def lissa_depth(smallest: float, scale: float, *, rtol: float) -> int:
    """Depth of `lissa` after which the error has shrunk to ``rtol``, at ``1 - smallest / scale`` a step.

    ``smallest``: the least eigenvalue, damping included.

    Raises:
      ValueError: unless ``0 < smallest < scale``.
    """
    if not 0 < smallest < scale:
        raise ValueError(f"smallest, scale: found {smallest}, {scale}, expected 0 < smallest < scale")
    return math.ceil(math.log(rtol) / math.log1p(-smallest / scale))


class Lanczos(NamedTuple):
    """Eigenpairs of the matrix on a Krylov space, ascending; ``error``: of each, ``||A v - value v||``."""

    values: jax.Array  # Float[k]
    vectors: jax.Array  # Float[k n], orthonormal rows
    error: jax.Array  # Float[k]


def lanczos(key: Key[Array, ""], matvec: Matvec, like: Float[Array, "n"], num: int) -> Lanczos:
    """Eigenpairs on the Krylov space of ``num`` products from a random start.

    Every vector is orthogonalised twice against all before. Where A has fewer distinct eigenvalues than ``num``, the
    rest are zero vectors of eigenvalue 0. Source: Schioppa et al., 2022 (Arnoldi's iteration, on a symmetric matrix).
    """
    start = jax.random.normal(key, like.shape, like.dtype)
    basis = jnp.zeros((num, *like.shape), like.dtype).at[0].set(start / jnp.linalg.norm(start))
    eps = jnp.finfo(like.dtype).eps

    def advance(k, state):
        basis, products = state
        product = matvec(basis[k])
        products = products.at[k].set(product)
        rest = product
        for _ in range(2):
            rest = rest - dot(basis.T, dot(basis, rest))
        norm = jnp.linalg.norm(rest)
        fresh = norm > 100 * eps * jnp.linalg.norm(product)
        following = jnp.where(fresh, rest / jnp.where(fresh, norm, 1), 0)
        return basis.at[k + 1].set(following, mode="drop"), products

    basis, products = jax.lax.fori_loop(0, num, advance, (basis, jnp.zeros_like(basis)))
    small = dot(basis, products.T)
    values, turn = jnp.linalg.eigh((small + small.T) / 2)
    vectors = dot(turn.T, basis)
    return Lanczos(values, vectors, jnp.linalg.norm(dot(turn.T, products) - values[:, None] * vectors, axis=1))


def arnoldi(space: Lanczos, vector: Float[Array, "n"], *, damping: Float[Array, ""] | float = 0.0, keep: int) -> Solve:
    """Inverse on the ``keep`` eigenpairs of largest value: ``sum_e e (e . v) / (value_e + damping)``, 0 elsewhere.

    The residual is the part of the vector outside their span, plus the error of the eigenpairs.
    """
    values, vectors, error = (a[-keep:] for a in space)
    share = dot(vectors, vector) / (values + damping)
    inside = dot(vectors.T, share * (values + damping))
    norm = jnp.linalg.norm(vector)
    residual = jnp.linalg.norm(vector - inside) + jnp.linalg.norm(share * error)
    return Solve(dot(vectors.T, share), residual / jnp.where(norm > 0, norm, 1), jnp.int32(space.values.shape[0]))


class LowRank(NamedTuple):
    """An approximation ``sum_e value_e e e'`` of a positive semi-definite matrix from below."""

    values: jax.Array  # Float[k], descending
    vectors: jax.Array  # Float[k n], orthonormal rows


def nystrom(key: Key[Array, ""], matvec: Matvec, like: Float[Array, "n"], num: int) -> LowRank:
    """The matrix on ``num`` random directions X, ``A X (X' A X)^-1 X' A``, by as many products side by side.

    It equals A if that has rank ``num`` or less. Source: Frangella, Tropp and Udell, "Randomized Nystroem
    preconditioning", 2023.

    Raises:
      ValueError: ``num`` is not from 1 to the size of the matrix.
    """
    if not 1 <= num <= like.size:
        raise ValueError(f"num: found {num}, expected 1 to {like.size}, the size of the matrix")
    basis, _ = jnp.linalg.qr(jax.random.normal(key, (like.size, num), like.dtype))
    products = jax.vmap(matvec, 1, 1)(basis)
    # A shift as large as rounding keeps X' A X positive definite where the rank is below num.
    shift = jnp.sqrt(like.size) * jnp.finfo(like.dtype).eps * jnp.linalg.norm(products)
    products = products + shift * basis
    inner = dot(basis.T, products)
    factor = jnp.linalg.cholesky((inner + inner.T) / 2)
    span, mix = jnp.linalg.qr(products)
    root = jax.scipy.linalg.solve_triangular(factor, mix.T, lower=True)
    _, singular, turn = jnp.linalg.svd(root)
    return LowRank(jnp.maximum(singular**2 - shift, 0), dot(turn, span.T))


def low_rank_inverse(
    matrix: LowRank, vector: Float[Array, "n"], *, damping: Float[Array, ""] | float
) -> Float[Array, "n"]:
    """``(A + damping I)^-1 vector`` with every eigenvalue outside the span as large as the smallest inside.

    Symmetric and positive definite, so `cg` takes it as ``precondition``: what is left to solve has about the condition
    ``1 + value_k / damping`` of the smallest value.
    """
    rest = matrix.values[-1] + damping
    inside = dot(matrix.vectors, vector)
    return vector / rest + dot(matrix.vectors.T, inside * (1 / (matrix.values + damping) - 1 / rest))


def extremes(key: Key[Array, ""], matvec: Matvec, like: Float[Array, "n"], *, num: int = 32) -> tuple[Array, Array]:
    """Smallest and largest eigenvalue, each approached from inside, by `lanczos`."""
    space = lanczos(key, matvec, like, num)
    real = jnp.linalg.norm(space.vectors, axis=1) > 0.5
    return jnp.min(jnp.where(real, space.values, jnp.inf)), jnp.max(jnp.where(real, space.values, -jnp.inf))


def check(
    residual: Float[AnyArray, "..."],
    steps: Int[AnyArray, "..."],
    *,
    rtol: float,
    smallest: float | None = None,
    damping: float = 0.0,
) -> None:
    """Judge finished solves on the host. ``smallest``: the least eigenvalue of A, if it is known.

    Raises:
      FloatingPointError: a residual is above ``rtol`` or not finite; names a sufficient damping where the matrix is
        indefinite.
    """
    worst = float(np.max(np.asarray(residual)))
    if worst <= rtol:
        return
    count = int(np.max(np.asarray(steps)))
    message = f"inverse product: relative residual {worst:.1e} after {count} steps, asked for {rtol:.1e}"
    if smallest is not None and smallest + damping <= 0:
        raise FloatingPointError(
            f"{message}; the curvature is indefinite, with an eigenvalue near {smallest:.3g} and damping "
            f"{damping:.3g}: take damping above {-1.1 * smallest:.3g}, or the GGN"
        )
    raise FloatingPointError(f"{message}; take more steps, more damping or, for LiSSA, a larger scale")


def relative_residual(apply: Matvec, x: Float[Array, "n"], vector: Float[Array, "n"]) -> Float[Array, ""]:
    """``||vector - apply(x)|| / ||vector||``; 0 if both are 0."""
    norm = jnp.linalg.norm(vector)
    return jnp.linalg.norm(vector - apply(x)) / jnp.where(norm > 0, norm, 1)
