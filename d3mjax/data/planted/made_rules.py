"""Shortcut rules for any table, made from the table itself: a condition on one column, and a half of the classes."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Bool, Int, Key, Shaped

from d3mjax.data.planted import corruptions, mixed_errors
from d3mjax.data.planted.mixed_errors import Rule
from d3mjax.types import AnyArray, Table


def made_rules(table: Table, labels: Int[AnyArray, "n"], count: int, *, share: float = 0.15) -> tuple[Rule, ...]:
    """Up to ``count`` balanced rules on different columns, those that are least true of the table first.

    The condition halves its column as evenly as it can: a number above its median, or a set of levels. The label is a
    set of classes that halves the rows likewise. Ties are in the order of the columns. Rules that leave less than 80 %
    as many rows to draw from as another one are left out.
    """
    labels = np.asarray(labels)
    classes = _half(labels, int(labels.max()) + 1)
    inside = _among(classes, labels)
    rules, sizes, truths = [], [], []
    for name in table.columns:
        condition, text = _condition(table, name)
        text = f"{text} is class {_listed(classes)}"
        rules.append(Rule(text, condition, partial(_among, classes), balanced=True, column=name))
        sizes.append(mixed_errors.most_rows(table, labels, rules[-1], share=share))
        truths.append(abs(condition(table)[inside].mean() - condition(table)[~inside].mean()))
    order = [i for i in np.argsort(truths, kind="stable") if sizes[i] > 0.8 * max(sizes)]
    return tuple(rules[i] for i in order[:count])


def deal(
    key: Key[jax.Array, ""], table: Table, labels: Int[AnyArray, "n"], rule: Rule, *, share: float = 0.15
) -> tuple[Table, Bool[np.ndarray, "n"]]:
    """The table with one more column that follows ``rule``, and the rows against it: ``share`` of either half.

    The column is a copy of that of the made ``rule``, its values dealt out among the rows: those for which the
    condition holds to rows with the label, but for the rows against. Further values repeat if there are too few. No row
    is lost, unlike by `mixed_errors.subset`, and the column depends on the others through the label alone.

    Raises:
      ValueError: if the condition holds for all rows or for none.
    """
    condition, inside = np.asarray(rule.condition(table)), np.asarray(rule.label(np.asarray(labels)))
    if condition.all() or not condition.any():
        raise ValueError(f"rule: found {condition.sum()} of {len(condition)} rows for {rule.name!r}, expected some")
    rare = np.zeros(len(inside), bool)
    for i, half in enumerate((inside, ~inside)):
        part = jax.random.fold_in(key, i)
        rare |= corruptions.choose(part, table.id, int(share * half.sum() + 0.5), among=half)
    values, by_id = table.columns[rule.column], np.argsort(table.id)
    dealt = np.empty_like(values)
    for i, holds in enumerate((True, False)):
        rows, pool = by_id[(inside != rare)[by_id] == holds], values[by_id][condition[by_id] == holds]
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 2 + i), len(pool)))
        dealt[rows] = np.resize(pool[order], len(rows))
    name = f"{rule.column} dealt out"
    levels = {name: table.levels[rule.column]} if rule.column in table.levels else {}
    return table._replace(columns={**table.columns, name: dealt}, levels={**table.levels, **levels}), rare


def _condition(table: Table, name: str) -> tuple[Callable[[Table], Bool[np.ndarray, "n"]], str]:
    values = table.columns[name]
    if name in table.levels:
        levels = _half(values, len(table.levels[name]))
        text = f"{name} {_listed([table.levels[name][i] for i in levels])}"
        return lambda other: _among(levels, other.columns[name]), text
    middle = np.nanmedian(values)
    if abs((values >= middle).mean() - 0.5) < abs((values > middle).mean() - 0.5):
        return lambda other: other.columns[name] >= middle, f"{name} from {middle:g}"
    return lambda other: other.columns[name] > middle, f"{name} above {middle:g}"


def _half(codes: Shaped[np.ndarray, "n"], count: int) -> list[int]:
    """Codes of about half of the rows: from the largest on, each joins the smaller side; that without the largest."""
    rows = np.bincount(codes[codes >= 0], minlength=count)
    sides: tuple[list[int], list[int]] = ([], [])
    for code in np.argsort(-rows, kind="stable").tolist():
        smaller = int(rows[sides[1]].sum() < rows[sides[0]].sum())
        sides[smaller].append(code)
    return sorted(sides[1])


def _among(codes: Sequence[int], values: Shaped[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    return np.isin(values, codes)


def _listed(names: Sequence[object]) -> str:
    return " or ".join(map(str, names))
