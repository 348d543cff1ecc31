"""LASSO for many targets at once: the whole path, warm-started, by accelerated proximal steps on the Gram matrix.

With ``z`` the standardised columns of ``x`` (mean 0, variance 1 over the ``m`` rows) and ``yc`` the centred targets,

    minimise over w:  (1 / 2m) ||yc_t - z w||^2 + lam ||w||_1           (scikit-learn: ``Lasso(alpha=lam)`` on ``z``)

for every target ``t``; the bias is not penalised. `moments` reads the rows once; after that one step for all targets is
one product ``[t n] x [n n]``. Where rows are few, ``2m < n``, two products with the rows are cheaper, and the Gram
matrix never exists. `solve` stops each target by its duality gap, a certificate: the objective reached is at most
``gap`` above the minimum. `path` goes down a list of penalties. Both are while-loops, without reverse-mode derivative.

Letters: ``m`` rows, ``n`` columns, ``t`` targets, ``l`` penalties. Arithmetic is in the precision of ``y``, float32 at
least, with matrix products at full precision.

Sources: Beck and Teboulle, 2009 (FISTA); O'Donoghue and Candes, 2015 (restarts); duality gap as in Kim et al., 2007.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray, Linear, checked_names


class Moments(NamedTuple):
    """Sums over the rows of ``x [m n]`` and ``y [m t]`` for the solver; constant columns and targets count as zeros."""

    mean: jax.Array  # Float[n]
    scale: jax.Array  # Float[n], standard deviations; 1 where a column is constant
    gram: jax.Array | None  # Float[n n], z'z / m; or None, and then
    rows: jax.Array | None  # Float[m n], z / sqrt(m)
    largest: jax.Array  # Float[], an upper estimate of the largest eigenvalue of the Gram
    cross: jax.Array  # Float[t n], yc'z / m
    power: jax.Array  # Float[t], mean of yc^2
    target_mean: jax.Array  # Float[t]


class Fit(NamedTuple):
    """Weights on the scale of standardised columns, and a bound of their distance from the minimum."""

    weight: jax.Array  # Float[t n]
    gap: jax.Array  # Float[t], duality gap / mean(yc^2); 0 for a constant target
    steps: jax.Array  # Int[], steps until the last target was done


@checked_names
class Options(NamedTuple):
    """Options of `solve` and `path`, and of the search over penalties of `d3mjax.attribution.datamodels.fit_lasso`."""

    tolerance: float = 1e-5  # of the duality gap, relative to mean(yc^2)
    max_steps: int = 1000
    check_every: int = 8  # steps between two computations of the gap
    step_dtype: DTypeLike | None = None  # of the products between them; None: full precision
    num_lambdas: int = 50  # search only: penalties, in geometric steps
    smallest: float = 1e-3  # search only: the last penalty over the first
    target_block: int = 256  # search only: targets at a time; memory only


def moments(
    x: Shaped[AnyArray, "m n"],
    y: Float[AnyArray, "m t"],
    *,
    keep: Bool[AnyArray, " m"] | None = None,
    block: int = 4096,
    reduce: Callable[[PyTree], PyTree] | None = None,
) -> Moments:
    """Means, deviations, Gram matrix and cross products of the rows that ``keep`` accepts, ``block`` at a time.

    ``x`` of booleans or numbers. ``reduce`` sums over devices that hold other rows; there is always a Gram then.
    A column or target is constant if its deviation is at most the rounding of its mean.
    """
    y = jnp.asarray(y)
    dtype = jnp.promote_types(y.dtype, jnp.float32)
    x, y = jnp.asarray(x), y.astype(dtype)
    num_rows, num_columns = x.shape
    keep = jnp.ones(num_rows, bool) if keep is None else jnp.asarray(keep)
    block = min(block, num_rows)
    few = reduce is None and 2 * num_rows < num_columns  # two products with the rows cost less than one with a Gram
    total = (lambda sums: sums) if reduce is None else reduce
    kept_sum = lambda a: jnp.sum(a, axis=0, dtype=dtype, where=keep[:, None])
    count, sum_x, sum_y = total((jnp.sum(keep, dtype=dtype), kept_sum(x), kept_sum(y)))
    mean, target_mean = sum_x / count, sum_y / count
    y = jnp.where(keep[:, None], y - target_mean[None], 0)

    def add(sums, k):
        first = jnp.minimum(k * block, num_rows - block)  # the last block is moved back, and its known rows are zeros
        rows, targets, fresh = (jax.lax.dynamic_slice_in_dim(a, first, block) for a in (x, y, keep))
        fresh &= first + jnp.arange(block) >= k * block
        rows = jnp.where(fresh[:, None], rows.astype(dtype) - mean[None], 0)
        gram = 0 if few else dot(rows.T, rows)
        return jax.tree.map(jnp.add, sums, (jnp.sum(rows**2, axis=0), dot(targets.T, rows), gram)), None

    zeros = (jnp.zeros(num_columns, dtype), jnp.zeros((y.shape[1], num_columns), dtype))
    zeros = (*zeros, 0 if few else jnp.zeros((num_columns, num_columns), dtype))
    sums, _ = jax.lax.scan(add, zeros, jnp.arange(-(-num_rows // block)))
    squares, cross, gram, power, off = total((*sums, jnp.sum(y**2, axis=0), jnp.sum(y, axis=0)))
    # Rounding of the first sum moves the mean of many rows; for a constant target that is all that is left of it.
    off = off / count
    target_mean, power = target_mean + off, power / count - off**2
    varying = power > (8 * jnp.finfo(dtype).eps * target_mean) ** 2
    cross, power = jnp.where(varying[:, None], cross, 0), jnp.where(varying, power, 0)
    deviation = jnp.sqrt(squares / count)
    varies = deviation > jnp.finfo(dtype).eps * jnp.abs(mean)
    scale = jnp.where(varies, deviation, 1)
    inverse = jnp.where(varies, 1 / scale, 0)
    rows = (x.astype(dtype) - mean[None]) * (inverse * count**-0.5)[None] * keep[:, None] if few else None
    gram = None if few else gram * (inverse[:, None] * inverse[None, :] / count)
    largest = _largest(partial(_times_gram, gram, rows), num_columns, dtype)
    return Moments(mean, scale, gram, rows, largest, cross * (inverse / count)[None], power, target_mean)


def largest_penalty(moments: Moments) -> Float[Array, " t"]:
    """``max_i |z_i' yc| / m``, the smallest penalty at which all weights of a target are zero."""
    return jnp.max(jnp.abs(moments.cross), axis=1)


