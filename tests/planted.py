"""What tests of several rooms share: problems planted in made data, and comparisons up to rounding."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from d3mjax.types import Split


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal numbers in float32, of their own seed: the same whichever tests ran before."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def split_of(x: Any, y: Any, group: Any = None) -> Split:
    """A split with ids 0, 1, ...; group 0 for all unless given."""
    count = len(y)
    return Split(x, y, np.zeros(count, int) if group is None else group, np.arange(count))


def close(got: Any, expected: Any, *, terms: int = 1, scale: float | None = None) -> None:
    """Leaves are equal up to rounding: ``4 terms eps scale``, eps being that of the coarser of both dtypes.

    ``terms``: how many rounded operations follow each other, such as the length of a sum times the number of steps; a
    solve multiplies them by its condition. ``scale``: the size of what is rounded; the largest finite number expected
    unless given.
    """

    def compare(got, expected):
        got, expected = np.asarray(got), np.asarray(expected)
        eps = max((np.finfo(a.dtype).eps for a in (got, expected) if a.dtype.kind == "f"), default=0.0)
        size = np.abs(expected[np.isfinite(expected)]).max(initial=0.0) if scale is None else scale
        np.testing.assert_allclose(got, expected, rtol=0, atol=float(4 * terms * eps * size))

    jax.tree.map(compare, got, expected)


def equal(got: Any, expected: Any) -> None:
    """Leaves are equal to the last bit."""
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def mesh_of(devices: int) -> Mesh:
    """A mesh over the first virtual devices."""
    return jax.make_mesh((devices,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def count_traces(fn: Callable) -> tuple[Callable, list[Any]]:
    """``fn``, and a list that holds the arguments of every call: of one inside jit, of every trace."""
    traces: list[Any] = []

    def counted(*args, **options):
        traces.append(args)
        return fn(*args, **options)

    return counted, traces
