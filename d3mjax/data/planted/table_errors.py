"""Further forms of broken rows: swapped columns, other units, shifted rows, copied cells, typos, stuck sensors, copies.

    table, flags = table_errors.plant(key, table, table_errors.FORMS["unit change"], 40)

A form changes every row that it can, and `plant` takes exactly the flagged rows of what it returns. Columns, units and
distances depend on the key and the columns' names alone, so that train and validation rows are broken alike; rows are
known by their ids, so that their order changes nothing. A form that a table cannot have, such as typos without
categories, changes no row and is refused.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Key

from d3mjax.data.planted import corruptions
from d3mjax.types import AnyArray, Table

UNITS = (2.54, 0.4536, 1.609, 12.0, 60.0, 100.0, 1000.0, 0.001)
"""Factors between units: inches, pounds, miles, dozens or months, minutes, per cent, thousands, thousandths."""
MOST_COLUMNS = 5


class Form(NamedTuple):
    """One sort of error."""

    change: Callable[[Key[jax.Array, ""], Table], Table]  # with every row changed that can be
    block: int = 1  # rows that follow each other by id and are broken together


def plant(
    key: Key[jax.Array, ""], table: Table, form: Form, num: int, *, among: Bool[AnyArray, "n"] | None = None
) -> tuple[Table, Bool[np.ndarray, "n"]]:
    """The table with exactly ``num`` rows broken, and their flags; rows outside ``among`` (None: all) stay.

    Raises:
      ValueError: if the form cannot change as many rows of the table.
    """
    changed, eligible = _changed(key, table, form, among)
    if num > eligible.sum():
        raise ValueError(f"form: found {eligible.sum()} rows that it can change, expected at least {num}")
    flags = _choose(jax.random.fold_in(key, 1), table.id, num, eligible, form.block)
    columns = {name: np.where(flags, changed.columns[name], a).astype(a.dtype) for name, a in table.columns.items()}
    return changed._replace(columns=columns), flags


def possible(
    key: Key[jax.Array, ""], table: Table, num: int, *, among: Bool[AnyArray, "n"] | None = None
) -> tuple[str, ...]:
    """Names of the `FORMS` that `plant` accepts with the same arguments, in their order."""
    return tuple(name for name, form in FORMS.items() if _changed(key, table, form, among)[1].sum() >= num)


def broken_values(key: Key[jax.Array, ""], table: Table) -> Table:
    """Outliers, other scales or other levels in one to five columns, as `corruptions.break_features`."""
    return corruptions.break_features(key, table, np.ones(len(table.id), bool))


def swapped_columns(key: Key[jax.Array, ""], table: Table) -> Table:
    """Two columns of numbers exchanged."""
    names = _drawn(key, _numbers(table))[:2]
    return _replaced(table, dict(zip(names, [table.columns[name] for name in names[::-1]], strict=True)))


def unit_change(key: Key[jax.Array, ""], table: Table) -> Table:
    """One column of numbers in another unit: times one of `UNITS`."""
    factor = UNITS[int(jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(UNITS)))]
    return _replaced(table, {name: table.columns[name] * factor for name in _drawn(key, _numbers(table))[:1]})


def shifted_rows(key: Key[jax.Array, ""], table: Table) -> Table:
    """Numbers from one column on moved to the next column of numbers, the last to the first of these."""
    names = _numbers(table)
    if len(names) < 3:
        return table
    first = int(jax.random.randint(key, (), 0, len(names) - 2))
    moved = names[first:]
    return _replaced(table, dict(zip(moved[1:] + moved[:1], [table.columns[name] for name in moved], strict=True)))


def copied_cells(key: Key[jax.Array, ""], table: Table) -> Table:
    """One to five columns as in the row above, in the order of ids; the first row is below the last."""
    names = list(table.columns)
    count = int(jax.random.randint(jax.random.fold_in(key, 1), (), 1, min(MOST_COLUMNS, len(names)) + 1))
    above = _above(table, 1)
    return _replaced(table, {name: table.columns[name][above] for name in _drawn(key, names)[:count]})


def typos(key: Key[jax.Array, ""], table: Table) -> Table:
    """New levels of one category, misspelt: two neighbouring letters exchanged, or the last doubled."""
    for name in _drawn(key, list(table.levels))[:1]:
        levels, codes = table.levels[name], table.columns[name]
        misspelt = []
        for level in levels:
            misspelt.append(_misspelt(level, {*levels, *misspelt}))
        widened = table._replace(levels={**table.levels, name: (*levels, *misspelt)})
        return _replaced(widened, {name: np.where(codes < 0, codes, codes + len(levels)).astype(codes.dtype)})
    return table


def stuck_sensor(key: Key[jax.Array, ""], table: Table) -> Table:
    """One column of numbers at one value, that of the row of lowest id that has one."""
    first = np.argsort(table.id)
    changes = {}
    for name in _drawn(key, _numbers(table))[:1]:
        values = table.columns[name][first]
        present = values[np.isfinite(values)]
        changes[name] = np.full(len(first), present[0] if len(present) else np.nan)
    return _replaced(table, changes)


def duplicated_rows(key: Key[jax.Array, ""], table: Table) -> Table:
    """All columns as in the row a fixed number of rows above, in the order of ids; the label is the row's own."""
    n = len(table.id)
    above = _above(table, int(jax.random.randint(key, (), max(n // 4, 1), max(n // 2, 2))))
    return _replaced(table, {name: a[above] for name, a in table.columns.items()})


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "broken values": Form(broken_values),
        "swapped columns": Form(swapped_columns),
        "unit change": Form(unit_change),
        "shifted rows": Form(shifted_rows),
        "copied cells": Form(copied_cells),
        "typos": Form(typos),
        "stuck sensor": Form(stuck_sensor, block=10),
        "duplicated rows": Form(duplicated_rows, block=10),
    }
)
"""By name; the first is that of DeMix."""


def _changed(key, table: Table, form: Form, among) -> tuple[Table, Bool[np.ndarray, "n"]]:
    """The table as the form changes it, and the rows that differ and are ``among``; missing numbers are equal."""
    changed = form.change(jax.random.fold_in(key, 0), table)
    different = [
        (a != b) & ~((a != a) & (b != b)) for a, b in zip(table.columns.values(), changed.columns.values(), strict=True)
    ]
    return changed, np.any(different, axis=0) & (True if among is None else np.asarray(among))


def _numbers(table: Table) -> list[str]:
    return [name for name in table.columns if name not in table.levels]


def _drawn(key, names: list[str]) -> list[str]:
    """The names in random order."""
    return [names[i] for i in np.asarray(jax.random.permutation(key, len(names)))] if names else []


def _replaced(table: Table, columns: Mapping[str, np.ndarray]) -> Table:
    return table._replace(columns={name: columns.get(name, a) for name, a in table.columns.items()})


def _above(table: Table, distance: int) -> np.ndarray:
    """For each row the position of that ``distance`` rows above it, by id."""
    order = np.argsort(table.id)
    above = np.empty_like(order)
    above[order] = np.roll(order, distance)
    return above


def _misspelt(level: str, known: set[str]) -> str:
    """A misspelling of the level that is none of the ``known`` ones."""
    swaps = (level[:i] + level[i + 1] + level[i] + level[i + 2 :] for i in range(len(level) - 1))
    free = next((text for text in swaps if text not in known), level + level[-1:])
    while free in known:
        free += level[-1:] or "?"
    return free


def _choose(key, ids, num: int, eligible, block: int) -> Bool[np.ndarray, "n"]:
    """`corruptions.choose` for blocks of eligible rows that follow each other by id; the last block may be cut off."""
    flags = np.zeros(len(ids), bool)
    rows = np.flatnonzero(eligible)
    rows = rows[np.argsort(np.asarray(ids)[rows])]
    blocks = np.arange(len(rows)) // block
    starts = np.asarray(ids)[rows[::block]]
    drawn = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(starts.astype(np.int32))
    order = np.lexsort((np.arange(len(rows)), np.asarray(drawn)[blocks]))
    flags[rows[order[:num]]] = True
    return flags
