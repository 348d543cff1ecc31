"""Wrong labels, wrong records of items and users, and a spurious minority among interactions, with the errors of each.

    errors = interaction_errors.inject(key, samples, rule, options=Options(clean=0.5))
    errors.samples, errors.flags     # Bool[n e]: label flipped, record broken, minority of the rule

As DeMix plants them in recommenders (Deng et al., arXiv 2606.11616): the minority is a part of the errors, and no row
has two of them. A record is broken as a whole: all rows of the item, or of the user, have the same wrong features. The
public code differs: it also breaks rows of these entities that it does not flag, and compares sets as texts, so that
its rules on genres are met by hardly any row.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int, Key

from d3mjax.data.planted import corruptions, mixed_errors
from d3mjax.data.planted.mixed_errors import Rule
from d3mjax.data.sets import ratings
from d3mjax.data.sets.ratings import Samples
from d3mjax.types import Table, checked_names

SIDES = ("item", "user")


@checked_names
class Options(NamedTuple):
    """Which errors `inject` plants, and in how many rows."""

    clean: float = 0.5  # share of the rows without any error, of which the minority is one
    share: float = 0.1  # of the minority, in the rows that stay
    size: int | None = None  # number of rows to keep; None is as many as there can be
    most: int = 3  # features of a record that are wrong, 1 to this


class Errors(NamedTuple):
    """Samples with planted errors: those given to `inject`, less rows that made the rule too weak."""

    samples: Samples
    flags: Bool[np.ndarray, "n e"]  # label flipped, record broken, minority of the rule; at most one a row
    clean: Samples


def inject(key: Key[jax.Array, ""], samples: Samples, rule: Rule, *, options: Options = Options()) -> Errors:
    """Errors in all but a share ``clean`` of the rows, the minority of ``rule`` being one of them.

    Rows are left out by `mixed_errors.subset` until the minority has its ``share``. Of ``floor((1 - clean) n)`` rows
    less the minority, half (rounded down) have their label flipped, the others a broken record: records of users and of
    items alternate, in random order, as long as all rows of one fit into what is left. Only entities without a minority
    row are broken; labels are flipped in other rows. 1 to ``most`` features of a record are wrong, all alike on all
    rows: a number is 5 deviations from the mean, a category another level, a set that of another row. A missing or
    constant category stays as it is.

    Everything about a row or record derives from its id: two parts with one key break the records of a user alike.

    Raises:
      ValueError: ``clean`` leaves less than the minority; entities whose rows do not add up; as `mixed_errors.subset`.
    """
    clean, share, size, most = options
    part = [jax.random.fold_in(key, i) for i in range(4)]
    samples = ratings.take(
        samples, mixed_errors.subset(part[0], samples.table, samples.y, rule, share=share, size=size)
    )
    rare, ids = mixed_errors.minority(rule, samples.table, samples.y), samples.table.id
    left = int((1 - clean) * len(ids) + 1e-9) - int(rare.sum())
    if left < 0:
        raise ValueError(
            f"clean: found {clean} with a minority of {rare.mean():.2f}, expected 1 less the minority at most"
        )
    of_side = _broken(part[1], samples, rare, left - left // 2)
    broken = of_side["item"] | of_side["user"]
    flipped = corruptions.choose(part[2], ids, left // 2, among=~(rare | broken))
    dirty = samples
    for i, side in enumerate(SIDES):
        dirty = dirty._replace(table=_spoiled(jax.random.fold_in(part[3], i), dirty, side, of_side[side], most))
    y = np.where(flipped, 1 - samples.y, samples.y).astype(np.int32)
    return Errors(dirty._replace(y=y), np.stack([flipped, broken, rare], 1), samples)


def features_of(samples: Samples, side: str) -> list[tuple[str, ...]]:
    """What can be wrong in a record: each feature as its columns, of which a set has several."""
    joined = {name: columns for columns in samples.sets.values() for name in columns}
    return list(dict.fromkeys(joined.get(name, (name,)) for name in samples.sides[side]))


def _broken(key, samples: Samples, rare, num: int) -> dict[str, Bool[np.ndarray, " n"]]:
    """Rows of broken records by side: exactly ``num`` in all."""
    flags = {side: np.zeros(len(rare), bool) for side in SIDES}
    queues = {side: _queue(key, i, samples, side, rare) for i, side in enumerate(SIDES)}
    left = num
    while left and any(queues.values()):
        side = min((side for side in SIDES if queues[side]), key=lambda side: flags[side].sum())
        rows = queues[side].pop()
        if len(rows) <= left and not any(of_side[rows].any() for of_side in flags.values()):
            flags[side][rows] = True
            left -= len(rows)
    if left:
        raise ValueError(f"samples: found records of {num - left} rows to break, expected {num}; plant fewer errors")
    return flags


def _queue(key, number: int, samples: Samples, side: str, rare) -> list[Int[np.ndarray, " r"]]:
    """Rows of each entity that has no minority row, the entities in random order; none if it has no features."""
    if not samples.sides[side]:
        return []
    entities, at = np.unique(getattr(samples, side), return_inverse=True)
    rows = np.split(np.argsort(at, kind="stable"), np.cumsum(np.bincount(at))[:-1])
    order = np.lexsort((entities, _bits(jax.random.fold_in(key, number), entities)[:, 0]))
    return [rows[i] for i in order if not rare[rows[i]].any()]


def _spoiled(key, samples: Samples, side: str, broken, most: int) -> Table:
    """The table with wrong features of one side in the ``broken`` rows."""
    features, table = features_of(samples, side), samples.table
    columns = {name: values.copy() for name, values in table.columns.items()}
    entities, at = np.unique(getattr(samples, side), return_inverse=True)
    bits, by_id = _bits(key, entities), np.argsort(table.id)
    for e in np.unique(at[broken]):
        rows, rng = np.flatnonzero(at == e), np.random.default_rng(bits[e])
        for k in rng.permutation(len(features))[: rng.integers(1, min(most, len(features)) + 1)]:
            names = features[k]
            if names in samples.sets.values():
                sets = np.stack([table.columns[name] for name in names], 1)
                others = by_id[(sets[by_id] != sets[rows[0]]).any(1)]
                wrong = sets[rng.choice(others) if len(others) else rows[0]]
            else:
                wrong = [_wrong(rng, table.columns[names[0]], len(table.levels.get(names[0], ())), rows)]
            for name, value in zip(names, wrong, strict=True):
                columns[name][rows] = value
    return table._replace(columns=columns)


def _wrong(rng: np.random.Generator, values: np.ndarray, num_levels: int, rows: np.ndarray) -> np.ndarray:
    """Another level, or for numbers one that is far away; a missing or constant category stays."""
    if not num_levels:
        return np.full(len(rows), np.nanmean(values) + 5 * np.nanstd(values) * rng.choice([-1.0, 1.0]))
    step = rng.integers(1, max(num_levels, 2))
    return np.where(values[rows] < 0, values[rows], (values[rows] + step) % num_levels)


def _bits(key: Key[jax.Array, ""], ids: Int[np.ndarray, " k"]) -> np.ndarray:
    """Four random numbers of each id."""
    return np.asarray(jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (4,)))(ids))
