"""Planted errors whose truth is known: which examples, and what becomes of them.

Everything about an example derives from ``fold_in(key, id)``, so the order of the examples changes nothing. Each
injector changes exactly the examples flagged by ``choose``; flags belong to ids, as rows do.
"""

import jax
import numpy as np
from jaxtyping import Bool, Int, Integer, Key

from d3mjax.types import AnyArray


def choose(
    key: Key[jax.Array, ""],
    ids: Integer[AnyArray, " n"],
    num: int,
    *,
    among: Bool[AnyArray, " n"] | None = None,
) -> Bool[np.ndarray, " n"]:
    """Flags of exactly ``num`` examples, every subset of those in ``among`` (None: all) being equally likely.

    Raises:
      ValueError: if ``num`` is negative or more than there are.
    """
    ids = np.asarray(ids)
    eligible = np.ones(len(ids), bool) if among is None else np.asarray(among)
    if not 0 <= num <= eligible.sum():
        raise ValueError(f"num: found {num}, expected a number of examples in 0..{eligible.sum()}")
    order = np.lexsort((ids, _draw(key, ids, jax.random.bits), ~eligible))
    flags = np.zeros(len(ids), bool)
    flags[order[:num]] = True
    return flags


def flip_labels(
    key: Key[jax.Array, ""],
    ids: Integer[AnyArray, " n"],
    y: Integer[AnyArray, " n"],
    flags: Bool[AnyArray, " n"],
    *,
    num_classes: int,
) -> Int[np.ndarray, " n"]:
    """Labels where every flagged example has another class, each of the others being equally likely."""
    y = np.asarray(y)
    step = _draw(key, ids, lambda k: jax.random.randint(k, (), 1, num_classes))
    return np.where(np.asarray(flags), (y + step) % num_classes, y).astype(y.dtype)


def _draw(key, ids, sample) -> np.ndarray:
    """``sample(fold_in(key, id))`` of every example."""
    return np.asarray(jax.vmap(lambda i: sample(jax.random.fold_in(key, i)))(np.asarray(ids, np.int32)))
