"""Removal rules: from scores, larger for more useful examples, to keep masks ``[n]`` and weights.

The best number of removals depends on the task, and so does the damping behind the scores, which moves their level:
retrain with a few candidates and `choose` on the selection split.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from d3mjax.types import AnyArray


class Composition(NamedTuple):
    """Numbers of removed examples by class and group, and of the label-error suspects among them."""

    removed: Int[Array, "C G"]
    total: Int[Array, "C G"]
    suspects: Int[Array, "C G"]  # among the removed


class GuardInfo(NamedTuple):
    """Examples that `guard` kept: those beyond the largest number of removals, and those restored to each class."""

    capped: Int[Array, ""]
    restored: Int[Array, "C"]


def drop_negative(scores: Float[AnyArray, "n"]) -> Bool[Array, "n"]:
    """Keep ``scores >= 0``, the rule of D3M without hyper-parameter; needs scores whose level is identified."""
    return jnp.asarray(scores) >= 0


def drop_lowest(scores: Float[AnyArray, "n"], k: Int[Array, ""] | int) -> Bool[Array, "n"]:
    """Keep all but the ``k`` smallest scores, ties by index; ``k`` may be traced.

    >>> import jax.numpy as jnp, d3mjax
    >>> d3mjax.selection.drop_lowest(jnp.array([0.5, -1.0, 2.0, -3.0]), 2).tolist()
    [True, False, True, False]
    """
    return rank_within(scores, jnp.zeros(scores.shape, jnp.int32)) >= k


def drop_lowest_within(
    scores: Float[AnyArray, "n"], cell: Int[AnyArray, "n"], num_cells: int, share: Float[Array, ""] | float
) -> Bool[Array, "n"]:
    """Drop the lowest ``share`` of every cell, rounded down: the cells, such as classes, keep their shares."""
    cell = jnp.asarray(cell)
    size = jnp.zeros(num_cells, jnp.int32).at[cell].add(1)
    return rank_within(scores, cell) >= jnp.floor(share * size + 1e-4).astype(jnp.int32)[cell]


def drop_outliers(scores: Float[AnyArray, "n"], *, z: float = 3.0) -> Bool[Array, "n"]:
    """Drop scores more than ``z`` robust deviations below the median; one is ``1.4826 median |A - median A|``.

    Invariant to a shift and a positive scale of the scores: for scores whose level is not identified, such as those of
    datamodels of subsets of one size. Where more than half the scores are equal, all lower ones are dropped.
    """
    scores = jnp.asarray(scores)
    middle = jnp.median(scores)
    return scores >= middle - z * 1.4826 * jnp.median(jnp.abs(scores - middle))


def step_weights(scores: Float[AnyArray, "n"], k: Int[Array, ""] | int) -> Float[Array, "n"]:
    """Weights ``max(0, 1 + A / |A_(k)|)`` of a step along A from equal weights; ``A_(k)`` is the k-th lowest score.

    To first order A is minus the gradient of what D3M descends by the weights, so this is one projected gradient step,
    while removal alone moves only along the examples removed. With fewer than k negative scores those are emptied;
    with none, or k = 0, all weights are 1.
    """
    scores = jnp.asarray(scores)
    k = jnp.minimum(k, (scores < 0).sum())
    level = jnp.abs(jnp.sort(scores)[jnp.maximum(k - 1, 0)])
    # Compared, not only divided: XLA multiplies by a reciprocal, and A / |A| may be -1 + 6e-8.
    stepped = jnp.where(scores > -level, jnp.maximum(1 + scores / jnp.where(k > 0, level, 1), 0), 0.0)
    return jnp.where(k > 0, stepped, 1.0)


def soft_weights(scores: Float[AnyArray, "n"], temperature: Float[Array, ""] | float) -> Float[Array, "n"]:
    """Weights ``sigmoid(A / (temperature * std A))``: 1/2 at score 0, `drop_negative` as temperature falls to 0."""
    scores = jnp.asarray(scores)
    return jax.nn.sigmoid(scores / (temperature * scores.std()))


def choose(
    accuracies: Float[AnyArray, "r G"], average: Float[AnyArray, "r"], *, tolerance: float = 0.02
) -> Int[Array, ""]:
    """Index of the best candidate by its group accuracies ``[r G]`` on a selection split; NaN for an absent group.

    The best average accuracy among those whose worst group is within ``tolerance`` of the best candidate's: what a
    selection split says of a small group is noise up to there, and the average is what removal costs.
    """
    worst = jnp.nanmin(jnp.asarray(accuracies), axis=1)
    return jnp.argmax(jnp.where(worst >= worst.max() - tolerance, jnp.asarray(average), -jnp.inf))


def survivors(accuracies: Float[AnyArray, "r v G"], average: Float[AnyArray, "r v"], count: int) -> Int[Array, "k"]:
    """Indices of the ``count`` candidates whose worst group does best, the best first: a round of successive halving.

    A candidate counts by the best of its v variants, such as without and with class offsets; ties go to the higher
    average accuracy. Accuracies of groups are NaN where absent. Later rounds train more models of fewer candidates.
    """
    worst = jnp.nanmin(jnp.asarray(accuracies), axis=2)
    best = worst.max(1)
    tied = jnp.where(worst == best[:, None], jnp.asarray(average), -jnp.inf).max(1)
    return jnp.lexsort((-tied, -best))[:count]


def drop_confident(mean: Float[AnyArray, "n"], error: Float[AnyArray, "n"], *, z: float = 1.645) -> Bool[Array, "n"]:
    """Drop examples with ``mean + z * error < 0``, whose harm is sure.

    Mean score and standard error are those of `per_checkpoint.checkpoint_error`. ``z = 1.645`` errs for one useful
    example in twenty. An error of NaN (one checkpoint) keeps.
    """
    return ~(jnp.asarray(mean) + z * jnp.asarray(error) < 0)


def drop_random_like(
    key: Key[Array, ""], keep: Bool[AnyArray, "n"], cell: Int[AnyArray, "n"], num_cells: int
) -> Bool[Array, "n"]:
    """Remove at random, from each cell, as many examples as ``keep`` removes from it: controls of equal number.

    One cell for all is plain random removal, ``cell=y`` is class-matched, ``cell=group`` group-matched.
    """
    removed = jnp.zeros(num_cells, jnp.int32).at[cell].add(~keep)
    return rank_within(jax.random.uniform(key, keep.shape), cell) >= removed[jnp.asarray(cell)]


def guard(
    scores: Float[AnyArray, "n"],
    keep: Bool[AnyArray, "n"],
    y: Int[AnyArray, "n"],
    num_classes: int,
    *,
    max_drop: float = 0.5,
    min_keep_class: int = 1,
) -> tuple[Bool[Array, "n"], GuardInfo]:
    """Bound the removals of a rule: at most ``max_drop * n`` examples, and ``min_keep_class`` of each class stay.

    Beyond the bound the highest scores are kept. A class with fewer examples gets back its highest-scored removed ones.

    >>> import numpy as np, d3mjax
    >>> scores = np.array([-1.0, -2.0, -3.0, -4.0])
    >>> keep, info = d3mjax.selection.guard(scores, scores > 0, np.array([0, 0, 1, 1]), 2, max_drop=0.75)
    >>> keep.tolist(), int(info.capped), info.restored.tolist()
    ([True, False, True, False], 1, [0, 1])
    """
    scores, keep = jnp.asarray(scores), jnp.asarray(keep)
    rank_removed = rank_within(jnp.where(keep, jnp.inf, scores), jnp.zeros(y.shape, jnp.int32))
    capped = keep | (rank_removed >= int(max_drop * y.shape[0]))
    # Within each class: kept ones first, then removed ones from the highest score down.
    order = rank_within(jnp.where(capped, -jnp.inf, -scores), y)
    guarded = capped | (order < min_keep_class)
    restored = jnp.zeros(num_classes, jnp.int32).at[y].add(guarded & ~capped)
    return guarded, GuardInfo((capped & ~keep).sum(), restored)


def label_suspects(right: Bool[AnyArray, "c n"]) -> Bool[Array, "n"]:
    """Train examples that every checkpoint misclassifies: wrong labels, and examples too rare to be learnt.

    ``right[a, i]``: whether checkpoint a classifies example i as its label says (a positive hard margin).
    """
    return ~jnp.asarray(right).any(0)


def composition(
    keep: Bool[AnyArray, "n"],
    y: Int[AnyArray, "n"],
    group: Int[AnyArray, "n"],
    suspect: Bool[AnyArray, "n"],
    num_classes: int,
    num_groups: int,
) -> Composition:
    """Numbers ``[C G]`` of examples, removals and suspects among them; examples of unknown group are left out."""
    keep, group = jnp.asarray(keep), jnp.asarray(group)
    where = (jnp.asarray(y), jnp.where(group < 0, num_groups, group))
    count = lambda marked: jnp.zeros((num_classes, num_groups), jnp.int32).at[where].add(marked, mode="drop")
    return Composition(count(~keep), count(jnp.ones_like(keep)), count(~keep & jnp.asarray(suspect)))


def share_of_removed(marked: Bool[AnyArray, "n"], keep: Bool[AnyArray, "*m n"]) -> Float[Array, ""]:
    """Share of ``marked`` examples among those that all masks ``[m n]`` remove; NaN where none is removed."""
    times_removed = (~jnp.asarray(keep)).reshape(-1, marked.shape[0]).sum(0)
    return jnp.where(marked, times_removed, 0).sum() / times_removed.sum()


def rank_within(values: Float[AnyArray, "n"], cell: Int[AnyArray, "n"]) -> Int[Array, "n"]:
    """Rank 0, 1, ... of each value among the examples of its cell, ascending, ties by index."""
    cell = jnp.asarray(cell)
    order = jnp.lexsort((jnp.asarray(values), cell))
    sorted_cell = cell[order]
    rank = jnp.arange(cell.shape[0]) - jnp.searchsorted(sorted_cell, sorted_cell, side="left")
    return jnp.zeros(cell.shape, rank.dtype).at[order].set(rank)
