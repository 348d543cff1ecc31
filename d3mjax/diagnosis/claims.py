"""Claims that rows have errors: their calibration, thresholds, and metrics for each type of error.

``n`` rows and ``e`` types (label, feature, spurious minority). A metric without a value is NaN, such as the precision
of a type that is never claimed or the recall of a type that does not occur.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray

CANDIDATES = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""Thresholds to choose among."""


class Calibration(NamedTuple):
    """Platt's calibration of each type: ``sigmoid(slope * log_odds + intercept)``."""

    slope: Float[AnyArray, "e"]  # above 0, so that ranks stay
    intercept: Float[AnyArray, "e"]


class Scores(NamedTuple):
    """Per type; NaN where nothing is claimed (precision) or the type does not occur (recall, F1)."""

    precision: Float[Array, "e"]
    recall: Float[Array, "e"]
    f1: Float[Array, "e"]  # 2 TP / (2 TP + FP + FN)


def scores(claimed: Bool[AnyArray, "n e"], truth: Bool[AnyArray, "n e"]) -> Scores:
    """Precision, recall and F1 of each type."""
    claimed, truth = jnp.asarray(claimed), jnp.asarray(truth)
    hits, claims, cases = (claimed & truth).sum(0), claimed.sum(0), truth.sum(0)
    f1 = jnp.where(cases > 0, 2 * hits / (claims + cases), jnp.nan)
    return Scores(hits / claims, hits / cases, f1)


def macro_f1(claimed: Bool[AnyArray, "n e"], truth: Bool[AnyArray, "n e"]) -> Float[Array, ""]:
    """Mean F1 of the types that occur."""
    return jnp.nanmean(scores(claimed, truth).f1)


def exact_match(claimed: Bool[AnyArray, "n e"], truth: Bool[AnyArray, "n e"]) -> Float[Array, ""]:
    """Share of rows whose claims are right for every type."""
    return (jnp.asarray(claimed) == jnp.asarray(truth)).all(1).mean()


def clean_false_positives(claimed: Bool[AnyArray, "n e"], truth: Bool[AnyArray, "n e"]) -> Float[Array, ""]:
    """Share of the rows without errors that get a claim; NaN if every row has an error."""
    clean = ~jnp.asarray(truth).any(1)
    return (jnp.asarray(claimed).any(1) & clean).sum() / clean.sum()


def average_precision(values: Float[AnyArray, "n"], truth: Bool[AnyArray, "n"]) -> Float[Array, ""]:
    """Area under precision against recall, in steps: the mean over true rows of the precision at their own value.

    Larger values are claimed first; equal ones together, as scikit-learn does. NaN without a true row.
    """
    values, truth = jnp.asarray(values), jnp.asarray(truth)
    order = jnp.argsort(-values)
    descending, hits = -values[order], jnp.cumsum(truth[order])
    last = jnp.searchsorted(descending, descending, side="right")  # number of rows claimed together with this value
    return jnp.where(truth[order], hits[last - 1] / last, 0).sum() / truth.sum()


def calibration_error(
    probabilities: Float[AnyArray, "n"], truth: Bool[AnyArray, "n"], *, bins: int = 10
) -> Float[Array, ""]:
    """Expected calibration error: mean over rows of ``|mean probability - share of true rows|`` of their bin."""
    probabilities = jnp.asarray(probabilities)
    member = jax.nn.one_hot(jnp.clip((probabilities * bins).astype(jnp.int32), 0, bins - 1), bins, axis=0)
    gap = dot(member, probabilities - jnp.asarray(truth))
    return jnp.abs(gap).sum() / probabilities.shape[0]


def flag(probabilities: Float[AnyArray, "n e"], thresholds: Float[AnyArray, "e"]) -> Bool[Array, "n e"]:
    """The claims ``probability >= threshold`` of each row and type."""
    return jnp.asarray(probabilities) >= jnp.asarray(thresholds)[None]


def expected_thresholds(probabilities: Float[AnyArray, "n e"], *, least: float = 0.2) -> Float[np.ndarray, "e"]:
    """The threshold of each type with the highest expected F1 in this table, none below ``least``.

    The k likeliest rows are claimed, for the k of the largest ``2 sum_{i <= k} p_i / (k + sum_i p_i)``: where errors
    are rare, less likely rows are worth a claim. Probabilities must be calibrated; tied ones are claimed together.
    """
    p = np.asarray(probabilities, np.float64)
    ordered = -np.sort(-p, axis=0)
    expected = 2 * np.cumsum(ordered, axis=0) / (np.arange(1, len(p) + 1)[:, None] + p.sum(0, keepdims=True))
    return np.maximum(np.take_along_axis(ordered, expected.argmax(0)[None], axis=0)[0], least)


def expected_best(probabilities: Float[AnyArray, "n e"], *, least: float = 0.2) -> Bool[np.ndarray, "n e"]:
    """The claims by `expected_thresholds`."""
    return np.asarray(probabilities, np.float64) >= expected_thresholds(probabilities, least=least)


def best_thresholds(
    probabilities: Float[AnyArray, "n e"],
    truth: Bool[AnyArray, "n e"],
    *,
    candidates: tuple[float, ...] = CANDIDATES,
) -> Float[Array, "e"]:
    """The candidate threshold of highest F1 for each type; ties take the lowest, a type that never occurs the highest.

    Choose on rows that neither fitted the probabilities nor report.
    """
    probabilities = jnp.asarray(probabilities)
    levels = jnp.asarray(candidates, probabilities.dtype)
    f1 = jnp.stack([scores(probabilities >= level, truth).f1 for level in levels])
    best = jnp.where(jnp.isnan(f1).all(0), len(candidates) - 1, jnp.argmax(jnp.nan_to_num(f1), 0))
    return levels[best]


def platt(odds: Float[AnyArray, "n e"], truth: Bool[AnyArray, "n e"]) -> Calibration:
    """Slope and intercept of each type that calibrate log-odds, from rows that fitted neither; runs on the host.

    Minimises the cross-entropy. A ranking worse than chance is flattened, not reversed: its slope is 0.001.

    Source: Platt, 1999, "Probabilistic outputs for support vector machines".
    """
    pairs = zip(np.asarray(odds, np.float32).T, np.asarray(truth, bool).T, strict=True)
    return Calibration(*np.array([_platt(o, flag) for o, flag in pairs], np.float32).T)


def calibrated(odds: Float[AnyArray, "n e"], calibration: Calibration) -> Float[Array, "n e"]:
    """Probabilities of log-odds under the `Calibration` of `platt`."""
    slope, intercept = (jnp.asarray(a)[None] for a in calibration)
    return jax.nn.sigmoid(slope * jnp.asarray(odds) + intercept)


def _platt(odds, flag) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    share = flag.mean()
    if share in (0, 1):
        return 1.0, 0.0
    fitted = LogisticRegression(C=1e6).fit(odds[:, None], flag)  # two numbers need no penalty
    if fitted.coef_.item() > 1e-3:
        return fitted.coef_.item(), fitted.intercept_.item()
    return 1e-3, float(np.log(share / (1 - share)))
