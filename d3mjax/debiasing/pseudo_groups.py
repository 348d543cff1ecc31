"""AUTO-D3M: groups of the targets found from their attributions, where nobody knows the true ones.

For the t targets of one class let S be their rows of tau, each over its norm, centred as ``J S`` with J = I - 11'/t.
The component ``a_k = S v_k``, with v_k the k-th right singular vector of J S, is one number a target; a number split in
two makes the groups ``2 y + bit``, and D3M goes on as if they were true (Jain et al., NeurIPS 2024: `leading`, `zero`).

Two changes make it work where targets have the training mix, and the minority is too rare to lead (`experiments/
auto_d3m.py`). Rows come from *undamped* similarity of gradients (TRAK with damping far above 1): the inverse Gram
matrix of TRAK shrinks just the directions that most training examples share, and a shortcut is one. And the number is
not the first component but the combination of the leading few that goes along with the loss (`loss_direction`):
losses alone mistake wrong labels for a group, similarity alone finds groups that are served well.

Which side is the weak one is not decided here: losses weigh the groups, so swapping bits changes nothing. Components
follow from ``t x t`` inner products (`gram`, a block of train examples at a time), or from products with tau alone.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from d3mjax import metrics
from d3mjax.types import AnyArray

ONE_GAUSSIAN = 2 / np.pi
"""Separation of a single Gaussian: near it, no second cluster is to be seen."""


class Components(NamedTuple):
    """Leading principal components of unit rows, by falling variance; the largest entry by size is positive."""

    scores: Float[Array, "t r"]  # S v_k, not centred
    share: Float[Array, "r"]  # of the centred variance
    residual: Float[Array, "r"]  # of the eigenvectors, relative to the first eigenvalue


class PseudoGroups(NamedTuple):
    """Groups of the targets, and per class what speaks for them; NaN where a class was not to be looked at."""

    group: Int[np.ndarray, "t"]  # 2 y + bit; bit 0 throughout a class that stays whole
    score: Float[np.ndarray, "t"]  # what was split
    split: Bool[np.ndarray, "C"]  # whether the class was; none at all: there is no evidence, remove nothing
    explained: Float[np.ndarray, "C"]  # share of variance of the components looked at
    separation: Float[np.ndarray, "C"]  # share of the score's variance between the sides: compare `ONE_GAUSSIAN`
    loss_share: Float[np.ndarray, "C"]  # share of the losses' variance between the sides


def gram(blocks: Iterable[Float[AnyArray, "t _"]]) -> Float[Array, "t t"]:
    """``tau tau'`` from blocks of its columns, one at a time: memory t^2 + t b."""
    products = (jnp.matmul(block, jnp.asarray(block).T, precision="highest") for block in blocks)
    return sum(products, start=jnp.zeros(()))


def components(rows: Float[AnyArray, "t t"], num: int) -> Components:
    """Components of unit rows from their inner products ``rows = tau tau'``: ``a_k = G u_k / sigma_k``.

    G is ``rows`` over the norms on both sides, ``(sigma_k^2, u_k)`` the eigenpairs of ``J G J``. A row of norm 0 stays
    0; where t - 1 < num, the last components are 0.
    """
    rows = jnp.asarray(rows)
    norms = jnp.sqrt(jnp.diagonal(rows))
    inverse = _inverse_norms(norms)
    unit = rows * inverse[:, None] * inverse[None, :]
    centred = unit - unit.mean(0, keepdims=True) - unit.mean(1, keepdims=True) + unit.mean()
    values, vectors = jnp.linalg.eigh(centred)
    pad = max(num - len(values), 0)
    values = jnp.pad(values[::-1], (0, pad))[:num]
    vectors = jnp.pad(vectors[:, ::-1], ((0, 0), (0, pad)))[:, :num]
    return _finish(values, vectors, lambda u: _dot(unit, u), jnp.trace(centred), jnp.zeros(num))


