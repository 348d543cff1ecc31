"""How sure group columns are: the spread over checkpoints, and over folds of the targets (removal rules may ask)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from d3mjax.types import AnyArray


def checkpoint_error(
    kernel: Float[AnyArray, "c n G"], group_weights: Float[AnyArray, "G"]
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Mean and standard error over checkpoints of ``kappa[a, i] = sum_g kernel[a, i, g] group_weights[g]``.

    The factor q is never negative, so it cannot change the sign of a score: "surely harmful" is ``mean + z error < 0``.
    Groups of weight 0 are ignored. One checkpoint has no spread: the error is NaN.
    """
    used = jnp.where(jnp.asarray(group_weights) > 0, jnp.asarray(kernel), 0)
    kappa = jnp.matmul(used, jnp.asarray(group_weights, used.dtype), precision="highest")
    num = kappa.shape[0]
    squares = ((kappa - kappa.mean(0, keepdims=True)) ** 2).sum(0)
    return kappa.mean(0), jnp.sqrt(squares / num / (num - 1)) if num > 1 else jnp.full(kappa.shape[1:], jnp.nan)


def fold_groups(group: Int[AnyArray, "t"], ids: Int[AnyArray, "t"], num_folds: int) -> Int[np.ndarray, "t"]:
    """Split every group into folds: ``group * num_folds + fold``, -1 where the group is -1. Host side.

    Members are dealt out in the order of a hash of their ids, so neither the order of targets nor a pattern in the ids
    matters. Use the result as ``target.group`` with ``num_groups * num_folds`` groups, then `merge_folds`.
    """
    if num_folds < 1:
        raise ValueError(f"num_folds: found {num_folds}, expected at least 1")
    group, ids = np.asarray(group), np.asarray(ids)
    folded = np.full(group.shape, -1, np.int32)
    mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(20)
    for g in np.unique(group[group >= 0]):
        members = np.flatnonzero(group == g)
        members = members[np.lexsort((ids[members], mixed[members]))]
        folded[members] = g * num_folds + np.arange(len(members)) % num_folds
    return folded


def merge_folds(
    columns: Float[AnyArray, "n folds"], folded: Int[AnyArray, "t"], num_folds: int
) -> tuple[Float[Array, "n G"], Float[Array, "n G"]]:
    """Columns of whole groups, exactly, and their standard error from the spread between folds of targets.

    With ``s_j`` the share of fold j in its group: mean ``sum_j s_j x_j``, error ``sqrt(sum_j s_j (x_j - mean)^2 /
    (J - 1))`` over the J folds that are not empty; NaN for J < 2.
    """
    columns, folded = jnp.asarray(columns), np.asarray(folded)
    size = jnp.asarray(np.bincount(folded[folded >= 0], minlength=columns.shape[1]))
    size = size.reshape(-1, num_folds).astype(columns.dtype)
    share = (size / size.sum(1, keepdims=True))[None]
    x = jnp.where(size[None] > 0, columns.reshape(columns.shape[0], -1, num_folds), 0)
    mean = (share * x).sum(-1)
    present = (size > 0).sum(1)[None, :]
    squares = (share * (x - mean[..., None]) ** 2).sum(-1)
    return mean, jnp.sqrt(jnp.where(present > 1, squares / jnp.maximum(present - 1, 1), jnp.nan))
