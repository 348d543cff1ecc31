"""Uses of attributions: counterfactuals, data supports, similar examples, leakage, and embeddings.

All functions take ``tau [t n]`` of any source (`datamodels`, `trak`, `influence`, `metagradient`): positive where
including the train example raises the target's output, in units of the output per example. A linear attribution
predicts that removing the set R changes the output of target z by ``-sum_{i in R} tau[z, i]``; only retraining can
confirm it.

Sources: Ilyas et al., "Datamodels: Predicting Predictions from Training Data", 2022, sections 4 and 5; the comparison
of two learners is that of Shah, Park, Ilyas and Madry, "ModelDiff", 2023.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from d3mjax import metrics
from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray


class Agreement(NamedTuple):
    """Agreement of predicted and actual effects in one pool; NaN where either is constant."""

    pearson: jax.Array  # Float[]
    spearman: jax.Array  # Float[]
    slope: jax.Array  # Float[], of the least-squares line of actual on predicted, with intercept; below 1: overstated


class Neighbours(NamedTuple):
    """Train examples of each target, the most extreme weight first."""

    id: jax.Array  # Int[t k]
    weight: jax.Array  # Float[t k]


class Leakage(NamedTuple):
    """Dependence of each target on one train example."""

    example: jax.Array  # Int[t], index of the largest weight
    weight: jax.Array  # Float[t], that weight
    share: jax.Array  # Float[t], of the sum of positive weights; 0 where no weight is positive
    lead: jax.Array  # Float[t], over the second largest


class Retrieval(NamedTuple):
    """Precision and recall among the 1, 2, ..., t highest scores."""

    precision: jax.Array  # Float[t], share of relevant ones among the highest k
    recall: jax.Array  # Float[t], share of all relevant ones among the highest k; NaN if none is relevant
    average_precision: jax.Array  # Float[], mean precision at the ranks of the relevant ones; NaN if there is none


class Components(NamedTuple):
    """Principal components of rows, the largest variance first; the largest coordinate in size is positive."""

    direction: jax.Array  # Float[r n], orthonormal
    coordinate: jax.Array  # Float[t r], of the centred rows
    explained: jax.Array  # Float[r], share of the variance


class Difference(NamedTuple):
    """Components that one learner relies on and another does not, the most distinguishing first."""

    components: Components  # of the residual
    in_first: jax.Array  # Float[r], share of the variance of the first learner's normalised rows
    in_second: jax.Array  # Float[r], the same for the second


def largest(scores: Num[AnyArray, "*s n"], count: int | Int[AnyArray, "*s"]) -> Bool[Array, "*s n"]:
    """Mask of the ``count`` largest entries of each row, ties by position; none for a count of 0 or below.

    Of ``tau`` the most helpful examples, of ``-tau`` the most harmful ones, of uniform noise a random subset.

    >>> import numpy as np
    >>> from d3mjax.attribution import effects
    >>> print(effects.largest(np.array([[0.1, 0.5, -0.2], [0.0, -1.0, 2.0]]), 1))
    [[False  True False]
     [False False  True]]
    """
    order = jnp.argsort(-jnp.asarray(scores), axis=-1, stable=True)
    return jnp.argsort(order, axis=-1) < jnp.broadcast_to(count, order.shape[:-1])[..., None]


def predicted_effects(tau: Float[AnyArray, "t n"], removed: Bool[AnyArray, "t *k n"]) -> Float[Array, "t *k"]:
    """Predicted change of each target's output when sets of its own are removed: ``-sum_{i in R} tau[z, i]``.

    >>> import numpy as np
    >>> from d3mjax.attribution import effects
    >>> tau = np.array([[1.0, 2.0, -4.0]])
    >>> print(effects.predicted_effects(tau, np.array([[[True, True, False], [False, False, True]]])))
    [[-3.  4.]]
    """
    tau = jnp.asarray(tau)
    return -jnp.einsum("tn,t...n->t...", tau, jnp.asarray(removed, tau.dtype), precision="highest")


def agreement(predicted: Float[AnyArray, "*s"], actual: Float[AnyArray, "*s"]) -> Agreement:
    """Correlations of predicted and actual effects in one pool, and the slope of actual on predicted.

    >>> import numpy as np
    >>> from d3mjax.attribution import effects
    >>> result = effects.agreement(np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 4.0]))
    >>> round(float(result.pearson), 3), round(float(result.slope), 3)
    (1.0, 2.0)
    """
    x, y = jnp.ravel(jnp.asarray(predicted)), jnp.ravel(jnp.asarray(actual))
    spearman = metrics.spearman(x, y)
    x, y = x - jnp.mean(x), y - jnp.mean(y)
    xy, xx, yy = jnp.sum(x * y), jnp.sum(x * x), jnp.sum(y * y)
    return Agreement(xy / jnp.sqrt(xx * yy), spearman, xy / xx)


def support_sizes(
    tau: Float[AnyArray, "t n"], margins: Float[AnyArray, "t"], *, inflate: float = 1.0
) -> Int[Array, "t"]:
    """Data support: number of most helpful examples whose removal is predicted to use up a target's margin.

    The smallest k with ``margins[z] - (sum of the k largest tau[z]) <= 0``, times ``inflate``, rounded up, at most n.
    0 where the margin is not positive to begin with, -1 where removing all positive weights is not enough.

    The k largest of many noisy weights are too large on average, so this k tends to be too small: see
    `crossed_support_sizes`.

    >>> import numpy as np
    >>> from d3mjax.attribution import effects
    >>> effects.support_sizes(np.array([[0.5, 0.75, 0.25, -1.0]] * 3), np.array([1.0, -0.2, 9.0])).tolist()
    [2, 0, -1]
    """
    return _first_below(jnp.maximum(-jnp.sort(-jnp.asarray(tau), axis=-1), 0), margins, inflate)


def crossed_support_sizes(
    halves: Float[AnyArray, "2 t n"], margins: Float[AnyArray, "t"], *, inflate: float = 1.0
) -> Int[Array, "t"]:
    """`support_sizes` without the winner's curse, from datamodels fitted to two disjoint halves of the models.

    Each half ranks the examples by its weights, and the other half's weights are summed in that order; the mean of both
    takes the place of the sorted weights. Weights after the half's last positive one count as 0.
    """
    halves = jnp.asarray(halves)
    order = jnp.argsort(-halves, axis=-1, stable=True)
    worth = jnp.take_along_axis(halves[::-1], order, axis=-1)
    positive = jnp.take_along_axis(halves, order, axis=-1) > 0
    return _first_below(jnp.where(positive, worth, 0).mean(0), margins, inflate)


def _first_below(steps, margins, inflate):
    """Number of steps until a margin is used up: 0 if none is needed, -1 if all are not enough."""
    margins, n = jnp.asarray(margins), steps.shape[-1]
    gone = jnp.cumsum(steps, axis=-1) >= margins[:, None]
    count = jnp.where(gone.any(-1), 1 + jnp.argmax(gone, axis=-1), n + 1)
    # Lifted by rounding, 1.2 * 5 would become 7.
    inflated = jnp.minimum(jnp.ceil(inflate * count - 1e-3).astype(count.dtype), n)
    return jnp.where(margins <= 0, 0, jnp.where(count > n, -1, inflated))


def runner_up(logits: Float[AnyArray, "t C"], y: Int[AnyArray, "t"]) -> Int[Array, "t"]:
    """Most likely wrong class of each target."""
    label = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    return jnp.argmax(jnp.where(label, -jnp.inf, jnp.asarray(logits)), axis=-1)


def relabelled(y: Int[AnyArray, "n"], chosen: Bool[AnyArray, "t n"], label: Int[AnyArray, "t"]) -> Int[Array, "t n"]:
    """Training labels for each target, where the chosen examples have the target's ``label``, such as its runner-up."""
    return jnp.where(jnp.asarray(chosen), jnp.asarray(label)[:, None], jnp.asarray(y)[None, :])


