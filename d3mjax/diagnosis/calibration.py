"""From the probabilities of a diagnoser to flags, and how far the probabilities may be believed.

All but `flag` and `calibrated` look at the rows where ``rows`` is True (None: all), which must not have been trained
on. Letters: ``K`` kinds of error.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from d3mjax.types import AnyArray

GRID = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
_NEWTON_STEPS = 30


def flag(probabilities: Float[AnyArray, "n K"], thresholds: Float[AnyArray, "K"]) -> Bool[Array, "n K"]:
    """Which kinds of error each row has: where the probability is above the kind's threshold."""
    return jnp.asarray(probabilities) > jnp.asarray(thresholds)[None]


def f1(
    flagged: Bool[AnyArray, "n K"], truth: Bool[AnyArray, "n K"], *, rows: Bool[AnyArray, "n"] | None = None
) -> Float[Array, "K"]:
    """``2 |flagged and true| / (|flagged| + |true|)`` of each kind; NaN where nothing is flagged or true."""
    flagged, truth = _counted(flagged, rows), _counted(truth, rows)
    return 2 * (flagged & truth).sum(0) / (flagged.sum(0) + truth.sum(0))


def best_thresholds(
    probabilities: Float[AnyArray, "n K"],
    truth: Bool[AnyArray, "n K"],
    *,
    rows: Bool[AnyArray, "n"] | None = None,
    grid: Sequence[float] = GRID,
) -> Float[Array, "K"]:
    """For each kind the threshold of ``grid`` with the largest F1, among equals the largest: it flags fewest.

    Source of the default grid: DeMix, Deng et al., arXiv 2606.11616, the published code.
    """
    levels = jnp.sort(jnp.asarray(grid, jnp.float32))[::-1]
    values = jax.lax.map(lambda level: f1(jnp.asarray(probabilities) > level, truth, rows=rows), levels)
    return levels[jnp.argmax(jnp.nan_to_num(values), axis=0)]


def platt(
    probabilities: Float[AnyArray, "n K"], truth: Bool[AnyArray, "n K"], *, rows: Bool[AnyArray, "n"] | None = None
) -> Float[Array, "K 2"]:
    """Slope a and intercept b of each kind, such that ``sigmoid(a log(p / (1 - p)) + b)`` is calibrated.

    Minimises the cross-entropy against Platt's targets, (N+ + 1) / (N+ + 2) for the N+ true rows and 1 / (N- + 2) for
    the others, which keep a and b finite even where p separates the two. Newton's
    method, each step halved until the gradient is smaller.
    A slope below 0 says that the probabilities rank worse than chance.

    Source: Platt, 1999, "Probabilistic outputs for support vector machines".
    """
    truth = jnp.asarray(truth)
    weight = jnp.ones(truth.shape[0]) if rows is None else jnp.asarray(rows, jnp.result_type(float))
    return jax.vmap(lambda x, y: _platt(x, y, weight.astype(x.dtype)))(_log_odds(probabilities).T, truth.T)


def calibrated(probabilities: Float[AnyArray, "n K"], calibration: Float[AnyArray, "K 2"]) -> Float[Array, "n K"]:
    """Probabilities corrected by the slopes and intercepts of `platt`. Thresholds are for those not corrected."""
    calibration = jnp.asarray(calibration)
    return jax.nn.sigmoid(calibration[None, :, 0] * _log_odds(probabilities) + calibration[None, :, 1])


def calibration_error(
    probabilities: Float[AnyArray, "n K"],
    truth: Bool[AnyArray, "n K"],
    *,
    rows: Bool[AnyArray, "n"] | None = None,
    num_bins: int = 15,
) -> Float[Array, "K"]:
    """Expected calibration error of each kind: ``sum_bins |sum_{i in bin} (p_i - y_i)| / n``, bins of equal width."""
    p = jnp.asarray(probabilities)
    gap = p - jnp.asarray(truth, p.dtype)
    gap = gap if rows is None else gap * jnp.asarray(rows, p.dtype)[:, None]
    place = jnp.minimum((p * num_bins).astype(jnp.int32), num_bins - 1)
    total = len(p) if rows is None else jnp.asarray(rows).sum()
    in_bins = jax.vmap(lambda g, b: jax.ops.segment_sum(g, b, num_bins))(gap.T, place.T)
    return jnp.abs(in_bins).sum(1) / total


def _counted(flags, rows):
    return jnp.asarray(flags) if rows is None else jnp.asarray(flags) & jnp.asarray(rows)[:, None]


def _log_odds(probabilities):
    p = jnp.clip(jnp.asarray(probabilities), 1e-6, 1 - 1e-6)  # float32 has no more digits below 1
    return jnp.log(p) - jnp.log1p(-p)


def _platt(x, y, weight):
    positive, total = (weight * y).sum(), weight.sum()
    target = jnp.where(y, (positive + 1) / (positive + 2), 1 / (total - positive + 2))
    basis = jnp.stack([x, jnp.ones_like(x)])  # [2 n]
    weight = weight / total

    def gradient(
        ab,
    ):  # of the cross-entropy; its square falls along Newton steps, and feels rounding less than the loss
        return jnp.matmul(basis, weight * (jax.nn.sigmoid(ab[0] * x + ab[1]) - target), precision="highest")

    def improve(_, ab):
        p = jax.nn.sigmoid(ab[0] * x + ab[1])
        curvature = jnp.matmul(basis * (weight * p * (1 - p))[None], basis.T, precision="highest")
        step = jnp.linalg.solve(curvature + 1e-6 * jnp.eye(2, dtype=x.dtype), gradient(ab))  # if p is constant
        halved = 0.5 ** jnp.arange(12, dtype=x.dtype)
        trials = jnp.concatenate([ab[None], ab[None] - halved[:, None] * step[None]])
        return trials[jnp.argmin(jax.vmap(lambda trial: (gradient(trial) ** 2).sum())(trials))]

    return jax.lax.fori_loop(0, _NEWTON_STEPS, improve, jnp.asarray([1, 0], x.dtype))
