"""Ratings of items by users, and the samples that a recommender learns from.

    ratings = rating_files.movielens_small()
    train, validation, test = samples(ratings, seed=0)

A sample is one interaction with what came before it: the items that the user took up to then, and features of user and
item at that time. Nothing in it is later than the interaction. Features with several values at once, such as genres,
are *sets*: one column of two levels a member.

Published data are read by `rating_files`. Samples are those of DeMix (Deng et al., arXiv 2606.11616), which keeps the
last interaction of each user; ``last`` keeps more.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer

from d3mjax.data import tables
from d3mjax.types import AnyArray, Table

SHARES = (0.7, 0.15, 0.15)  # of all samples by time: training, validation, test
YES = ("no", "yes")  # levels of a column that belongs to a set
MOST_LEVELS = 50  # of a category, by frequency, others being OTHER; and members of a set, others being left out
OTHER = "other"


Column = Sequence[Any] | np.ndarray


class Raw(NamedTuple):
    """Features of users or items as published, one row each: numbers, texts, and lists of the members of a set."""

    name: Column  # published ids
    columns: Mapping[str, np.ndarray] = MappingProxyType({})
    sets: Mapping[str, Sequence[Sequence[str]]] = MappingProxyType({})


class Entities(NamedTuple):
    """Users or items that occur in ratings."""

    name: np.ndarray  # [k], published ids
    table: Table  # k rows, perhaps without any column
    sets: dict[str, tuple[str, ...]]  # columns of each set


class Ratings(NamedTuple):
    """Who rated what, how, and when."""

    user: Int[np.ndarray, " n"]  # row of ``users``
    item: Int[np.ndarray, " n"]  # row of ``items``
    rating: Float[np.ndarray, " n"]
    time: Integer[np.ndarray, " n"]  # seconds; the number of the row if not ``timed``
    timed: bool
    context: Table  # n rows: features of the interactions themselves
    users: Entities
    items: Entities


class Samples(NamedTuple):
    """Interactions to learn from; arrays have one row a sample."""

    user: Int[np.ndarray, " n"]
    item: Int[np.ndarray, " n"]  # the candidate
    history: Int[np.ndarray, "n h"]  # items before, oldest first; -1 behind the last
    y: Int[np.ndarray, " n"]  # 1: taken, or liked
    time: Integer[np.ndarray, " n"]
    table: Table  # features; ids as for `Split`: the row of the interaction, negatives behind all of them
    sides: dict[str, tuple[str, ...]]  # columns of "user", of "item", and of the interaction itself, "context"
    sets: dict[str, tuple[str, ...]]  # columns of each set


def from_columns(
    user: Column,
    item: Column,
    rating: Column,
    time: Column | None,
    *,
    scale: tuple[int | float, int | float],
    users: Raw | None = None,
    items: Raw | None = None,
    context: Mapping[str, np.ndarray] | None = None,
) -> Ratings:
    """Ratings of columns of equal length. Users and items without a rating are left out.

    A rated item that ``items`` lacks has missing features; so do users. ``time`` None, or missing everywhere: the order
    of the rows stands for time.

    Raises:
      ValueError: no row; lengths differ; a rating outside the ``scale``, naming its row; a time that is missing in some
        rows; an id that ``users`` or ``items`` has twice.
    """
    value = np.asarray(rating, np.float64)
    lengths = {"user": len(user), "item": len(item), "rating": len(value)}
    if time is not None:
        lengths["time"] = len(time)
    if len(set(lengths.values())) != 1 or not len(value):
        raise ValueError(f"columns: found lengths {lengths}, expected one common length, above 0")
    outside = np.flatnonzero(~((value >= scale[0]) & (value <= scale[1])))
    if len(outside):
        row, count = outside[0], len(outside)
        raise ValueError(f"rating: found {value[row]} in row {row} ({count} in all), expected {scale[0]} to {scale[1]}")
    seconds = np.full(len(value), np.nan) if time is None else np.asarray(time, np.float64)
    missing = ~np.isfinite(seconds)
    if missing.any() and not missing.all():
        row, count = np.flatnonzero(missing)[0], int(missing.sum())
        raise ValueError(f"time: found none in row {row} ({count} in all), expected one in every row, or in no row")
    timed = not missing.all()
    order = seconds.astype(np.int64) if timed else np.arange(len(value))
    user_row, of_users = _entities(user, users, "users")
    item_row, of_items = _entities(item, items, "items")
    of_context = _table(dict(context or {}), len(value))
    return Ratings(user_row, item_row, value, order, timed, of_context, of_users, of_items)


def samples(
    ratings: Ratings,
    *,
    seed: int = 0,
    last: int = 10,
    history: int = 100,
    liked: float | None = None,
) -> tuple[Samples, Samples, Samples]:
    """Training, validation and test samples: the first 70 % by time of all users together, the next and last 15 %.

    Every interaction after a user's first is a sample; in each part a user keeps the ``last`` ones. ``liked`` None:
    each has y = 1, and a copy with y = 0 whose item is drawn, by ``seed`` and interaction, among those that the user
    never took. Otherwise y is ``rating >= liked``, without copies. User and item have two more features: how
    many ratings came before (natural logarithm of 1 more), and their mean.

    Raises:
      ValueError: ``last`` or ``history`` below 1; a part without samples; a user who took all items.
    """
    if min(last, history) < 1:
        raise ValueError(f"last, history: found {last} and {history}, expected 1 or more of each")
    order = np.lexsort((np.arange(len(ratings.user)), ratings.time, ratings.user))
    start = np.flatnonzero(np.r_[True, np.diff(ratings.user[order]) > 0])
    place = np.arange(len(order)) - np.repeat(start, np.diff(np.r_[start, len(order)]))  # in the history of its user
    rows = np.sort(order[place > 0])
    rows = rows[np.argsort(ratings.time[rows], kind="stable")]
    stops = [0, int(len(rows) * SHARES[0]), int(len(rows) * (SHARES[0] + SHARES[1])), len(rows)]
    parts = [_last_of_each(ratings.user, rows[a:b], last) for a, b in itertools.pairwise(stops)]
    if not all(map(len, parts)):
        sizes, single = list(map(len, parts)), int((np.bincount(ratings.user) < 2).sum())
        raise ValueError(
            f"ratings: found {sizes} samples in training, validation and test, expected some in each; {single} users "
            "have no history before their only rating"
        )
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    of_row = lambda r: order[position[r] - min(place[position[r]], history) : position[r]]
    made = []
    for chosen in parts:
        before = np.full((len(chosen), history), -1, np.int32)
        for i, r in enumerate(chosen):
            items = ratings.item[of_row(r)]
            before[i, : len(items)] = items
        y = np.ones(len(chosen)) if liked is None else ratings.rating[chosen] >= liked
        rows_of, items, ids = chosen, ratings.item[chosen], chosen
        if liked is None:
            negatives = _unseen(ratings, chosen, seed)
            rows_of, y = np.tile(chosen, 2), np.concatenate([y, np.zeros(len(chosen))])
            items, before = np.concatenate([items, negatives]), np.tile(before, (2, 1))
            ids = np.concatenate([chosen, chosen + len(ratings.user)])
        made.append(_samples(ratings, rows_of, items, before, y.astype(np.int32), ids))
    return made[0], made[1], made[2]


def take(part: Samples, index: Integer[AnyArray, " k"] | Bool[AnyArray, " n"]) -> Samples:
    """The samples at ``index`` (positions, in that order, or a mask), ids kept."""
    index = np.asarray(index)
    arrays = {name: getattr(part, name)[index] for name in ("user", "item", "history", "y", "time")}
    return part._replace(**arrays, table=tables.take(part.table, index))


def popularity(ratings: Ratings, part: Samples) -> Int[np.ndarray, " n"]:
    """How often the item of each sample was rated before it: the floor of any recommender."""
    return _before(ratings.item, ratings.time, ratings.rating, part.item, part.time)[0]


def inputs(part: Samples, by: Samples, items: Entities) -> dict[str, np.ndarray]:
    """What `networks.din` sees; numbers less their mean in ``by``, over their deviation.

    ``user``, ``item`` and ``history`` are rows of users and items; ``levels [n k]`` the categories that belong to no
    set; ``members [n g]`` the sets of the candidate, ``history_members [n h g]`` those of ``items`` as published.
    """
    published = [name for names in items.sets.values() for name in names]
    members = [f"item: {name}" for name in published]
    levels = [name for name in part.table.levels if name not in members]
    numbers = [name for name in part.table.columns if name not in part.table.levels]
    alone = lambda table: Table({name: table.columns[name] for name in numbers}, {}, table.id)
    known = part.history[:, :, None] >= 0
    return {
        "user": part.user,
        "item": part.item,
        "history": part.history,
        "levels": _stacked(part.table, levels),
        "numbers": tables.encode(tables.fit_encoder(alone(by.table)), alone(part.table)),
        "members": (_stacked(part.table, members) > 0).astype(np.int8),
        "history_members": (known & (_stacked(items.table, published) > 0)[part.history]).astype(np.int8),
    }


def _stacked(table: Table, names: Sequence[str]) -> Int[np.ndarray, "n k"]:
    return np.stack([*(table.columns[name] for name in names), table.id], 1)[:, :-1].astype(np.int32)


def _samples(ratings: Ratings, rows, items, before, y, ids) -> Samples:
    user, time = ratings.user[rows], ratings.time[rows]
    by = ratings.time, ratings.rating
    activity, own = _before(ratings.user, *by, user, time)
    popular, mean = _before(ratings.item, *by, items, time)
    sources = {
        "user": (ratings.users.table, user, {"activity": np.log1p(activity), "mean rating given": own}),
        "item": (ratings.items.table, items, {"popularity": np.log1p(popular), "mean rating": mean}),
        "context": (ratings.context, rows, {}),
    }
    columns, levels, sides = {}, {}, {}
    for side, (table, at, counted) in sources.items():
        of_side = counted | {name: column[at] for name, column in table.columns.items()}
        named = {f"{side}: {name}": column for name, column in of_side.items()}
        columns |= named
        levels |= {f"{side}: {name}": of for name, of in table.levels.items()}
        sides[side] = tuple(named)
    sets = {f"item: {name}": tuple(f"item: {n}" for n in names) for name, names in ratings.items.sets.items()}
    table = Table(columns, levels, np.asarray(ids, np.int32))
    user, item, history, y = (np.asarray(a, np.int32) for a in (user, items, before, y))
    return Samples(user, item, history, y, time, table, sides, sets)


def _before(entity, time, rating, of, at) -> tuple[Int[np.ndarray, " q"], Float[np.ndarray, " q"]]:
    """Ratings of the entities ``of`` earlier than ``at``: their number, and their mean, NaN without any."""
    moments = np.unique(time)
    key = lambda e, t: e.astype(np.int64) * (len(moments) + 1) + np.searchsorted(moments, t)
    keys = key(entity, time)
    order = np.argsort(keys, kind="stable")
    first = np.searchsorted(keys[order], of.astype(np.int64) * (len(moments) + 1))
    last = np.searchsorted(keys[order], key(of, at))
    total = np.r_[0.0, np.cumsum(rating[order])]
    count = last - first
    return count, np.where(count > 0, total[last] - total[first], np.nan) / np.maximum(count, 1)


def _last_of_each(user, rows, last: int):
    """The ``last`` rows of each user, in the order of the rows."""
    backwards = rows[::-1]
    order = np.argsort(user[backwards], kind="stable")
    counts = np.unique(user[backwards], return_counts=True)[1]
    rank = np.concatenate([np.zeros(0, int), *(np.arange(count) for count in counts)])
    kept = np.zeros(len(rows), bool)
    kept[order[rank < last]] = True
    return rows[kept[::-1]]


def _unseen(ratings: Ratings, rows, seed: int):
    """An item for each interaction that its user never took; drawn by seed and interaction alone."""
    num_items = len(ratings.items.name)
    taken = np.unique(ratings.user.astype(np.int64) * num_items + ratings.item)
    users = ratings.user[rows]
    full = np.bincount(taken // num_items, minlength=len(ratings.users.name)) >= num_items
    if full[users].any():
        name = ratings.users.name[users[full[users]][0]]
        raise ValueError(f"ratings: found user {name} with all {num_items} items, expected users who left some")
    items = np.empty(len(rows), np.int64)
    for i, (user, row) in enumerate(zip(users.astype(np.int64), rows, strict=True)):
        rng = np.random.default_rng((seed, int(row)))
        while True:
            items[i] = rng.integers(num_items)
            at = np.searchsorted(taken, key := user * num_items + items[i])
            if at == len(taken) or taken[at] != key:
                break
    return items


def _entities(occurring: Column, raw: Raw | None, argument: str) -> tuple[Int[np.ndarray, " n"], Entities]:
    """Rows of the entities that occur, and their features."""
    names, rows = np.unique(np.asarray(occurring), return_inverse=True)
    raw = Raw(names) if raw is None else raw
    at = {name: i for i, name in enumerate(np.asarray(raw.name).tolist())}
    if len(at) != len(raw.name):
        raise ValueError(f"{argument}: found {len(raw.name)} rows of {len(at)} ids, expected one row an id")
    index = np.array([at.get(name, -1) for name in names.tolist()])
    columns: dict[str, np.ndarray] = {}
    for name, values in raw.columns.items():
        values = np.asarray(values)
        numeric = values.dtype.kind in "biuf"
        published = values.astype(np.float64) if numeric else _frequent(values)
        columns[name] = np.append(published, np.nan if numeric else "")[index]  # at -1, the one that is missing
    made, sets = _table(columns, len(names)), {}
    for name, lists in raw.sets.items():
        has = [frozenset() if i < 0 else frozenset(map(str, lists[i])) for i in index]
        counts = Counter(member for of in has for member in sorted(of))
        members = sorted(member for member, _ in counts.most_common(MOST_LEVELS))
        sets[name] = tuple(f"{name}: {member}" for member in members)
        for member, column in zip(members, sets[name], strict=True):
            made.columns[column] = np.array([member in of for of in has], np.int32)
            made.levels[column] = YES
    return rows.astype(np.int32), Entities(names, made, sets)


def _table(columns: dict[str, np.ndarray], count: int) -> Table:
    """A table, perhaps without columns; the empty text is missing."""
    levels = {n: tuple(np.unique(a[a != ""]).tolist()) for n, a in columns.items() if a.dtype.kind in "US"}
    if not columns:
        return Table({}, {}, np.arange(count, dtype=np.int32))
    return tables.from_columns(columns, levels=levels)


def _frequent(values: np.ndarray) -> np.ndarray:
    """Texts in small letters; all but the most frequent ones become `OTHER`."""
    texts = np.array([str(value or "").strip().lower() for value in values.tolist()])
    names, counts = np.unique(texts[texts != ""], return_counts=True)
    if len(names) <= MOST_LEVELS:
        return texts
    kept = names[np.argsort(-counts, kind="stable")[: MOST_LEVELS - 1]]
    return np.where((texts == "") | np.isin(texts, kept), texts, OTHER)
