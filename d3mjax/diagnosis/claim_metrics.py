"""How well errors of several types are told: per type, over types, and what it costs the rows without any.

``n`` rows and ``e`` types (label, feature, spurious minority). Nothing invents a number: what cannot be said, as the
precision of a type that is never claimed or the recall of one that does not occur, is NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from d3mjax.types import AnyArray

CANDIDATES = tuple(round(0.05 * i, 2) for i in range(1, 20))
"""Thresholds to choose among."""


class Scores(NamedTuple):
    """Per type; NaN where nothing is claimed (precision) or the type does not occur (recall, F1)."""

    precision: Float[Array, " e"]
    recall: Float[Array, " e"]
    f1: Float[Array, " e"]  # 2 TP / (2 TP + FP + FN)


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
    """Share of rows of which every type is told right."""
    return (jnp.asarray(claimed) == jnp.asarray(truth)).all(1).mean()


def clean_false_positives(claimed: Bool[AnyArray, "n e"], truth: Bool[AnyArray, "n e"]) -> Float[Array, ""]:
    """Share of the rows without any error of which one is claimed; NaN if every row has one."""
    clean = ~jnp.asarray(truth).any(1)
    return (jnp.asarray(claimed).any(1) & clean).sum() / clean.sum()


def average_precision(values: Float[AnyArray, " n"], truth: Bool[AnyArray, " n"]) -> Float[Array, ""]:
    """Area under precision against recall, in steps: the mean over true rows of the precision at their own value.

    Larger values are claimed first; equal ones together, as scikit-learn does. NaN without a true row.
    """
    values, truth = jnp.asarray(values), jnp.asarray(truth)
    order = jnp.argsort(-values)
    descending, hits = -values[order], jnp.cumsum(truth[order])
    last = jnp.searchsorted(descending, descending, side="right")  # rows claimed once this value is
    return jnp.where(truth[order], hits[last - 1] / last, 0).sum() / truth.sum()


def calibration_error(
    probabilities: Float[AnyArray, " n"], truth: Bool[AnyArray, " n"], *, bins: int = 10
) -> Float[Array, ""]:
    """Expected calibration error: mean over rows of ``|mean probability - share of true rows|`` of their bin."""
    probabilities = jnp.asarray(probabilities)
    member = jax.nn.one_hot(jnp.clip((probabilities * bins).astype(jnp.int32), 0, bins - 1), bins, axis=0)
    gap = jnp.matmul(member, probabilities - jnp.asarray(truth), precision="highest")
    return jnp.abs(gap).sum() / probabilities.shape[0]


def flag(probabilities: Float[AnyArray, "n e"], thresholds: Float[AnyArray, " e"]) -> Bool[Array, "n e"]:
    """Which errors each row is claimed to have: ``probability >= threshold`` of the type."""
    return jnp.asarray(probabilities) >= jnp.asarray(thresholds)[None]


def best_thresholds(
    probabilities: Float[AnyArray, "n e"],
    truth: Bool[AnyArray, "n e"],
    *,
    candidates: tuple[float, ...] = CANDIDATES,
) -> Float[Array, " e"]:
    """The candidate of highest F1 for each type, claiming ``probability >= threshold``; ties take the lowest.

    Choose on rows that neither fitted the probabilities nor report. A type that does not occur gets the highest.
    """
    probabilities = jnp.asarray(probabilities)
    levels = jnp.asarray(candidates, probabilities.dtype)
    f1 = jnp.stack([scores(probabilities >= level, truth).f1 for level in levels])
    best = jnp.where(jnp.isnan(f1).all(0), len(candidates) - 1, jnp.argmax(jnp.nan_to_num(f1), 0))
    return levels[best]