def neighbours(tau: Float[AnyArray, "t n"], ids: Int[AnyArray, "n"], *, num: int) -> tuple[Neighbours, Neighbours]:
    """Most similar train examples (largest weights) and most opposed ones (smallest) of each target, by id.

    Of ``coordinate.T`` of principal components, with the ids of targets: the two ends of each component.

    >>> import numpy as np
    >>> from d3mjax.attribution import effects
    >>> similar, opposed = effects.neighbours(np.array([[0.1, -3.0, 2.0]]), np.array([7, 8, 9]), num=1)
    >>> similar.id.tolist(), opposed.id.tolist()
    ([[9]], [[8]])
    """
    similar, opposed = (jax.lax.top_k(sign * jnp.asarray(tau), num) for sign in (1, -1))
    ids = jnp.asarray(ids)
    return Neighbours(ids[similar[1]], similar[0]), Neighbours(ids[opposed[1]], -opposed[0])


def specific(tau: Float[AnyArray, "t n"]) -> Float[Array, "t n"]:
    """Weights over the root mean square of their train example's weights; 0 where all of them are 0.

    Some examples matter to all targets, such as those of a small group; the quotient shows those specific to one.
    """
    tau = jnp.asarray(tau)
    scale = jnp.sqrt(jnp.mean(tau**2, axis=0, keepdims=True))
    return tau / jnp.where(scale > 0, scale, 1)


