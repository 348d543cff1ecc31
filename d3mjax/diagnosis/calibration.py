"""Probabilities of a diagnoser that may be believed, by Platt's correction; ``K`` kinds of error."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from d3mjax.types import AnyArray

_NEWTON_STEPS = 30


def platt(
    probabilities: Float[AnyArray, "n K"], truth: Bool[AnyArray, "n K"], *, rows: Bool[AnyArray, "n"] | None = None
) -> Float[Array, "K 2"]:
    """Slope a and intercept b of each kind, such that ``sigmoid(a log(p / (1 - p)) + b)`` is calibrated.

    Only rows where ``rows`` is True (None: all) count; they must not have been trained on. Minimises the cross-entropy
    against Platt's targets, (N+ + 1) / (N+ + 2) for the N+ true rows and 1 / (N- + 2) for the others, which keep a and
    b finite even where p separates the two, by Newton's method, each step halved until the gradient is smaller. A slope
    below 0 says that the probabilities rank worse than chance.

    Source: Platt, 1999, "Probabilistic outputs for support vector machines".
    """
    truth = jnp.asarray(truth)
    weight = jnp.ones(truth.shape[0]) if rows is None else jnp.asarray(rows, jnp.result_type(float))
    return jax.vmap(lambda x, y: _platt(x, y, weight.astype(x.dtype)))(_log_odds(probabilities).T, truth.T)


def calibrated(probabilities: Float[AnyArray, "n K"], calibration: Float[AnyArray, "K 2"]) -> Float[Array, "n K"]:
    """Probabilities corrected by the slopes and intercepts of `platt`. Thresholds are for those not corrected."""
    calibration = jnp.asarray(calibration)
    return jax.nn.sigmoid(calibration[None, :, 0] * _log_odds(probabilities) + calibration[None, :, 1])


def _log_odds(probabilities):
    p = jnp.clip(jnp.asarray(probabilities), 1e-6, 1 - 1e-6)  # float32 has no more digits below 1
    return jnp.log(p) - jnp.log1p(-p)


def _platt(x, y, weight):
    positive, total = (weight * y).sum(), weight.sum()
    target = jnp.where(y, (positive + 1) / (positive + 2), 1 / (total - positive + 2))
    basis = jnp.stack([x, jnp.ones_like(x)])  # [2 n]
    weight = weight / total

    def gradient(ab):  # its square falls along Newton steps, and feels rounding less than the loss does
        return jnp.matmul(basis, weight * (jax.nn.sigmoid(ab[0] * x + ab[1]) - target), precision="highest")

    def improve(_, ab):
        p = jax.nn.sigmoid(ab[0] * x + ab[1])
        curvature = jnp.matmul(basis * (weight * p * (1 - p))[None], basis.T, precision="highest")
        step = jnp.linalg.solve(curvature + 1e-6 * jnp.eye(2, dtype=x.dtype), gradient(ab))  # if p is constant
        halved = 0.5 ** jnp.arange(12, dtype=x.dtype)
        trials = jnp.concatenate([ab[None], ab[None] - halved[:, None] * step[None]])
        return trials[jnp.argmin(jax.vmap(lambda trial: (gradient(trial) ** 2).sum())(trials))]

    return jax.lax.fori_loop(0, _NEWTON_STEPS, improve, jnp.asarray([1, 0], x.dtype))
