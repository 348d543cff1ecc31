"""Methods that D3M is compared with, as training weights; those that read the training groups are oracle methods.

GroupDRO is `objectives.group_dro`, DFR is in `last_layer`. Controls that remove k examples at random are
`selection.drop_random_like`; those that remove the k highest of some quantity (training loss, `trak.self_influence`)
are `selection.drop_lowest` of its negative.

Pruning of the hardest is `selection.drop_lowest_within` the classes of minus `outputs.error_norms` early in training.
Source: Mulchandani and Kim, "Severing spurious correlations with data pruning", 2025.
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
    """Weight 1 for every example: plain training."""
    return jnp.ones(num_examples)


def subsample_balanced(key: Key[Array, ""], cell: Int[AnyArray, "n"], num_cells: int) -> Bool[Array, "n"]:
    """Random subset with equally many examples of every non-empty cell, as many as the smallest cell has.

    ``cell=group`` is SUBG, ``cell=y`` is SUBY (Idrissi et al., 2022).

    >>> import jax, numpy as np, d3mjax
    >>> cell = np.array([0, 0, 0, 0, 1, 1])
    >>> keep = d3mjax.baselines.subsample_balanced(jax.random.key(0), cell, 2)
    >>> np.bincount(cell[np.asarray(keep)]).tolist()
    [2, 2]
    """
    return rank_within(jax.random.uniform(key, cell.shape), cell) < _smallest(_counts(cell, num_cells))


def balanced_weights(cell: Int[AnyArray, "n"], num_cells: int) -> Float[Array, "n"]:
    """Weights ``n / (K n_cell)`` with K non-empty cells: mean 1, every cell of equal mass.

    With the `sampling.resampled` sampler ``cell=group`` is RWG and ``cell=y`` is RWY (Idrissi et al., 2022, who
    resample); with `sampling.shuffled` the same numbers weigh the losses instead, which is another method.

    >>> import numpy as np, d3mjax
    >>> d3mjax.baselines.balanced_weights(np.array([0, 0, 0, 0, 1, 1]), 2).tolist()
    [0.75, 0.75, 0.75, 0.75, 1.5, 1.5]
    """
    counts = _counts(cell, num_cells)
    return cell.shape[0] / ((counts > 0).sum() * counts[jnp.asarray(cell)].astype(jnp.float32))


def jtt_weights(errors: Bool[AnyArray, "n"], up: Float[Array, ""] | float) -> Float[Array, "n"]:
    """Just train twice: weight ``1 + up`` for the errors of an identification model, 1 for other examples.

    Source: Liu et al., 2021. The identification model must be stopped early or regularised; without errors this is
    ERM. The paper copies errors in the data set, so that they are drawn more often: use `sampling.resampled`.
    """
    return 1.0 + up * jnp.asarray(errors)


def mixed_weights(
    target: Bool[AnyArray, "n"], cell: Int[AnyArray, "n"], num_cells: int, mass: Float[Array, ""] | float
) -> Float[Array, "n"]:
    """Weights for training on train and target examples together, where ``cell`` is known for those of ``target``.

    Targets have the share ``mass`` of all weight, equal for every non-empty cell of them; the other examples share the
    rest evenly. Mean weight 1. Only cells of targets are read.
    """
    target = jnp.asarray(target)
    counts = _counts(jnp.where(target, cell, num_cells), num_cells + 1)[:num_cells]  # the last cell: not a target
    share = 1 / ((counts > 0).sum() * jnp.maximum(counts, 1)[jnp.where(target, cell, 0)])
    return target.shape[0] * jnp.where(target, mass * share, (1 - mass) / jnp.maximum((~target).sum(), 1))


def drop_majority(
    key: Key[Array, ""], cell: Int[AnyArray, "n"], num_cells: int, k: Int[Array, ""] | int
) -> Bool[Array, "n"]:
    """Remove ``k`` examples at random, each from the cell that is then the largest, ties at random.

    With ``cell=group`` the control between random removal and SUBG, which it equals once all cells have one size.
    ``k`` may be traced; examples of cells outside ``0..num_cells - 1`` stay.
    """
    cell = jnp.asarray(cell)
    rank_key, tie_key = jax.random.split(key)
    known = (cell >= 0) & (cell < num_cells)
    # The example of rank r in its cell goes when the cell has r + 1 examples left: the highest ranks go first.
    rank = jnp.where(known, rank_within(jax.random.uniform(rank_key, cell.shape), cell), -1)
    order = jnp.lexsort((jax.random.uniform(tie_key, cell.shape), -rank))
    return jnp.ones(cell.shape, bool).at[order].set(jnp.arange(cell.shape[0]) >= k) | ~known


class Tuned(NamedTuple):
    """Position of the candidate of highest score, and the scores of all."""

    best: int
    scores: Float[np.ndarray, "c"]


def tune(
    candidates: Sequence[T], evaluate: Callable[[Sequence[T]], Float[AnyArray, "c"] | Sequence[float]], *, budget: int
) -> Tuned:
    """Best of several settings by ``evaluate(candidates) -> scores [c]``, on data that do not report.

    All methods of a table get the same ``budget`` of candidates. Put the default first: ties go to the first.
    ``evaluate`` may use what the information setting of the method allows: worst-class accuracy on the selection split
    without groups, worst-group accuracy with them.

    >>> import d3mjax
    >>> d3mjax.baselines.tune([0.1, 0.01], lambda rates: [0.6, 0.8], budget=2).best
    1

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
