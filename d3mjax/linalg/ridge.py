"""Ridge regression for many targets and many penalties from one eigendecomposition.

Objective, for every target ``t`` and every ``lam``, with the bias unpenalised (columns of ``x`` and ``y`` centred):

    minimise over w:  (1/m) ||yc_t - xc w||^2 + lam ||w||^2         (scikit-learn: ``Ridge(alpha=lam * m)``)

`factor` decomposes the smaller of the two Gram matrices, ``S2`` being the eigenvalues of either:

    dual   (m <= n):  xc xc' = U S2 U',   w = xc' U diag(1 / (S2 + lam m)) U' yc
    primal (m >  n):  xc' xc = V S2 V',   w = V diag(1 / (S2 + lam m)) V' xc' yc

and everything else is matrix products with it: weights, predictions, and residuals of rows left out. Where rows lie on
several devices, `factor_moments` and `solve_moments` do the primal form from sums over rows.

Eigenvalues at or below ``(10 + 2 sqrt(r)) eps max(S2)``, ``r = min(m, n)``, are rounding: their directions get weight
zero at every lambda, exactly as for a true zero. So ``lam = 0`` gives the minimum-norm least-squares solution, a
direction in which the rows of ``x`` do not vary gets no weight, and a singular Gram never gives a NaN.

Letters: ``m`` rows, ``n`` columns, ``t`` targets, ``l`` lambdas, ``v`` rows to predict, ``r`` as above. Arithmetic is
in the precision of the inputs, float32 at least, with matrix products at full precision.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree, Shaped

from d3mjax.linalg.lasso import Moments
from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray, Linear


class Factor(NamedTuple):
    """Eigendecomposition of the smaller centred Gram, and the rows that lead from it to weights."""

    x: jax.Array  # Shaped[m n], as given
    mean: jax.Array  # Float[n], of the columns
    eigenvalues: jax.Array  # Float[r], ascending, not negative
    vectors: jax.Array  # Float[r r], columns: U if dual (m <= n), V if primal


def factor(x: Shaped[AnyArray, "m n"], *, dtype: DTypeLike = jnp.float32) -> Factor:
    """Eigendecomposition of the smaller centred Gram of ``x``; ``dtype`` is the least precision, raised to ``x``'s."""
    x = jnp.asarray(x)
    dtype = jnp.promote_types(x.dtype, dtype)
    num_rows, num_columns = x.shape
    mean = jnp.mean(x, axis=0, dtype=dtype)
    # Centre x, not its Gram, though the Gram of 0/1 masks is exact counts: subtracting means of counts rounds whole
    # rows the same way, which moved null eigenvalues up to 20 times as far as rounding of sums over centred x does.
    left = _centred(x, mean)
    gram = dot(left, left.T) if num_rows <= num_columns else dot(left.T, left)
    eigenvalues, vectors = jnp.linalg.eigh(gram)
    return Factor(x, mean, jnp.maximum(eigenvalues, 0), vectors)


def solve(factor: Factor, y: Float[AnyArray, "m t"], lambdas: Float[AnyArray, " l"]) -> Linear:
    """Weights ``[l t n]`` and biases ``[l t]`` of every target at every lambda: ``y ~ x @ weight[l].T + bias[l]``."""
    y, coefficients = _coefficients(factor, y)
    weight = jax.lax.map(lambda f: _expand(factor, (f[:, None] * coefficients).T), _filter(factor, lambdas))
    return Linear(weight, jnp.mean(y, axis=0)[None] - dot(weight, factor.mean))


def solve_each(factor: Factor, y: Float[AnyArray, "m t"], lambdas: Float[AnyArray, " t"]) -> Linear:
    """Weights ``[t n]`` and biases ``[t]``, each target at a lambda of its own."""
    y, coefficients = _coefficients(factor, y)
    weight = _expand(factor, _filter(factor, lambdas) * coefficients.T)
    return Linear(weight, jnp.mean(y, axis=0) - dot(weight, factor.mean))


