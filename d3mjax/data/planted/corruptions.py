"""Planted errors of known examples: wrong labels, shifted targets, broken features.

Everything about an example derives from ``fold_in(key, id)``, so the order of the examples changes nothing. Each
injector changes exactly the examples flagged by `choose`; flags belong to ids, as rows do. `mixed_errors` plants
several kinds in one table.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Integer, Key

from d3mjax.types import AnyArray, Table

Break = Callable[[Key[jax.Array, ""], jax.Array, jax.Array, jax.Array], jax.Array]
"""``(key, value, mean, std) -> value`` of one number of one row; mean and deviation are those of its column."""


def choose(
    key: Key[jax.Array, ""],
    ids: Integer[AnyArray, "n"],
    num: int,
    *,
    among: Bool[AnyArray, "n"] | None = None,
) -> Bool[np.ndarray, "n"]:
    """Flags of exactly ``num`` examples, every subset of those in ``among`` (None: all) being equally likely.

    Raises:
      ValueError: if ``num`` is negative or more than the eligible examples.
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
    ids: Integer[AnyArray, "n"],
    y: Integer[AnyArray, "n"],
    flags: Bool[AnyArray, "n"],
    *,
    num_classes: int,
) -> Int[np.ndarray, "n"]:
    """Labels where every flagged example has another class, each of the others being equally likely."""
    y = np.asarray(y)
    step = _draw(key, ids, lambda k: jax.random.randint(k, (), 1, num_classes))
    return np.where(np.asarray(flags), (y + step) % num_classes, y).astype(y.dtype)


def shift_targets(
    key: Key[jax.Array, ""],
    ids: Integer[AnyArray, "n"],
    y: Float[AnyArray, "n"],
    flags: Bool[AnyArray, "n"],
) -> Float[np.ndarray, "n"]:
    """Targets of a regression where every flagged one is uniform in their range, a quarter of it away or more."""
    y = np.asarray(y)
    low, high = float(y.min()), float(y.max())
    near = (high - low) / 4
    below, above = np.maximum(y - near - low, 0), np.maximum(high - y - near, 0)  # room on either side
    u = _draw(key, ids, jax.random.uniform) * (below + above)
    moved = np.where(u < below, low + u, y + near + u - below)
    return np.where(np.asarray(flags), moved, y).astype(y.dtype)


def outlier(key: Key[jax.Array, ""], value: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Five deviations above or below the mean of the column."""
    del value
    return mean + 5 * std * jax.random.rademacher(key, ())


def scale(key: Key[jax.Array, ""], value: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """The number times U[0.2, 5]; where it is zero and would not change, the deviation of the column is scaled."""
    del mean
    return jnp.where(value == 0, std, value) * jax.random.uniform(key, (), minval=0.2, maxval=5.0)


def break_features(
    key: Key[jax.Array, ""],
    table: Table,
    flags: Bool[AnyArray, "n"],
    *,
    kinds: tuple[Break, ...] = (outlier, scale),
    per_row: bool = False,
    max_columns: int = 5,
) -> Table:
    """A table where every flagged row has 1 to ``max_columns`` wrong entries.

    Numbers are broken by one of ``kinds``, categories become another level. Columns and kind are one draw for the whole
    table, as in DeMix; with ``per_row`` each row draws its own. A missing entry stays missing, and the entries of a
    constant category stay: rows whose wrong entries are all of that sort do not change.
    """
    names = list(table.columns)
    most = min(max_columns, len(names))
    ids = np.asarray(table.id)

    def draw(k):
        count = jax.random.randint(jax.random.fold_in(k, 0), (), 1, most + 1)
        rank = jax.random.permutation(jax.random.fold_in(k, 1), len(names))
        return rank < count, jax.random.randint(jax.random.fold_in(k, 2), (), 0, len(kinds))

    shared = jax.random.fold_in(key, 0)
    if per_row:
        wrong, kind = (np.asarray(a) for a in _map(shared, ids, draw))
    else:
        wrong, kind = (np.broadcast_to(a, (len(ids), *a.shape)) for a in map(np.asarray, draw(shared)))
    wrong = wrong & np.asarray(flags)[:, None]
    columns = dict(table.columns)
    for i, name in enumerate(names):
        if not wrong[:, i].any():
            continue
        column_key = jax.random.fold_in(jax.random.fold_in(key, 1), i)
        if name in table.levels:
            broken = _other_level(column_key, ids, columns[name], len(table.levels[name]))
        else:
            broken = _broken(column_key, ids, columns[name], kinds, kind)
        columns[name] = np.where(wrong[:, i], broken, columns[name]).astype(columns[name].dtype)
    return table._replace(columns=columns)


def _other_level(key, ids, codes, num_levels):
    step = _draw(key, ids, lambda k: jax.random.randint(k, (), 1, max(num_levels, 2)))
    return np.where(codes < 0, codes, (codes + step) % num_levels)


def _broken(key, ids, values, kinds, kind):
    mean, std = (jnp.float32(f(values)) for f in (np.nanmean, np.nanstd))
    each = [_map(key, ids, lambda k, v, fn=fn: fn(k, v, mean, std), values.astype(np.float32)) for fn in kinds]
    return np.choose(kind, [np.asarray(a, np.float64) for a in each])


def _draw(key, ids, sample) -> np.ndarray:
    """``sample(fold_in(key, id))`` of every example."""
    return np.asarray(_map(key, ids, sample))


def _map(key, ids, fn, *args):
    """``fn(fold_in(key, id), *args)`` of every example, padded to a power of two: few sizes are few compilations."""
    n = len(ids)
    padded = [np.pad(a, (0, (1 << max(n - 1, 1).bit_length()) - n)) for a in (np.asarray(ids, np.int32), *args)]
    results = jax.vmap(lambda i, *a: fn(jax.random.fold_in(key, i), *a))(*padded)
    return jax.tree.map(lambda a: a[:n], results)