def components_from_products(
    key: Key[Array, ""],
    matvec: Callable[[Float[Array, "n"]], Float[Array, "t"]],
    rmatvec: Callable[[Float[Array, "t"]], Float[Array, "n"]],
    norms: Float[AnyArray, "t"],
    num: int,
    *,
    steps: int = 40,
) -> Components:
    """The same from ``matvec(v) = tau v``, ``rmatvec(u) = tau' u`` and the row norms: neither n t nor t^2 numbers.

    Lanczos with full reorthogonalisation on ``J S S' J``: one product with each a step, memory ``t steps``. Look at
    ``residual``; the first components are there first.
    """
    inverse = _inverse_norms(jnp.asarray(norms))
    unit = lambda u: inverse * matvec(rmatvec(inverse * u))
    centre = lambda u: u - u.mean()
    start = centre(jax.random.normal(key, inverse.shape))
    steps = min(steps, len(inverse) - 1)
    values, vectors, residual = _lanczos(lambda u: centre(unit(centre(u))), start, steps, num)
    rows = rmatvec(inverse)
    trace = (inverse > 0).sum() - jnp.vdot(rows, rows, precision="highest") / len(inverse)
    return _finish(values, vectors, jax.vmap(unit, 1, 1), trace, residual)


def leading(found: Components, losses: Float[AnyArray, "t"]) -> Float[Array, "t"]:
    """The first component: AUTO-D3M as published."""
    return found.scores[:, 0]


def loss_direction(found: Components, losses: Float[AnyArray, "t"]) -> Float[Array, "t"]:
    """Least-squares fit of the losses by all components: within what is similar, towards what fails.

    Components are uncorrelated, so with z_k the k-th at mean 0 and variance 1 it is ``sum_k cov(z_k, loss) z_k``.
    """
    centred = found.scores - found.scores.mean(0, keepdims=True)
    spread = jnp.sqrt((centred**2).mean(0, keepdims=True))
    z = jnp.where(spread > 1e-6, centred / jnp.maximum(spread, 1e-6), 0)
    losses = jnp.asarray(losses, z.dtype)
    return _dot(z, _dot(z.T, losses - losses.mean())) / len(losses)


def zero(score: Float[AnyArray, "t"], losses: Float[AnyArray, "t"]) -> Bool[Array, "t"]:
    """``score > 0``: the authors' code."""
    return jnp.asarray(score) > 0


def median(score: Float[AnyArray, "t"], losses: Float[AnyArray, "t"]) -> Bool[Array, "t"]:
    """``score > median``."""
    return jnp.asarray(score) > jnp.median(jnp.asarray(score))


def tails(score: Float[AnyArray, "t"], losses: Float[AnyArray, "t"], *, q: float = 0.35) -> Bool[Array, "t"]:
    """Of the lowest and the highest share q, the tail with the higher mean loss against everything else."""
    score, losses = jnp.asarray(score), jnp.asarray(losses)
    low, high = score <= jnp.quantile(score, q), score >= jnp.quantile(score, 1 - q)
    return jnp.where(losses.mean(where=low) > losses.mean(where=high), low, high)


def two_means(score: Float[AnyArray, "t"], losses: Float[AnyArray, "t"]) -> Bool[Array, "t"]:
    """The upper side of the cut that leaves the least squares within both sides; exact, in ``t log t``.

    The score centred, c its sum below a cut, k and t - k the counts: squares between are ``c^2 (1/k + 1/(t - k))``.
    Equal scores are never parted; none is on the upper side where all are equal.
    """
    score = jnp.asarray(score)
    order = jnp.sort(score - score.mean())
    below, k = jnp.cumsum(order)[:-1], jnp.arange(1, len(order))
    between = jnp.where(order[1:] > order[:-1], below**2 * (1 / k + 1 / (len(order) - k)), -jnp.inf)
    cut = jnp.argmax(between)
    return (score - score.mean() > (order[cut] + order[cut + 1]) / 2) & jnp.isfinite(between[cut])


def between_share(values: Float[AnyArray, "t"], side: Bool[AnyArray, "t"]) -> Float[Array, ""]:
    """Share of the variance of ``values`` between the two sides: squared correlation with the bit; NaN without any."""
    values, side = jnp.asarray(values), jnp.asarray(side)
    total, share = ((values - values.mean()) ** 2).mean(), side.mean()
    return share * (1 - share) * (values.mean(where=side) - values.mean(where=~side)) ** 2 / total


