"""Labels of a regression as networks are trained on them, standardised, and back in their unit.

scale = label_scale.fit(train_y)
z = label_scale.standardise(scale, y)            # float32, mean 0 and deviation 1 over the training labels
y = label_scale.restore(scale, predictions)      # in the unit of the labels
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from d3mjax.types import AnyArray


class LabelScale(NamedTuple):
    """Mean and standard deviation of training labels, in their unit. Errors in that unit are those of z by ``std``."""

    mean: float
    std: float


def fit(y: Shaped[AnyArray, "n"]) -> LabelScale:
    """The scale of labels; raises ValueError if they are all equal or not finite."""
    y = np.asarray(y, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is named below
        mean, std = float(y.mean()), float(y.std())
    if not np.isfinite(std) or y.min() == y.max():
        raise ValueError(f"y: found labels of mean {mean:g} and deviation {std:g}, expected finite ones that vary")
    return LabelScale(mean, std)


def intervals(y: Shaped[AnyArray, "n"], *, count: int = 10) -> Float[np.ndarray, "e"]:
    """Edges of ``count`` intervals of labels, of equal width between the first and the last percentile of ``y``.

    Interval i of a label is ``np.searchsorted(edges, label, side="right")``. Edges that are equal are one, so labels
    that hardly vary have fewer intervals.
    """
    low, high = np.quantile(np.asarray(y, np.float64), [0.01, 0.99])
    return np.unique(np.linspace(low, high, count + 1)[1:-1])


def standardise(scale: LabelScale, y: Shaped[AnyArray, "*n"]) -> Float[np.ndarray, "*n"]:
    """``(y - mean) / std`` in float32, computed in float64."""
    return ((np.asarray(y, np.float64) - scale.mean) / scale.std).astype(np.float32)


def restore(scale: LabelScale, z: Shaped[AnyArray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Standardised labels or predictions in the unit of the labels, in float64."""
    return np.asarray(z, np.float64) * scale.std + scale.mean
