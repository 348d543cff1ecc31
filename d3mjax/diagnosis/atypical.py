"""How odd a row of a table is, whatever the table: numbers that mean the same for any columns.

Each column is predicted from all others, linearly. With encoded, standardised features x of covariance C and
``P = (C + ridge I)^-1``, the part of column S (several features for a category) that the others do not explain is at
the squared distance

    d_S^2 = (P x)_S' (P_SS)^-1 (P x)_S

which is the squared standardised residual of a number, and the same for all levels of a category at once. One inverse
serves all columns (the conditional distribution of a Gaussian; see Rue and Held, 2005, theorem 2.3).
"""

import numpy as np
from jaxtyping import Float

from d3mjax.data import tables
from d3mjax.types import Table

NAMES = ("surprise", "second surprise", "far", "rare")


def scores(table: Table, *, ridge: float = 0.01, clip: float = 3.0) -> Float[np.ndarray, "n 4"]:
    """`NAMES` of every row, larger is odder: the two largest distances ``d_S`` of its columns; the largest distance of
    a number from its column's median, in deviations of a normal column of the same quartiles; ``-log`` of the share
    of its rarest level.

    Covariances are of features cut off at ``clip`` deviations, so that the errors themselves say less.
    """
    distances = np.sqrt(np.maximum(surprises(table, ridge=ridge, clip=clip), 0))
    ordered = np.sort(distances, axis=1)
    numbers = [a for name, a in table.columns.items() if name not in table.levels]
    levels = [table.columns[name] for name in table.levels]
    zero = np.zeros((len(table.id), 1))
    far = np.concatenate([zero, *(_far(a)[:, None] for a in numbers)], axis=1).max(1)
    rare = np.concatenate([zero, *(_rare(a)[:, None] for a in levels)], axis=1).max(1)
    return np.stack([ordered[:, -1], ordered[:, max(-2, -ordered.shape[1])], far, rare], axis=1)


def surprises(table: Table, *, ridge: float = 0.01, clip: float = 3.0) -> Float[np.ndarray, "n k"]:
    """``d_S^2`` of every row and column."""
    x = tables.encode(tables.fit_encoder(table), table).astype(np.float64)
    std = x.std(0)
    x = (x - x.mean(0)) / np.where(std > 0, std, 1)
    cut = np.clip(x, -clip, clip)
    precision = np.linalg.inv(cut.T @ cut / len(x) + ridge * np.eye(x.shape[1]))
    left = x @ precision
    found = []
    for span in tables.slices(table).values():
        part = left[:, span]
        found.append((part * np.linalg.solve(precision[span, span], part.T).T).sum(1))
    return np.stack(found, axis=1)


def _far(a):
    low, middle, high = np.nanquantile(a, [0.25, 0.5, 0.75])
    deviation = (high - low) / 1.349 or np.nanstd(a) or 1.0  # 1.349: between the quartiles of a standard normal
    return np.nan_to_num(np.abs(a - middle) / deviation)


def _rare(codes):
    share = np.bincount(codes + 1, minlength=1) / len(codes)
    return -np.log(share[codes + 1])
