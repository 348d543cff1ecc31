"""What D3M is compared with, as training weights. `subg` and `rwg_weights` need training groups: oracle methods."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from d3mjax.debiasing.selection import rank_within
from d3mjax.types import AnyArray


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


def _counts(cell, num_cells):
    return jnp.zeros(num_cells, jnp.int32).at[cell].add(1)


def _smallest(counts):
    return jnp.where(counts > 0, counts, jnp.iinfo(counts.dtype).max).min()
