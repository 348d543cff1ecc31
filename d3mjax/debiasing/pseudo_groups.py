"""Pseudo-groups of AUTO-D3M: groups of the targets from their attributions, where true groups are unknown.

For the t targets of one class let S be their rows of tau, each over its norm, centred as ``J S`` with J = I - 11'/t.
The component ``a_k = S v_k``, with v_k the k-th right singular vector of J S, is one number a target. A number split in
two makes the groups ``2 y + bit``, which D3M uses like true groups (Jain et al., NeurIPS 2024: `leading`, `zero`).

Two changes make it work where targets have the training mix and the minority is too rare to lead (the study
`auto_d3m`). Rows come from *undamped* similarity of gradients (TRAK with damping far above 1): the inverse Gram
matrix of TRAK shrinks the directions that most training examples share, and a shortcut is one. And the number is
not the first component but the combination of the leading few that correlates with the loss (`loss_direction`):
losses alone mistake wrong labels for a group, similarity alone finds groups of low loss.

Which side is the weak one does not matter: losses weigh the groups, so swapping bits changes no score. Components
follow from ``t x t`` inner products (`gram`, one block of train examples at a time).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from d3mjax import metrics
from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray

ONE_GAUSSIAN = 2 / np.pi
"""Separation of a single Gaussian: a score near it has no second cluster."""


class Components(NamedTuple):
    """Leading principal components of unit rows, by falling variance; the largest entry by size is positive."""

    scores: Float[Array, "t r"]  # S v_k, not centred
    share: Float[Array, "r"]  # of the centred variance


class PseudoGroups(NamedTuple):
    """Groups of the targets, and the evidence for them by class; NaN for a class that is too small."""

    group: Int[np.ndarray, "t"]  # 2 y + bit; bit 0 throughout a class that stays whole
    score: Float[np.ndarray, "t"]  # the number that was split
    split: Bool[np.ndarray, "C"]  # whether the class was split; remove nothing if none was
    explained: Float[np.ndarray, "C"]  # share of variance of the components in use
    separation: Float[np.ndarray, "C"]  # share of the score's variance between the sides: compare `ONE_GAUSSIAN`
    loss_share: Float[np.ndarray, "C"]  # share of the losses' variance between the sides


def gram(blocks: Iterable[Float[AnyArray, "t _"]]) -> Float[Array, "t t"]:
    """Inner products ``tau tau'`` from blocks ``[t b]`` of the columns of tau: memory t^2 + t b."""
    products = (dot(block, jnp.asarray(block).T) for block in blocks)
    return sum(products, start=jnp.zeros(()))


def components(rows: Float[AnyArray, "t t"], num: int) -> Components:
    """Principal components of unit rows from their inner products ``rows = tau tau'``: ``a_k = G u_k / sigma_k``.

    G is ``rows`` over the norms on both sides, ``(sigma_k^2, u_k)`` the eigenpairs of ``J G J``. A row of norm 0 stays
    0; where t - 1 < num, the last components are 0.
    """
    rows = jnp.asarray(rows)
    norms = jnp.sqrt(jnp.diagonal(rows))
    tiny = 1e-6 * jnp.max(norms)
    inverse = jnp.where(norms > tiny, 1 / jnp.where(norms > tiny, norms, 1), 0)
    unit = rows * inverse[:, None] * inverse[None, :]
    centred = unit - unit.mean(0, keepdims=True) - unit.mean(1, keepdims=True) + unit.mean()
    values, vectors = jnp.linalg.eigh(centred)
    pad = max(num - len(values), 0)
    values = jnp.pad(values[::-1], (0, pad))[:num]
    vectors = jnp.pad(vectors[:, ::-1], ((0, 0), (0, pad)))[:, :num]
    present = values > 1e-6 * values[0]
    scores = dot(unit, vectors) * jnp.where(present, 1 / jnp.sqrt(jnp.where(present, values, 1)), 0)[None, :]
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), 0, keepdims=True), 0)
    return Components(scores * jnp.where(largest < 0, -1, 1), jnp.maximum(values, 0) / jnp.trace(centred))


def leading(parts: Components, losses: Float[AnyArray, "t"]) -> Float[Array, "t"]:
    """First component, the direction of AUTO-D3M as published; ``losses`` are not used."""
    return parts.scores[:, 0]


