"""Platt's calibration of one table from errors that were planted into it on top of unknown ones.

Log-odds ``o`` of a row mean ``g(o) = sigmoid(exp(a) o + b)``, the probability of an unknown error, with ``(a, b)`` of
this table. Of ``U`` rows without and ``P`` rows with a planted error:

* `as_before` takes the probabilities before as the share of unknown errors, and fits ``g`` to

      q = p(row) without, and 1 - c p(row) with a planted error;

* `against_rest` takes no share. If planted errors get the log-odds of unknown ones, the density of P over that of U is

      r(o) = (1 - c s) g / s + c s (1 - g) / (1 - s),    s = mean of g over U,

  and ``(a, b)`` maximise the likelihood of which rows are P, plus ``log N(a, b)`` by the numbers of other tables.

``c`` is the probability that a planted error undoes an unknown one: 1 / (C - 1) of labels of C classes, else 0. The
second is the regression of presence-only data (Ward et al., 2009), whose share is identified by the form of ``g`` alone
and hence badly: the prior matters.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize
from scipy.special import expit, logit

STEEPEST = 2.0  # |a| of the numbers of other tables


class Prior(NamedTuple):
    """Normal distribution of ``(a, b)`` over tables."""

    mean: Float[np.ndarray, "2"]
    precision: Float[np.ndarray, "2 2"]


def prior_of(slopes: Float[np.ndarray, "k"], intercepts: Float[np.ndarray, "k"]) -> Prior:
    """By Platt's numbers of ``k`` other tables, two or more; raises ValueError for fewer."""
    if len(slopes) < 2:
        raise ValueError(f"slopes: found those of {len(slopes)} tables, expected two or more")
    both = np.stack([np.clip(np.log(slopes), -STEEPEST, STEEPEST), intercepts])
    return Prior(both.mean(1), np.linalg.inv(np.cov(both) + 1e-3 * np.eye(2)))


def probabilities(numbers: Float[np.ndarray, "2"], odds: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """``g`` of every row."""
    return expit(np.exp(numbers[0]) * odds + numbers[1])


def as_before(
    odds: Float[np.ndarray, "n"],
    planted: Bool[np.ndarray, "n"],
    before: Float[np.ndarray, "n"],
    undone: float,
    prior: Prior,
    *,
    set_back: bool,
) -> Float[np.ndarray, "2"]:
    """``(a, b)`` of the cross-entropy with ``q``, and the prior.

    ``before``: probabilities of an unknown error in the table itself. With ``set_back`` the log-odds of the mean of
    ``q`` over that of ``before`` are taken from b: the table has fewer errors than its copies.
    """
    q = np.where(planted, 1 - undone * before, before)

    def loss(numbers):
        z = np.exp(numbers[0]) * odds + numbers[1]
        return (np.logaddexp(0, z) - q * z).sum()

    numbers = _most_likely(loss, prior)
    shares = np.clip([before.mean(), q.mean()], 1e-3, 1 - 1e-3)
    return numbers + np.array([0, logit(shares[0]) - logit(shares[1])]) * set_back


def against_rest(
    odds: Float[np.ndarray, "n"], planted: Bool[np.ndarray, "n"], undone: float, prior: Prior, *, weight: float = 1.0
) -> Float[np.ndarray, "2"]:
    """``(a, b)`` of the likelihood of which rows are planted, each row counting ``weight``, and the prior."""
    times = planted.sum() / (~planted).sum()

    def loss(numbers):
        g = probabilities(numbers, odds)
        s = np.clip(g[~planted].mean(), 1e-4, 1 - 1e-4)
        r = times * ((1 - s * undone) * g / s + s * undone * (1 - g) / (1 - s))
        return weight * (np.log1p(r).sum() - np.log(r[planted] + 1e-12).sum())

    return _most_likely(loss, prior)


def _most_likely(loss, prior: Prior) -> Float[np.ndarray, "2"]:
    def total(numbers):
        away = numbers - prior.mean
        return loss(numbers) + away @ prior.precision @ away / 2

    return minimize(total, prior.mean, method="Nelder-Mead", options={"xatol": 1e-3, "fatol": 1e-4}).x
