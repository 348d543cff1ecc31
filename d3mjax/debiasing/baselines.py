"""What D3M is compared with, as training weights; what reads the training groups is an oracle method.

Elsewhere: GroupDRO is `objectives.group_dro`, DFR is in `heads`. Controls that remove k examples at random are
`selection.drop_random_like`; those that remove the k highest of some quantity (training loss, `trak.self_influence`)
are `selection.drop_lowest` of its negative.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from d3mjax.debiasing.selection import rank_within
from d3mjax.types import AnyArray

T = TypeVar("T")


def erm_weights(num_examples: int) -> Float[Array, "n"]:
    """Weight 1 for everybody: ordinary training."""
    return jnp.ones(num_examples)


def subsample_balanced(key: Key[Array, ""], cell: Int[AnyArray, "n"], num_cells: int) -> Bool[Array, "n"]:
    """Keep a random subset with equally many examples of every non-empty cell, as many as the smallest has.

    ``cell=group`` is SUBG, ``cell=y`` is SUBY (Idrissi et al., 2022).
    """
    return rank_within(jax.random.uniform(key, cell.shape), cell) < _smallest(_counts(cell, num_cells))


def balanced_weights(cell: Int[AnyArray, "n"], num_cells: int) -> Float[Array, "n"]:
    """``n / (K n_cell)`` with K non-empty cells: mean weight 1, every cell of equal mass.

    With the `sampling.resampled` sampler ``cell=group`` is RWG and ``cell=y`` is RWY (Idrissi et al., 2022, who
    resample); with `sampling.shuffled` the same numbers weigh the losses instead, which is another method.
    """
    counts = _counts(cell, num_cells)
    return cell.shape[0] / ((counts > 0).sum() * counts[jnp.asarray(cell)].astype(jnp.float32))


def jtt_weights(errors: Bool[AnyArray, "n"], up: Float[Array, ""] | float) -> Float[Array, "n"]:
    """``1 + up`` for examples that an identification model gets wrong, 1 for others: ``up`` further copies of each.

    Just train twice (Liu et al., 2021). The identification model must be stopped early or regularised, or it makes
    no errors and this is ERM. Copies in a data set are drawn more often: use `sampling.resampled`.
    """
    return 1.0 + up * jnp.asarray(errors)


def mixed_weights(
    target: Bool[AnyArray, "n"], cell: Int[AnyArray, "n"], num_cells: int, mass: Float[Array, ""] | float
) -> Float[Array, "n"]:
    """Training on train and target examples together, of which only those of ``target`` have a known ``cell``.

    They hold the share ``mass`` of all weight, every non-empty cell of them equally much; the others share the rest
    evenly. Mean weight 1. Cells of the others are not read.
    """
    target = jnp.asarray(target)
    counts = _counts(jnp.where(target, cell, num_cells), num_cells + 1)[:num_cells]  # the last cell: not a target
    own = 1 / ((counts > 0).sum() * jnp.maximum(counts, 1)[jnp.where(target, cell, 0)])
    return target.shape[0] * jnp.where(target, mass * own, (1 - mass) / jnp.maximum((~target).sum(), 1))


def drop_majority(
    key: Key[Array, ""], cell: Int[AnyArray, "n"], num_cells: int, k: Int[Array, ""] | int
) -> Bool[Array, "n"]:
    """Remove ``k`` examples one at a time at random from whichever cell is then the largest, ties at random.

    With ``cell=group`` the control between random removal and SUBG, which it becomes once all cells are equal.
    ``k`` may be traced; examples of cells outside ``0..num_cells - 1`` stay.
    """
    cell = jnp.asarray(cell)
    place_key, tie_key = jax.random.split(key)
    known = (cell >= 0) & (cell < num_cells)
    # The example of rank r in its cell goes when the cell has r + 1 examples left: the highest ranks go first.
    place = jnp.where(known, rank_within(jax.random.uniform(place_key, cell.shape), cell), -1)
    order = jnp.lexsort((jax.random.uniform(tie_key, cell.shape), -place))
    return jnp.ones(cell.shape, bool).at[order].set(jnp.arange(cell.shape[0]) >= k) | ~known


class Tuned(NamedTuple):
    """Position of the candidate of highest score, and the scores of all."""

    best: int
    scores: Float[np.ndarray, "c"]


def tune(
    candidates: Sequence[T], evaluate: Callable[[Sequence[T]], Float[AnyArray, "c"] | Sequence[float]], *, budget: int
) -> Tuned:
    """Choose a setting on data that does not report: ``evaluate(candidates) -> scores [c]``, the highest wins.

    All methods of a table get the same ``budget`` of candidates; put the default first, as ties go to the first. What
    ``evaluate`` may look at is what the method's information setting allows: worst-class accuracy on the selection
    split without groups, worst-group accuracy with them.

    Raises:
      ValueError: more candidates than ``budget``, or none.
      FloatingPointError: a score that is not finite, as of an empty group.
    """
    if not 1 <= len(candidates) <= budget:
        raise ValueError(f"candidates: found {len(candidates)}, expected 1..{budget}, the budget of every method")
    scores = np.asarray(evaluate(candidates), np.float64)
    if scores.shape != (len(candidates),) or not np.isfinite(scores).all():
        raise FloatingPointError(f"evaluate: found scores {scores.tolist()}, expected {len(candidates)} finite ones")
    return Tuned(int(scores.argmax()), scores)


def _counts(cell, num_cells):
    return jnp.zeros(num_cells, jnp.int32).at[cell].add(1)


def _smallest(counts):
    return jnp.where(counts > 0, counts, jnp.iinfo(counts.dtype).max).min()