def penalties(moments: Moments, num: int, *, smallest: float) -> Float[Array, "l t"]:
    """``num`` penalties a target in geometric steps from `largest_penalty` down to ``smallest`` times that."""
    return (
        largest_penalty(moments)[None] * jnp.logspace(0, jnp.log10(smallest), num, dtype=moments.power.dtype)[:, None]
    )


def solve(
    moments: Moments,
    penalty: Float[AnyArray, " t"],
    *,
    start: Float[AnyArray, "t n"] | None = None,
    options: Options = Options(),
) -> Fit:
    """Weights at one penalty per target, by steps until every ``gap <= tolerance * mean(yc^2)``, or ``max_steps``.

    Each target has a momentum of its own, restarted when it points uphill; a finished target is not updated. The gap is
    computed every ``check_every`` steps, from a product at full precision. In between, products are brought up to date
    by that of the *change* of the weights, which ``step_dtype`` may round (None for full precision): its error shrinks
    with the change, so the weights converge to the same point. With bfloat16 this is several times faster where the
    hardware multiplies such matrices (TPUs, GPUs, CPUs with AMX), and slower where it does not. The gap returned is
    the one reached; in float32 it cannot fall much below 1e-6.
    """
    tolerance, max_steps, check_every, step_dtype = options[:4]
    penalty = jnp.asarray(penalty, moments.power.dtype)
    weight = jnp.zeros_like(moments.cross) if start is None else jnp.asarray(start, moments.cross.dtype)
    exact = partial(_times_gram, moments.gram, moments.rows)
    coarse = exact if step_dtype is None else _rounded_product(moments.gram, moments.rows, step_dtype)
    scale = jnp.where(moments.power > 0, moments.power, 1)
    step_size = 1 / moments.largest

    def advance(_, state):
        weight, product, before, product_before, momentum, active = state
        momentum_after = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        beta = ((momentum - 1) / momentum_after)[:, None]
        # The Gram times the extrapolated point is the same combination of two products at hand.
        point = weight + beta * (weight - before)
        gradient = product + beta * (product - product_before) - moments.cross
        new = shrink(point - step_size * gradient, (step_size * penalty)[:, None])
        new = jnp.where(active[:, None], new, weight)
        uphill = jnp.sum((point - new) * (new - weight), axis=1) > 0
        return new, product + coarse(new - weight), weight, product, jnp.where(uphill, 1, momentum_after), active

    def round_of_steps(state):
        running, gap, step = state
        ended = jax.lax.fori_loop(0, check_every, advance, (*running, gap > tolerance))
        weight, _, before, product_before, momentum, _ = ended
        product = exact(weight)
        running = (weight, product, before, product_before, momentum)
        return running, _gap(moments, penalty, weight, product) / scale, step + check_every

    product = exact(weight)
    state = (weight, product, weight, product, jnp.ones_like(penalty))
    unfinished = lambda state: jnp.any(state[1] > tolerance) & (state[2] < max_steps)
    begin = (state, _gap(moments, penalty, weight, product) / scale, jnp.int32(0))
    (weight, *_), gap, steps = jax.lax.while_loop(unfinished, round_of_steps, begin)
    return Fit(weight, gap, steps)