def pseudo_groups(
    rows: Float[AnyArray, "t t"],
    y: Int[AnyArray, "t"],
    losses: Float[AnyArray, "t"],
    num_classes: int,
    *,
    direction: Callable = loss_direction,
    split: Callable = two_means,
    num: int = 4,
    min_loss_share: float = 0.15,
) -> PseudoGroups:
    """Pseudo-groups ``2 y + bit`` from the targets' inner products ``tau tau'``, labels and losses. Host side.

    ``losses`` is what failing means, say the share of checkpoints that misclassify. ``direction(components, losses)``
    makes one number a target of the ``num`` leading components, ``split(number, losses)`` a bit. A class stays whole
    where the smaller side has fewer than ``max(5, .01 t_y)`` targets. All do where, on the mean over classes, less than
    ``min_loss_share`` of the variance of the losses lies between the sides: a group that is served as well as the rest
    needs no help, and D3M for a chance group removes what the true one needs. All or none, because a class that stays
    whole lends its mean to all its members, and D3M would go by class balance.

    Raises:
      ValueError: labels are beyond ``num_classes``.
      FloatingPointError: rows or losses hold values that are not finite.
    """
    rows, y, losses = np.asarray(rows), np.asarray(y), np.asarray(losses)
    if len(y) and not 0 <= y.min() <= y.max() < num_classes:
        raise ValueError(f"y: found labels {y.min()} to {y.max()}, expected 0 to {num_classes - 1}")
    if not (np.isfinite(rows).all() and np.isfinite(losses).all()):
        raise FloatingPointError("rows, losses: found values that are not finite")
    bit, score = np.zeros(len(y), np.int32), np.zeros(len(y))
    facts = np.full((3, num_classes), np.nan)
    accepted = np.zeros(num_classes, bool)
    for c in range(num_classes):
        members = np.flatnonzero(y == c)
        if len(members) < 10:
            continue
        found = components(rows[np.ix_(members, members)], num)
        number = direction(found, losses[members])
        side = np.asarray(split(number, losses[members]))
        score[members] = number
        facts[:, c] = found.share.sum(), between_share(number, side), between_share(losses[members], side)
        accepted[c] = min(side.sum(), (~side).sum()) >= max(5, 0.01 * len(members))
        bit[members] = side
    accepted &= np.mean(np.where(accepted, np.nan_to_num(facts[2]), 0)) >= min_loss_share
    bit = np.where(accepted[y], bit, 0)
    return PseudoGroups((2 * y + bit).astype(np.int32), score, accepted, *facts)


def attribute_auc(score: Float[AnyArray, "t"], attribute: Bool[AnyArray, "t"]) -> Float[Array, ""]:
    """How well a score tells a true attribute, whatever its sign: 1 perfectly, 1/2 not at all; NaN without both."""
    attribute = jnp.asarray(attribute)
    ones, zeros = attribute.sum(), (~attribute).sum()
    area = (jnp.where(attribute, metrics.rank(score), 0).sum() - ones * (ones + 1) / 2) / (ones * zeros)
    return jnp.maximum(area, 1 - area)


def _dot(a, b):
    return jnp.matmul(a, b, precision="highest")


def _inverse_norms(norms):
    tiny = 1e-6 * jnp.max(norms)
    return jnp.where(norms > tiny, 1 / jnp.where(norms > tiny, norms, 1), 0)


def _finish(values, vectors, product, trace, residual):
    """Components from eigenpairs of ``J S S' J`` and the product ``S S' u``; those of no variance are 0."""
    present = values > 1e-6 * values[0]
    scores = product(vectors) * jnp.where(present, 1 / jnp.sqrt(jnp.where(present, values, 1)), 0)[None, :]
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), 0, keepdims=True), 0)
    return Components(scores * jnp.where(largest < 0, -1, 1), jnp.maximum(values, 0) / trace, residual)


def _lanczos(matvec, start, steps: int, num: int):
    """Leading eigenpairs and residuals of a symmetric matrix; a Krylov space that ends early is padded with zeros."""

    def advance(state, j):
        basis, q = state
        basis = basis.at[j].set(q)
        product = matvec(q)
        w = product
        for _ in range(2):  # once leaves rounding errors of the size of what was taken out
            w = w - _dot(basis.T, _dot(basis, w))
        norm = jnp.linalg.norm(w)
        alive = norm > 1e-6 * jnp.linalg.norm(product)
        return (basis, jnp.where(alive, w / jnp.where(alive, norm, 1), 0)), (jnp.vdot(q, product), norm * alive)

    empty = jnp.zeros((steps, len(start)), start.dtype)
    (basis, _), (alpha, beta) = jax.lax.scan(advance, (empty, start / jnp.linalg.norm(start)), jnp.arange(steps))
    values, vectors = jnp.linalg.eigh(jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1))
    pad = max(num - steps, 0)
    values, vectors = jnp.pad(values[::-1], (0, pad))[:num], jnp.pad(vectors[:, ::-1], ((0, 0), (0, pad)))[:, :num]
    return values, _dot(basis.T, vectors), jnp.abs(beta[-1] * vectors[-1]) / values[0]