def loss_direction(parts: Components, losses: Float[AnyArray, "t"]) -> Float[Array, "t"]:
    """Least-squares fit of the losses by all components: the direction of similar targets that fail.

    Components are uncorrelated, so with z_k the k-th at mean 0 and variance 1 it is ``sum_k cov(z_k, loss) z_k``.
    """
    centred = parts.scores - parts.scores.mean(0, keepdims=True)
    spread = jnp.sqrt((centred**2).mean(0, keepdims=True))
    z = jnp.where(spread > 1e-6, centred / jnp.maximum(spread, 1e-6), 0)
    losses = jnp.asarray(losses, z.dtype)
    return dot(z, dot(z.T, losses - losses.mean())) / len(losses)


def zero(score: Float[AnyArray, "t"], losses: Float[AnyArray, "t"]) -> Bool[Array, "t"]:
    """Split at zero, ``score > 0``, as the code of the authors; ``losses`` are not used."""
    return jnp.asarray(score) > 0


def median(score: Float[AnyArray, "t"], losses: Float[AnyArray, "t"]) -> Bool[Array, "t"]:
    """Split at the median of the score; ``losses`` are not used."""
    return jnp.asarray(score) > jnp.median(jnp.asarray(score))


def tails(score: Float[AnyArray, "t"], losses: Float[AnyArray, "t"], *, q: float = 0.35) -> Bool[Array, "t"]:
    """Split off one tail: of the lowest and the highest share q, that with the higher mean loss."""
    score, losses = jnp.asarray(score), jnp.asarray(losses)
    low, high = score <= jnp.quantile(score, q), score >= jnp.quantile(score, 1 - q)
    return jnp.where(losses.mean(where=low) > losses.mean(where=high), low, high)


def two_means(score: Float[AnyArray, "t"], losses: Float[AnyArray, "t"]) -> Bool[Array, "t"]:
    """Split by exact 2-means in one dimension, True above the cut; ``t log t`` operations, ``losses`` are not used.

    The score centred, c its sum below a cut, k and t - k the counts: squares between are ``c^2 (1/k + 1/(t - k))``.
    Equal scores stay together; all are False where all scores are equal.
    """
    score = jnp.asarray(score)
    order = jnp.sort(score - score.mean())
    below, k = jnp.cumsum(order)[:-1], jnp.arange(1, len(order))
    between = jnp.where(order[1:] > order[:-1], below**2 * (1 / k + 1 / (len(order) - k)), -jnp.inf)
    cut = jnp.argmax(between)
    return (score - score.mean() > (order[cut] + order[cut + 1]) / 2) & jnp.isfinite(between[cut])


def between_share(values: Float[AnyArray, "t"], side: Bool[AnyArray, "t"]) -> Float[Array, ""]:
    """Share of the variance of ``values`` between two sides, the squared correlation with the bit; NaN for one side."""
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
    """Pseudo-groups ``2 y + bit`` of the targets from inner products ``tau tau'``, labels and losses, on the host.

    ``losses`` define failure, for example the share of checkpoints that misclassify. ``direction(components, losses)``
    makes one number a target of the ``num`` leading components, ``split(number, losses)`` a bit. A class stays whole
    where the smaller side has fewer than ``max(5, .01 t_y)`` targets. All classes stay whole where, on the mean over
    classes, less than ``min_loss_share`` of the variance of the losses lies between the sides: a group with the losses
    of the rest needs no help, and D3M for a chance group removes examples that the true one needs. All or none, because
    in a class that stays whole all members have the same group, and D3M would follow the class balance.

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
        parts = components(rows[np.ix_(members, members)], num)
        number = direction(parts, losses[members])
        side = np.asarray(split(number, losses[members]))
        score[members] = number
        facts[:, c] = parts.share.sum(), between_share(number, side), between_share(losses[members], side)
        accepted[c] = min(side.sum(), (~side).sum()) >= max(5, 0.01 * len(members))
        bit[members] = side
    accepted &= np.mean(np.where(accepted, np.nan_to_num(facts[2]), 0)) >= min_loss_share
    bit = np.where(accepted[y], bit, 0)
    return PseudoGroups((2 * y + bit).astype(np.int32), score, accepted, *facts)


def attribute_auc(score: Float[AnyArray, "t"], attribute: Bool[AnyArray, "t"]) -> Float[Array, ""]:
    """Area under the ROC curve of a score for a true attribute, of the better sign: 1/2 to 1; NaN for one value."""
    area = metrics.auc(score, attribute)
    return jnp.maximum(area, 1 - area)