def path(
    moments: Moments,
    penalties: Float[AnyArray, "l t"],
    *,
    look: Callable[[Fit], PyTree] = lambda fit: fit,
    options: Options = Options(),
) -> PyTree:
    """``look(fit)`` at every penalty, stacked ``[l ...]``; each fit starts from the one before.

    The default keeps all weights, ``[l t n]``: pass a function of the fit that keeps less.
    """

    def one(weight, penalty):
        fit = solve(moments, penalty, start=weight, options=options)
        return fit.weight, look(fit)

    return jax.lax.scan(one, jnp.zeros_like(moments.cross), jnp.asarray(penalties, moments.power.dtype))[1]


def shrink(x: Float[Array, "t n"], by: Float[Array, "#t #n"]) -> Float[Array, "t n"]:
    """Soft thresholding, ``sign(x) max(|x| - by, 0)``: the proximal step of ``by * sum |x|``."""
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - by, 0)


def objective(moments: Moments, penalty: Float[AnyArray, " t"], weight: Float[AnyArray, "t n"]) -> Float[Array, " t"]:
    """Objective of every target: ``(1 / 2m) ||yc - z w||^2 + lam ||w||_1``."""
    product = _times_gram(moments.gram, moments.rows, weight)
    squares, _ = _residual(moments, weight, product)
    return squares / 2 + penalty * jnp.sum(jnp.abs(weight), axis=1)


def unstandardise(moments: Moments, weight: Float[AnyArray, "t n"]) -> Linear:
    """Weights on the scale of ``x`` as given: ``w / scale``, with bias ``mean(y) - weight . mean``."""
    weight = jnp.asarray(weight) / moments.scale[None]
    return Linear(weight, moments.target_mean - dot(weight, moments.mean))


def map_targets(fn: Callable[..., PyTree], moments: Moments, *args: Any, block: int) -> PyTree:
    """``fn(moments, *args)`` of ``block`` targets at a time, for bounded memory; ``args`` have a leading axis ``t``."""
    num_targets = moments.power.shape[0]
    count = -(-num_targets // block)

    def blocks(a):  # filled up with targets that are all zero, and done at once
        a = jnp.concatenate([a, jnp.zeros((count * block - num_targets, *a.shape[1:]), a.dtype)])
        return a.reshape(count, block, *a.shape[1:])

    def one(part):
        cross, power, target_mean, *rest = part
        return fn(moments._replace(cross=cross, power=power, target_mean=target_mean), *rest)

    out = jax.lax.map(one, jax.tree.map(blocks, (moments.cross, moments.power, moments.target_mean, *args)))
    return jax.tree.map(lambda a: a.reshape(count * block, *a.shape[2:])[:num_targets], out)


def _times_gram(gram, rows, weight):
    return dot(weight, gram) if rows is None else dot(dot(weight, rows.T), rows)


def _rounded_product(gram, rows, dtype):
    """Products with factors rounded to ``dtype`` and sums kept in the precision of the weights."""
    gram, rows = (None if a is None else a.astype(dtype) for a in (gram, rows))

    def times(a, b, like):
        return jnp.matmul(a.astype(dtype), b, preferred_element_type=like.dtype)

    def product(weight):
        return times(weight, gram, weight) if rows is None else times(times(weight, rows.T, weight), rows, weight)

    return product


def _residual(moments: Moments, weight, product):
    """``||yc - z w||^2 / m`` and ``yc . (yc - z w) / m``."""
    explained = jnp.sum(weight * moments.cross, axis=1)
    squares = moments.power - 2 * explained + jnp.sum(weight * product, axis=1)
    return jnp.maximum(squares, 0), moments.power - explained


def _gap(moments: Moments, penalty, weight, product):
    """Primal minus dual objective, the dual point being the residual scaled until it is feasible."""
    squares, along = _residual(moments, weight, product)
    steepest = jnp.max(jnp.abs(product - moments.cross), axis=1)
    limit = penalty / jnp.maximum(steepest, jnp.finfo(steepest.dtype).tiny)
    s = jnp.clip(along / jnp.maximum(squares, jnp.finfo(squares.dtype).tiny), -limit, limit)
    primal = squares / 2 + penalty * jnp.sum(jnp.abs(weight), axis=1)
    return jnp.maximum(primal - (s * along - s**2 * squares / 2), 0)


def _largest(times_gram, num_columns, dtype, *, steps: int = 100, margin: float = 1.05):
    """Power iteration. It approaches from below, by about ``log(n) / (2 steps)`` at worst, hence the margin."""
    start = jax.random.normal(jax.random.key(0), (1, num_columns), dtype)

    def advance(_, vector):
        product = times_gram(vector)
        norm = jnp.linalg.norm(product)
        return product / jnp.where(norm > 0, norm, 1)

    vector = jax.lax.fori_loop(0, steps, advance, start)
    value = jnp.linalg.norm(times_gram(vector))
    return margin * jnp.where(value > 0, value, 1)
