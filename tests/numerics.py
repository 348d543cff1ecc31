"""Comparison of results with a tolerance that follows from precision and scale, whatever the machine."""

import numpy as np
from numpy.typing import ArrayLike


def close(got: ArrayLike, want: ArrayLike, units: float = 100.0) -> None:
    """Assert that ``got`` equals ``want`` up to ``units`` roundings of the largest value, in the precision of ``got``.

    Sums of n terms in another order differ by some sqrt(n) to n roundings; a solve multiplies them by its condition.
    Float64 results of float32 inputs are as good as those: pass what was computed.
    """
    got, want = np.asarray(got), np.asarray(want)
    eps = np.finfo(got.dtype).eps if np.issubdtype(got.dtype, np.floating) else 0.0
    scale = np.abs(want[np.isfinite(want)]).max(initial=0.0)
    np.testing.assert_allclose(got, want, rtol=0, atol=float(units * eps * scale))
