"""Shortcut rules for any table, made from the table itself: a condition on one column, and a half of the classes."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool, Int, Shaped

from d3mjax.data.planted import mixed_errors
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
        rules.append(Rule(f"{text} is class {_listed(classes)}", condition, partial(_among, classes), balanced=True))
        sizes.append(mixed_errors.most_rows(table, labels, rules[-1], share=share))
        truths.append(abs(condition(table)[inside].mean() - condition(table)[~inside].mean()))
    order = [i for i in np.argsort(truths, kind="stable") if sizes[i] > 0.8 * max(sizes)]
    return tuple(rules[i] for i in order[:count])


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
