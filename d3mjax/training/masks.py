"""Subset masks by identity: row j depends on ``(key, ids[j])`` alone, not on its position, block or device."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from d3mjax.training.sampling import permute
from d3mjax.types import AnyArray, classes_of


def _rows(key, ids, row):
    return jax.vmap(lambda j: row(jax.random.fold_in(key, j)))(ids)


def _subset(key: Key[Array, ""], num_examples: int, size: Int[Array, ""]) -> Bool[Array, "n"]:
    index = jnp.arange(num_examples)
    seed = jax.random.bits(key, dtype=jnp.uint32)
    return permute(jnp.broadcast_to(seed, index.shape), index, jnp.int32(num_examples)) < size


def fixed_size(key: Key[Array, ""], ids: Int[AnyArray, "m"], num_examples: int, num_keep: int) -> Bool[Array, "m n"]:
    """Masks of exactly ``num_keep`` examples, uniform over the subsets of that size.

    All rows have the same sum, so the mean of datamodel weights and the bias are not identified separately.

    Raises:
      ValueError: if ``num_keep`` is not in 0..num_examples.
    """
    _check_size("num_keep", num_keep, num_examples)
    return _rows(key, ids, lambda k: _subset(k, num_examples, jnp.int32(num_keep)))


def mixed_sizes(
    key: Key[Array, ""], ids: Int[AnyArray, "m"], num_examples: int, min_keep: int, max_keep: int
) -> Bool[Array, "m n"]:
    """Masks of random size, uniform on ``min_keep..max_keep``, and uniform over the subsets of that size.

    The varying size identifies the level (the mean over train examples) of datamodel weights.

    Raises:
      ValueError: if the bounds are not ordered within 0..num_examples.
    """
    _check_size("min_keep", min_keep, num_examples)
    _check_size("max_keep", max_keep, num_examples)
    if min_keep > max_keep:
        raise ValueError(f"min_keep: found {min_keep}, expected at most max_keep = {max_keep}")

    def row(k):
        size_key, subset_key = jax.random.split(k)
        return _subset(subset_key, num_examples, jax.random.randint(size_key, (), min_keep, max_keep + 1))

    return _rows(key, ids, row)


def bernoulli(key: Key[Array, ""], ids: Int[AnyArray, "m"], num_examples: int, share: float) -> Bool[Array, "m n"]:
    """Masks that keep each example independently with probability ``share``.

    Raises:
      ValueError: if ``share`` is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: found {share}, expected a probability in [0, 1]")
    return _rows(key, ids, lambda k: jax.random.bernoulli(k, share, (num_examples,)))


def check_weights(weights: Float[AnyArray, "*m n"] | Bool[AnyArray, "*m n"], y: Shaped[AnyArray, "n"]) -> None:
    """Check training weights ``[n]`` or ``[m n]`` on the host before any training; numbers as labels have no classes.

    Raises:
      ValueError: if a weight is negative or not finite, if the length differs from that of ``y``, if a row has no
        positive weight, or if a row leaves a class of ``y`` without examples.
    """
    weights, y = np.asarray(weights), np.asarray(y)
    if weights.shape[-1] != y.shape[0]:
        raise ValueError(f"weights: found length {weights.shape[-1]}, expected {y.shape[0]} as in y")
    rows = weights.reshape(-1, y.shape[0])
    bad = ~np.isfinite(rows) | (rows < 0)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"weights: found {rows[row, column]} for example {column} of row {row}, expected finite numbers >= 0"
        )
    for label in np.unique(y := np.asarray(classes_of(y))):
        empty = ~(rows[:, y == label] > 0).any(axis=1)
        if empty.any():
            where = f"row {np.flatnonzero(empty)[0]}"
            if not (rows[empty] > 0).any():
                raise ValueError(f"weights: found only zeros in {where}, expected at least one positive weight a class")
            raise ValueError(f"weights: found no example of class {label} left in {where}, expected at least one")


def _check_size(name: str, size: int, num_examples: int) -> None:
    if not 0 <= size <= num_examples:
        raise ValueError(f"{name}: found {size}, expected a number of examples in 0..{num_examples}")
