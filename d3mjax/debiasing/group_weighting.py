"""Scores of D3M: how much each training example helps the groups of high loss (Jain et al., NeurIPS 2024).

Group losses become group weights ``w[G]``, and the score of train example i is ``A[i] = sum_g B[i, g] w[g]``
with ``B[i, g]`` the mean over the targets of group g of the attribution ``tau[target, i]``. Positive scores help.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from d3mjax.types import AnyArray


def softmax_weights(losses: Float[AnyArray, "G"], *, beta: Float[Array, ""] | float = 1.0) -> Float[Array, "G"]:
    """Group weights ``w_g = exp(beta loss_g) / sum_h exp(beta loss_h)``; losses in nats, ``beta`` per nat.

    With the negative loss as output, A is then minus the gradient of ``(1/beta) log sum_g exp(beta loss_g)`` with
    respect to the example weights. A NaN loss marks an empty pseudo-group: it gets weight 0.
    """
    return jax.nn.softmax(jnp.where(jnp.isnan(losses), -jnp.inf, beta * losses))


def loss_weights(losses: Float[AnyArray, "G"]) -> Float[Array, "G"]:
    """Group weights ``w_g = loss_g / G``, as the code of the authors: A descends half the mean squared group loss."""
    present = ~jnp.isnan(losses)
    return jnp.where(present, losses, 0.0) / present.sum()


def uniform_weights(losses: Float[AnyArray, "G"]) -> Float[Array, "G"]:
    """Group weights ``w_g = 1 / G`` over groups present: `softmax_weights` at beta = 0."""
    present = ~jnp.isnan(losses)
    return present / present.sum()


def worst_weights(losses: Float[AnyArray, "G"]) -> Float[Array, "G"]:
    """Group weight 1 for the largest loss and 0 elsewhere: `softmax_weights` at infinite beta; ties to the first."""
    return jax.nn.one_hot(jnp.nanargmax(losses), losses.shape[0])


def scores(group_columns: Float[AnyArray, "n G"], group_weights: Float[AnyArray, "G"]) -> Float[Array, "n"]:
    """Alignment ``A = B @ w``: larger is more useful, removal takes the smallest. Groups of weight 0 are ignored."""
    used = jnp.where(group_weights > 0, group_columns, 0.0)
    return jnp.matmul(used, group_weights, precision=jax.lax.Precision.HIGHEST)


def effective_checkpoints(kernel: Float[AnyArray, "c n G"], group_weights: Float[AnyArray, "G"]) -> Float[Array, ""]:
    """Number of unrelated checkpoints whose average has the same spread: ``mean_a var_i kappa / var_i mean_a kappa``.

    With ``kappa[a, i] = sum_g kernel[a, i, g] w[g]`` and v its variance over train examples at one checkpoint, the
    average of k unrelated ones has variance ``v / k``. At equal variances this is ``c / (1 + (c - 1) r)``, r being the
    mean correlation of two checkpoints: 1 where all agree, c where they are unrelated and the average is noise.
    At least 1; above c only for negative correlation. NaN where all examples are equal.
    """
    kappa = jax.vmap(scores, (0, None))(jnp.asarray(kernel), jnp.asarray(group_weights))
    return kappa.var(1).mean() / kappa.mean(0).var()


def effective_number(
    covariances: Float[AnyArray, "c G G"], of_mean: Float[AnyArray, "G G"], group_weights: Float[AnyArray, "G"]
) -> float:
    """`effective_checkpoints` from covariances over train examples, of each kernel and of their mean."""
    w = np.asarray(group_weights)
    return float((w @ np.asarray(covariances) @ w).mean() / (w @ np.asarray(of_mean) @ w))


def check_scores(group_columns: Float[AnyArray, "n G"], losses: Float[AnyArray, "G"]) -> None:
    """Check on the host that columns and losses are finite: a NaN score compares false with zero and would be removed.

    Raises:
      FloatingPointError: naming the groups whose loss or column is not finite, and how many examples are affected.
    """
    columns = np.asarray(group_columns)
    bad_loss = np.flatnonzero(~np.isfinite(np.asarray(losses)))
    if len(bad_loss):
        raise FloatingPointError(f"losses: found a value that is not finite for groups {bad_loss.tolist()}")
    bad = ~np.isfinite(columns)
    if bad.any():
        raise FloatingPointError(
            f"group_columns: found {int(bad.any(axis=1).sum())} train examples with values that are not finite, "
            f"in groups {np.flatnonzero(bad.any(axis=0)).tolist()}"
        )
