"""How far to trust an attribution before examples are removed: the LDS of its scores, predicted from few trainings.

The linear datamodelling score (`metrics.lds`) averages many trainings of each of many random halves: thousands. Of 16
halves, each trained from the same two keys, `predicted_lds` estimates the score for endless trainings: the correlation
over these halves, over the root of the reliability of their outputs.

    masks = masks.fixed_size(key, np.arange(16), n, n // 2)                    # [h n]
    outputs = ...                                                              # [h r k], training s from key s
    trust.predicted_lds(metrics.subset_predictions(tau, masks), outputs)       # lds, low, high, reliability

What needs fewer trainings, or none, says much less (`python -m experiments trust`); it is here for comparison:

    `agreement`        of checkpoints: correlation of their mean scores with those of endless checkpoints
    `along_scores`     weights changed a little along the scores; `step_fit` compares predicted and actual changes
    `metagradient.metasmoothness`

Sources: Park et al., "TRAK", 2023 (LDS); Engstrom et al., "Optimizing ML training with metagradient descent", 2025
(metasmoothness); the correction for the noise of training is Spearman's (1904), the estimate of it by two factors ours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from d3mjax import metrics
from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray


class Predicted(NamedTuple):
    """A predicted LDS, and two standard errors below and above it, by leaving out each half in turn (jackknife)."""

    lds: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    reliability: Float[Array, ""]  # of the mean outputs; where it is low, training is mostly noise, and so is the rest


def predicted_lds(predictions: Float[AnyArray, "h k"], outputs: Float[AnyArray, "h r k"]) -> Predicted:
    """The LDS that many halves, trained endlessly often, would give, from h halves and r trainings of each.

    Args:
      predictions: `metrics.subset_predictions` of every half, for k targets or groups.
      outputs: the same outputs, such as margins, after each training; training s of every half has the same key.

    Raises:
      ValueError: fewer than 4 halves, or a single training, whose noise is unknown.

    >>> import numpy as np
    >>> from d3mjax.attribution import trust
    >>> rng = np.random.default_rng(0)
    >>> effects = rng.standard_normal((16, 50))
    >>> noisy = effects[:, None] + rng.standard_normal((16, 2, 50))
    >>> found = trust.predicted_lds(effects, noisy)
    >>> bool(found.low < 1 and found.lds > 0.9)
    True
    """
    h, r, _ = outputs.shape
    if h < 4 or r < 2:
        raise ValueError(f"outputs: found {h} halves and {r} trainings of each, expected 4 and 2 or more")
    return _predicted(jnp.asarray(predictions), jnp.asarray(outputs))


@jax.jit
def _predicted(predictions: Float[Array, "h k"], outputs: Float[Array, "h r k"]) -> Predicted:
    h = len(predictions)
    others = (np.arange(h)[:, None] + np.arange(1, h)[None]) % h  # row i: all halves but i
    without, _ = jax.lax.map(lambda rows: _corrected(predictions[rows], outputs[rows]), jnp.asarray(others))
    lds, reliability = _corrected(predictions, outputs)
    error = jnp.sqrt((h - 1) / h * ((without - without.mean()) ** 2).sum())
    bounded = lambda value: jnp.clip(value, -1, 1)
    return Predicted(bounded(lds), bounded(lds - 2 * error), bounded(lds + 2 * error), reliability)


def _corrected(
    predictions: Float[Array, "h k"], outputs: Float[Array, "h r k"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean rank correlation over halves, over the root of the reliability of the mean outputs; and that reliability.

    What a key changes in all halves alike moves no rank, so only the interaction of halves and keys counts as noise:
    the reliability is one minus the variance of these residuals over r, as a share of the variance of means. It is
    averaged over outputs, as it is too uncertain for one alone.
    """
    h, r, _ = outputs.shape
    mean = outputs.mean(1)
    centred = outputs - outputs.mean((0, 1), keepdims=True)
    of_halves, of_keys = centred.mean(1, keepdims=True), centred.mean(0, keepdims=True)
    between = (of_halves**2).sum((0, 1)) / (h - 1)
    noise = ((centred - of_halves - of_keys) ** 2).sum((0, 1)) / ((h - 1) * (r - 1) * r)
    reliability = jnp.clip(1 - (noise / jnp.maximum(between, 1e-30)).mean(), 0.05, 1)
    return jnp.nanmean(metrics.spearman(predictions.T, mean.T)) / jnp.sqrt(reliability), reliability


def agreement(variances: Float[AnyArray, "c k"], variance_of_mean: Float[AnyArray, "k"]) -> Float[Array, ""]:
    """``sqrt(c r / (1 + (c - 1) r))``, averaged over k: correlation of mean scores with those of endless checkpoints.

    r is the correlation of two checkpoints over train examples (Spearman and Brown), the mean covariance of pairs over
    the mean variance; below 0 it counts as 0. ``variances``: of the scores of each checkpoint over train examples;
    ``variance_of_mean``: of their mean over checkpoints.

    Raises ValueError for fewer than two checkpoints.
    """
    c = variances.shape[0]
    if c < 2:
        raise ValueError(f"variances: found {c} checkpoint, expected 2 or more")
    mean = jnp.asarray(variances).mean(0)
    pairs = (c * jnp.asarray(variance_of_mean) - mean) / (c - 1)
    r = jnp.clip(pairs / jnp.maximum(mean, 1e-30), 0, 1)
    return jnp.sqrt(c * r / (1 + (c - 1) * r)).mean()


def along_scores(key: Key[Array, ""], tau: Float[AnyArray, "k n"], *, steps: int = 8) -> Float[Array, "s n"]:
    """Changes of weights along the scores, each along a random mix v of their rows: ``clip(v / q, -1, 1) / 2``.

    v is centred, q is the .9 quantile of |v|, and the mean is taken off: weights ``1 + change`` have mean 1 and are
    positive. Scores of 0 change nothing.
    """
    mix = jax.random.normal(key, (steps, tau.shape[0]), jnp.float32)
    along = dot(mix, jnp.asarray(tau, jnp.float32))
    along -= along.mean(1, keepdims=True)
    size = jnp.quantile(jnp.abs(along), 0.9, axis=1, keepdims=True)
    change = jnp.clip(along / jnp.where(size > 0, size, 1), -1, 1) / 2
    return change - change.mean(1, keepdims=True)


def step_fit(predicted: Float[AnyArray, "s k"], actual: Float[AnyArray, "s k"]) -> Float[Array, ""]:
    """Cosine of predicted and actual changes of outputs; of the changes by a whole step and by half of it, a measure of
    how far Taylor's first term reaches: 1 where the response is linear.
    """
    a, b = jnp.asarray(predicted), jnp.asarray(actual)
    return (a * b).sum() / jnp.maximum(jnp.linalg.norm(a) * jnp.linalg.norm(b), 1e-30)