def factor_moments(moments: Moments) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Eigenvalues, ascending and not negative, and eigenvectors of ``xc' xc / m``. ValueError without a Gram."""
    if moments.gram is None:
        raise ValueError("moments: found rows in place of a Gram, expected the moments of rows summed over devices")
    eigenvalues, vectors = jnp.linalg.eigh(moments.gram * jnp.outer(moments.scale, moments.scale))
    return jnp.maximum(eigenvalues, 0), vectors


def solve_moments(
    factor: tuple[Float[Array, " n"], Float[Array, "n n"]], moments: Moments, lambdas: Float[AnyArray, " l"]
) -> Linear:
    """Weights ``[t l n]`` and biases ``[t l]``: `solve` for the targets of ``moments``, by `factor_moments` of them."""
    eigenvalues, vectors = factor
    coefficients = dot(moments.cross * moments.scale[None], vectors)
    filters = _inverse(eigenvalues, jnp.asarray(lambdas, eigenvalues.dtype))
    weight = dot(coefficients[:, None] * filters[None], vectors.T)
    return Linear(weight, moments.target_mean[:, None] - dot(weight, moments.mean))


def predict(
    factor: Factor, y: Float[AnyArray, "m t"], lambdas: Float[AnyArray, " l"], x: Shaped[AnyArray, "v n"]
) -> Float[Array, "l v t"]:
    """Predictions for new rows ``x`` at every lambda, without weights: ``mean(y) + z diag(1/(S2 + lam m)) c``."""
    y, coefficients = _coefficients(factor, y)
    z = _centred(jnp.asarray(x), factor.mean)
    if _is_dual(factor):
        z = dot(z, _centred(factor.x, factor.mean).T)
    z = dot(z, factor.vectors)
    mean = jnp.mean(y, axis=0, keepdims=True)
    return jax.lax.map(lambda f: mean + dot(z * f[None], coefficients), _filter(factor, lambdas))


def leave_out(
    factor: Factor, y: Float[AnyArray, "m t"], lambdas: Float[AnyArray, " l"], rows: Int[AnyArray, " v"]
) -> Float[Array, "l v t"]:
    """Residuals ``y - prediction`` of ``rows`` (distinct) of a fit to all other rows, from this one factor.

    With ``H`` the hat matrix and ``B`` the rows: ``(I - H)_BB^-1 (y - H y)_B``, which equals refitting bias and weights
    without them *at the same total penalty* ``lam m`` (``m`` counts all rows; the penalty that is optimal for given
    noise does not depend on how many rows there are). ``lam m`` is raised to the tolerance above where it is below.
    """
    rows = jnp.asarray(rows)
    start, left, sign, coefficients, penalties = _leave_out_terms(factor, y, lambdas, rows)
    identity = (sign < 0) * (jnp.eye(rows.shape[0], dtype=left.dtype) - 1 / factor.x.shape[0])

    def residuals(penalty):
        scaled = left / (factor.eigenvalues + penalty)[None]
        values, vectors = jnp.linalg.eigh(identity + sign * dot(scaled, left.T))
        values = jnp.maximum(values, _least(factor, penalty, rows.shape[0]))
        return dot(vectors / values[None], dot(vectors.T, start + sign * dot(scaled, coefficients)))

    return jax.lax.map(residuals, penalties)


def leave_one_out(
    factor: Factor,
    y: Float[AnyArray, "m t"],
    lambdas: Float[AnyArray, " l"],
    *,
    look: Callable[[Float[Array, "m t"]], PyTree] = lambda residuals: residuals,
) -> PyTree:
    """``look(residuals [m t])`` at every lambda, stacked ``[l ...]``: of each row, when the fit sees all others.

    `leave_out` of single rows, all at once. The default keeps all residuals, ``[l m t]``.
    """
    num_rows = factor.x.shape[0]
    start, left, sign, coefficients, penalties = _leave_out_terms(factor, y, lambdas, jnp.arange(num_rows))

    def residuals(penalty):
        scaled = left / (factor.eigenvalues + penalty)[None]
        values = (sign < 0) * (1 - 1 / num_rows) + sign * jnp.sum(scaled * left, axis=1)
        values = jnp.maximum(values, _least(factor, penalty, 1))
        return look((start + sign * dot(scaled, coefficients)) / values[:, None])

    return jax.lax.map(residuals, penalties)