def leakage(tau: Float[AnyArray, "t n"]) -> Leakage:
    """Largest weight of each target, its share and its lead, which are high for near-duplicates.

    They separate best on `specific` weights. Use datamodels of small subsets: an example with many others like it
    hardly matters to its copy. Source: Ilyas et al., 2022, by the largest weight.

    >>> import numpy as np
    >>> from d3mjax.attribution import effects
    >>> result = effects.leakage(np.array([[0.25, 3.0, -1.0, 0.75]]))
    >>> result.example.tolist(), result.share.tolist(), result.lead.tolist()
    ([1], [0.75], [2.25])
    """
    (largest, second), (example, _) = (jnp.moveaxis(a, -1, 0) for a in jax.lax.top_k(jnp.asarray(tau), 2))
    positive = jnp.sum(jnp.maximum(jnp.asarray(tau), 0), axis=-1)
    share = jnp.where(positive > 0, largest / positive, 0)
    return Leakage(example, largest, share, largest - second)


def retrieval(scores: Float[AnyArray, "t"], relevant: Bool[AnyArray, "t"]) -> Retrieval:
    """Precision and recall of relevant targets among the highest scores, ties by position.

    >>> import numpy as np
    >>> from d3mjax.attribution import effects
    >>> effects.retrieval(np.array([0.9, 0.1, 0.5]), np.array([True, False, True])).precision.tolist()[:2]
    [1.0, 1.0]
    """
    ranked = jnp.asarray(relevant)[jnp.argsort(-jnp.asarray(scores), stable=True)]
    count = jnp.cumsum(ranked)
    precision = count / jnp.arange(1, len(ranked) + 1)
    return Retrieval(precision, count / count[-1], jnp.sum(precision * ranked) / count[-1])


def normalised(rows: Float[AnyArray, "t n"]) -> Float[Array, "t n"]:
    """Rows of unit length, the embedding of targets (of ``tau.T``: of train examples); a row of zeros stays one."""
    rows = jnp.asarray(rows)
    length = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(length > 0, length, 1)


def pca(rows: Float[AnyArray, "t n"], *, num: int) -> Components:
    """First ``num`` principal components of rows, from the eigenvectors of the Gram matrix ``[t t]``.

    Components that explain less than the rounding of that matrix (1e-7 of the variance in float32) are noise.

    Raises:
      ValueError: ``num`` is not in 1..min(t - 1, n), as many as centred rows can have.

    >>> import numpy as np
    >>> from d3mjax.attribution import effects
    >>> components = effects.pca(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]), num=1)
    >>> components.direction.shape, round(float(components.explained[0]), 3)
    ((1, 2), 1.0)
    """
    most = min(rows.shape[0] - 1, rows.shape[1])
    if not 1 <= num <= most:
        raise ValueError(f"num: found {num}, expected 1 to {most} components of {rows.shape[0]} rows")
    centred = jnp.asarray(rows) - jnp.mean(jnp.asarray(rows), axis=0, keepdims=True)
    variance, left = jnp.linalg.eigh(dot(centred, centred.T))
    variance, left = variance[::-1], left[:, ::-1][:, :num]
    peak = jnp.take_along_axis(left, jnp.argmax(jnp.abs(left), axis=0)[None], axis=0)
    left = left * jnp.sign(peak)
    length = jnp.sqrt(jnp.maximum(variance[:num], jnp.finfo(centred.dtype).tiny))[None]
    direction = dot(left.T, centred) / length.T
    return Components(direction, left * length, variance[:num] / jnp.sum(variance))


def explained(rows: Float[AnyArray, "t n"], direction: Float[AnyArray, "r n"]) -> Float[Array, "r"]:
    """Share of the variance of the rows along each of some unit directions."""
    centred = jnp.asarray(rows) - jnp.mean(jnp.asarray(rows), axis=0, keepdims=True)
    return jnp.sum(dot(centred, jnp.asarray(direction).T) ** 2, axis=0) / jnp.sum(centred**2)


def residual(first: Float[AnyArray, "t n"], second: Float[AnyArray, "t n"]) -> Float[Array, "t n"]:
    """The part of each row of the first that is orthogonal to the row of the second, both normalised before.

    The scale of either learner's outputs does not matter; a row of zeros in the second takes nothing away.
    """
    a, b = normalised(first), normalised(second)
    return a - jnp.sum(a * b, axis=-1, keepdims=True) * b


def difference(first: Float[AnyArray, "t n"], second: Float[AnyArray, "t n"], *, num: int) -> Difference:
    """Components that the first learner relies on and the second does not, from the residual rows.

    Ordered by the share of variance each explains in the first minus in the second.

    Raises:
      ValueError: as `pca` does.
    """
    components = pca(residual(first, second), num=num)
    shares = [explained(normalised(rows), components.direction) for rows in (first, second)]
    order = jnp.argsort(shares[1] - shares[0])
    ordered = Components(components.direction[order], components.coordinate[:, order], components.explained[order])
    return Difference(ordered, *(share[order] for share in shares))
