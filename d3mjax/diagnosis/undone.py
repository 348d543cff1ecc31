"""Is a row more usual if an error is undone? Swapped columns, shifted rows and other units, tried on all rows at once.

With numbers z, centred and scaled by quartiles, and P the inverse of their covariance, a row has the squared distance
``D(z) = z' P z``. Undoing a hypothetical error h gives ``z_h``, and the gain ``D(z) - D(z_h)``. Errors of one source
are the same in many rows: of all hypotheses of a form, that of the largest sum of gains above `USUAL` is kept.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from d3mjax.data.planted.table_errors import UNITS
from d3mjax.types import Table

NAMES = ("undone swap", "undone shift", "undone unit")
USUAL = 10.0  # squared distance
FAR = 10.0  # numbers further from the middle than as many deviations count as that
MOST = 80  # columns of numbers that are looked at, the first


class _Numbers(NamedTuple):
    raw: np.ndarray  # [n d]
    middle: np.ndarray  # [d]
    scale: np.ndarray  # [d]
    precision: np.ndarray  # [d d]

    def standard(self, values, columns: int | slice = slice(None)):
        """Values of columns as z."""
        z = (values - self.middle[columns]) / self.scale[columns]
        return np.clip(np.nan_to_num(z), -FAR, FAR)


def gains(table: Table) -> Float[np.ndarray, "n 3"]:
    """The gain of every row if the likeliest swap, shift or change of unit is undone; zero where a table has none."""
    numbers = _numbers(table)
    if numbers is None:
        return np.zeros((len(table.id), len(NAMES)))
    return np.stack([_likeliest(form(numbers)) for form in (_swaps, _shifts, _units)], 1)


def _likeliest(tried) -> Float[np.ndarray, "n"]:
    """The gains of the hypothesis with most evidence, of an iterator over gains ``[h n]``; the first of equals."""
    evidence = lambda gain: np.maximum(gain - USUAL, 0).sum(-1)
    best = [gain[evidence(gain).argmax()] for gain in tried]
    return max(best, key=evidence)


def _numbers(table: Table) -> _Numbers | None:
    columns = [a for name, a in table.columns.items() if name not in table.levels and np.isfinite(a).any()][:MOST]
    if not columns:
        return None
    raw = np.stack(columns, 1)
    low, middle, high = np.nanquantile(raw, [0.25, 0.5, 0.75], axis=0)
    std = np.nanstd(raw, axis=0)
    scale = np.where(high > low, (high - low) / 1.349, np.where(std > 0, std, 1.0))
    made = _Numbers(raw, middle, scale, np.eye(len(columns)))
    near = np.clip(made.standard(raw), -3, 3)
    return made._replace(precision=np.linalg.inv(near.T @ near / len(near) + 0.05 * np.eye(len(columns))))


def _swaps(numbers: _Numbers):
    """Gains ``[h n]`` of exchanging column i with every later one, for each i."""
    raw, precision = numbers.raw, numbers.precision
    z = numbers.standard(raw)
    left = z @ precision
    yield np.zeros((1, len(raw)))
    for i in range(raw.shape[1] - 1):
        others = slice(i + 1, None)
        first = numbers.standard(raw[:, others], i) - z[:, i, None]
        second = numbers.standard(raw[:, i, None], others) - z[:, others]
        linear = 2 * (first * left[:, i, None] + second * left[:, others])
        own = first**2 * precision[i, i] + second**2 * np.diag(precision)[others]
        yield -(linear + own + 2 * first * second * precision[i, others]).T


def _shifts(numbers: _Numbers):
    """Gains of moving all columns from one on back by one, for each first column but the last two."""
    z = numbers.standard(numbers.raw)
    distance = ((z @ numbers.precision) * z).sum(1)
    yield np.zeros((1, len(z)))
    for first in range(z.shape[1] - 2):
        moved = numbers.raw.copy()
        moved[:, first:] = np.roll(moved[:, first:], -1, axis=1)
        back = numbers.standard(moved)
        yield (distance - ((back @ numbers.precision) * back).sum(1))[None]


def _units(numbers: _Numbers):
    """Gains of dividing one column by each of `UNITS`, for each column."""
    z = numbers.standard(numbers.raw)
    left = z @ numbers.precision
    factors = np.array(UNITS)
    for j in range(z.shape[1]):
        change = numbers.standard(numbers.raw[:, j, None] / factors, j) - z[:, j, None]
        yield -(2 * change * left[:, j, None] + change**2 * numbers.precision[j, j]).T
