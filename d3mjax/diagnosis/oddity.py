"""Outlier scores of rows that are comparable across tables.

Each column is predicted from all others, linearly. With encoded features x, standardised, of covariance C and
``P = (C + ridge I)^-1``, the part of column S (several features for a category) that the others do not explain has the
squared distance

    d_S^2 = (P x)_S' (P_SS)^-1 (P x)_S

which is the squared standardised residual of a number, and the same for all levels of a category at once. One inverse
serves all columns (the conditional distribution of a Gaussian; see Rue and Held, 2005, theorem 2.3).

Errors in the same columns of many rows make these columns odd together: `joint` and `mixture` measure that.
"""

import numpy as np
from jaxtyping import Float

from d3mjax import metrics
from d3mjax.data import tables
from d3mjax.types import Table

NAMES = (
    "surprise",
    "second surprise",
    "total",
    "joint",
    "mixture",
    "mixture of values",
    "far",
    "far from zero",
    "rare",
)


def scores(table: Table, *, ridge: float = 0.01, clip: float = 3.0) -> Float[np.ndarray, "n 9"]:
    """`NAMES` of every row, larger is odder. In this order:

    the two largest distances ``d_S`` of its columns, and the root of their squares' sum; `joint` and `mixture` of the
    distances, and of them with the numbers themselves; the largest distance of a number from its column's median, in
    deviations of a normal column of the same quartiles, and, for columns whose quartiles are equal, in deviations;
    ``-log`` of the share of its rarest level. Zero for tables without such a column.
    """
    distances = surprises(table, ridge=ridge, clip=clip)
    ordered = np.sort(distances, axis=1)
    numbers = [a for name, a in table.columns.items() if name not in table.levels and np.isfinite(a).any()]
    spread = [np.subtract(*np.nanquantile(a, [0.75, 0.25])) / 1.349 for a in numbers]  # 1.349: of a standard normal
    far = [_far(a, s) for a, s in zip(numbers, spread, strict=True) if s > 0]
    far_from_zero = [_far(a, np.nanstd(a)) for a, s in zip(numbers, spread, strict=True) if s == 0]
    rare = [_rare(table.columns[name]) for name in table.levels]
    zero = np.zeros(len(table.id))
    largest = lambda columns: np.max([zero, *columns], axis=0)
    values = np.concatenate([distances, *(_filled(a)[:, None] for a in numbers)], axis=1)
    columns = [ordered[:, -1], ordered[:, max(-2, -ordered.shape[1])], np.sqrt((distances**2).sum(1))]
    columns += [joint(distances), mixture(distances, like=distances), mixture(values, like=distances)]
    return np.stack([*columns, largest(far), largest(far_from_zero), largest(rare)], axis=1)


def surprises(table: Table, *, ridge: float = 0.01, clip: float = 3.0) -> Float[np.ndarray, "n k"]:
    """``d_S`` of every row and column. For covariances, features are cut off at ``clip`` deviations, and distances of
    numbers are divided by their median over that of a normal, which limits the weight of the errors themselves.
    """
    x = tables.encode(tables.fit_encoder(table), table).astype(np.float64)
    std = x.std(0)
    x = (x - x.mean(0)) / np.where(std > 0, std, 1)
    cut = np.clip(x, -clip, clip)
    precision = np.linalg.inv(cut.T @ cut / len(x) + ridge * np.eye(x.shape[1]))
    left = x @ precision
    distances = []
    for name, span in tables.slices(table).items():
        part = left[:, span]
        distance = np.sqrt(np.maximum((part * np.linalg.solve(precision[span, span], part.T).T).sum(1), 0))
        middle = np.median(distance) / 0.6745 if name not in table.levels else 1.0
        distances.append(distance / middle if middle > 0 else distance)
    return np.stack(distances, axis=1)


def joint(distances: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n"]:
    """The leading principal component of the columns' ranks, larger where more columns are far."""
    ranks = np.asarray(metrics.rank(distances.T), np.float64).T / len(distances)
    _, _, right = np.linalg.svd(ranks - ranks.mean(0), full_matrices=False)
    return ranks @ (right[0] * (np.sign(right[0].sum()) or 1.0))


def mixture(
    values: Float[np.ndarray, "n k"], *, like: Float[np.ndarray, "n d"], bins: int = 16, steps: int = 60
) -> Float[np.ndarray, "n"]:
    """Log-odds that a row is of the second of two classes within which columns are independent (naive Bayes by EM).

    Columns are cut at ``bins`` quantiles; counts start at one half. The second class begins as the 15 % of rows whose
    two largest distances ``like`` add up to most, and may grow to 40 %.
    """
    binned = [np.searchsorted(_edges(a, bins), a, side="right") for a in values.T]
    odd = np.sort(like, axis=1)[:, -2:].sum(1)
    q = np.where(odd > np.quantile(odd, 0.85), 0.9, 0.05)
    odds = np.zeros(len(q))
    for _ in range(steps):
        share = np.clip(q.mean(), 0.02, 0.4)
        odds = np.full(len(q), np.log(share / (1 - share)))
        for column in binned:
            second, first = (np.bincount(column, weight, bins) + 0.5 for weight in (q, 1 - q))
            odds += (np.log(second / second.sum()) - np.log(first / first.sum()))[column]
        q = 1 / (1 + np.exp(-np.clip(odds, -500, 500)))
    return np.clip(odds, -500, 500)


def _filled(a):
    """Numbers, those that are missing below all others: a bin of their own."""
    return np.where(np.isfinite(a), a, np.min(a, where=np.isfinite(a), initial=np.inf) - 1)


def _edges(a, bins):
    return np.unique(np.quantile(a, np.arange(1, bins) / bins))


def _far(a, spread):
    return np.nan_to_num(np.abs(a - np.nanmedian(a)) / (spread or 1.0))


def _rare(codes):
    share = np.bincount(codes + 1) / len(codes)
    return -np.log(share[codes + 1])