def _leave_out_terms(factor, y, lambdas, rows):
    """``I - H`` and ``(I - H) y`` on ``rows``, both divided by ``lam m`` in the dual, where the division is exact.

    primal:  I - H = I - 1/m - z f z',  z = xc V          dual:  (I - H) / (lam m) = u f u',  u = U - mean(U)

    The dual form is a sum of positive terms, so it stays accurate as ``lam`` goes to 0 and ``H`` to ``I``. Subtracting
    the mean of ``U`` takes out the constant vector, which the bias explains.
    """
    y, coefficients = _coefficients(factor, y)
    penalties = jnp.asarray(lambdas, factor.mean.dtype) * factor.x.shape[0]
    penalties = jnp.maximum(penalties, _tolerance(factor.eigenvalues))
    if _is_dual(factor):
        left = factor.vectors[rows] - jnp.mean(factor.vectors, axis=0, keepdims=True)
        return jnp.zeros_like(y[rows]), left, 1.0, coefficients, penalties
    left = dot(_centred(factor.x[rows], factor.mean), factor.vectors)
    return y[rows] - jnp.mean(y, axis=0, keepdims=True), left, -1.0, coefficients, penalties


def _least(factor: Factor, penalty, num_out: int):
    """The least eigenvalue that ``I - H``, as in `_leave_out_terms`, can have on ``num_out`` rows; below is rounding.

    It is the least one off the constant vector, times ``1 - num_out / m``: what centring leaves of a vector there.
    """
    least = (1 - num_out / factor.x.shape[0]) / (factor.eigenvalues[-1] + penalty)
    return least if _is_dual(factor) else penalty * least


def _is_dual(factor: Factor) -> bool:
    return factor.x.shape[0] <= factor.x.shape[1]


def _centred(x, mean):
    return x.astype(mean.dtype) - mean[None, :]


def _tolerance(eigenvalues):
    size, largest = eigenvalues.shape[0], eigenvalues[-1]
    scale = jnp.where(largest > 0, largest, 1)  # rows of x all equal: every direction is null
    return (10 + 2 * size**0.5) * jnp.finfo(scale.dtype).eps * scale


def _filter(factor: Factor, lambdas):
    """``1 / (S2 + lam m)``, shape ``[l r]``, and 0 where the eigenvalue is rounding."""
    return _inverse(factor.eigenvalues, jnp.asarray(lambdas, factor.mean.dtype) * factor.x.shape[0])


def _inverse(eigenvalues, penalties):
    keep = (eigenvalues > _tolerance(eigenvalues))[None, :]
    return jnp.where(keep, 1 / jnp.where(keep, eigenvalues[None, :] + penalties[:, None], 1), 0)


def _coefficients(factor: Factor, y):
    """``y`` in the precision of the factor, and ``c [r t]``: ``U' yc`` or ``V' xc' yc``."""
    y = jnp.asarray(y, factor.mean.dtype)
    centred = y - jnp.mean(y, axis=0, keepdims=True)
    if not _is_dual(factor):
        centred = dot(_centred(factor.x, factor.mean).T, centred)
    return y, dot(factor.vectors.T, centred)


def _expand(factor: Factor, coefficients):
    """From filtered coefficients ``[t r]`` to weights ``[t n]``."""
    weight = dot(coefficients, factor.vectors.T)
    return dot(weight, _centred(factor.x, factor.mean)) if _is_dual(factor) else weight
