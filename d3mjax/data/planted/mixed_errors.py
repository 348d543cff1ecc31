"""Wrong labels, broken features and a spurious minority in one table, with the true errors of every row (DeMix).

    errors = mixed_errors.inject(key, table, labels, rule, num_classes=2, options=Options(clean=0.5))
    errors.table, errors.labels, errors.flags     # Bool[n e]: label error, feature error, minority of the rule

A row of the minority is not an error in itself: it is right, and rare. It is flagged before the errors are planted, and
may have one of them. Source: Deng et al., arXiv 2606.11616, and its public code.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int, Key, Shaped

from d3mjax.data import tables
from d3mjax.data.planted import corruptions, table_errors
from d3mjax.types import AnyArray, Table, checked_names

KINDS = ("label error", "feature error", "spurious minority")


class Rule(NamedTuple):
    """A shortcut that most rows follow: those that meet ``condition`` have the label, all others do not."""

    name: str
    condition: Callable[[Table], Bool[np.ndarray, "n"]]
    label: Callable[[np.ndarray], Bool[np.ndarray, "n"]]  # of the labels
    balanced: bool = False  # whether rows are drawn so that condition and label both hold for one half of them
    column: str = ""  # the only one that the condition reads; none if it may read several


@checked_names
class Options(NamedTuple):
    """Which errors `inject` plants, and in how many rows."""

    clean: float = 0.5  # share of the rows without wrong label or broken features
    share: float = 0.15  # of the minority, in the rows that `subset` keeps
    size: int | None = None  # number of rows to keep; None is as many as there can be
    kinds: tuple[corruptions.Break, ...] = (corruptions.outlier, corruptions.scale)  # of broken numbers
    form: table_errors.Form | None = None  # of broken rows; None: `kinds`, and other levels of categories
    per_row: bool = False  # each row draws its own broken columns
    overlap: bool = False  # a row may have both errors
    class_rates: tuple[float, ...] | None = None  # relative odds, by class, that a label is wrong


class Errors(NamedTuple):
    """A table with planted errors: the rows given to `inject`, less those that made the rule too weak."""

    table: Table
    labels: np.ndarray  # Int[n] or Float[n]
    flags: np.ndarray  # Bool[n e], in the order of `KINDS`
    clean_labels: np.ndarray  # [n]
    clean_table: Table


def minority(rule: Rule, table: Table, labels: Shaped[AnyArray, "n"]) -> Bool[np.ndarray, "n"]:
    """Rows against the rule: exactly one of condition and label holds."""
    return np.asarray(rule.condition(table)) != np.asarray(rule.label(np.asarray(labels)))


def subset(
    key: Key[jax.Array, ""],
    table: Table,
    labels: Shaped[AnyArray, "n"],
    rule: Rule,
    *,
    share: float = 0.15,
    size: int | None = None,
) -> Int[np.ndarray, "k"]:
    """Rows, in order, of which ``share`` are the minority of ``rule``, to within one row (balanced: two).

    As many as there can be, or ``size``. A balanced rule has equally many rows in the two cells (condition, label) of
    the majority, and in the two of the minority, so that neither condition nor label alone predicts the minority.

    Raises:
      ValueError: if the rule has no row of a kind it needs, or there are fewer rows than ``size``.
    """
    cells, weights, most = _support(table, labels, rule, share)
    have = np.array([cell.sum() for cell in cells])
    if not have.all():
        raise ValueError(f"rule: found {have.tolist()} rows for and against {rule.name!r}, expected some of each")
    if size is not None and size > most:
        raise ValueError(f"size: found {size} for rule {rule.name!r}, expected at most {most} of {len(labels)} rows")
    size = most if size is None else size
    wanted = np.floor(size * weights).astype(int)
    wanted[0] += size - wanted.sum()
    wanted = np.minimum(wanted, have)
    chosen = np.zeros(len(labels), bool)
    for i, (cell, count) in enumerate(zip(cells, wanted, strict=True)):
        chosen |= corruptions.choose(jax.random.fold_in(key, i), table.id, int(count), among=cell)
    return np.flatnonzero(chosen)


def most_rows(table: Table, labels: Shaped[AnyArray, "n"], rule: Rule, *, share: float = 0.15) -> int:
    """The number of rows that `subset` can keep, to within four; 0 if the rule has no row of a kind it needs."""
    return _support(table, labels, rule, share)[2]


def inject(
    key: Key[jax.Array, ""],
    table: Table,
    labels: Shaped[AnyArray, "n"],
    rule: Rule | None,
    *,
    num_classes: int | None,
    options: Options = Options(),
) -> Errors:
    """Errors in all but a share ``clean`` of the rows: half of the others get a wrong label, half broken features.

    First the rows are thinned by `subset` until ``rule`` holds for ``1 - share`` of them (None: no rule, no minority).
    Then ``floor((1 - clean) n / 2)`` labels are wrong and as many rows broken, disjoint unless ``overlap``. With
    ``num_classes`` None labels are numbers (`corruptions.shift_targets`). Columns and kind of
    `corruptions.break_features` depend on the key alone where not ``per_row``, so two tables (train and validation)
    with one key and different ids get the same.

    Raises:
      ValueError: if ``clean`` is not in [0, 1], a class has fewer rows than ``class_rates`` ask for, the table cannot
        have as many rows broken by ``form``, or as `subset`.
    """
    clean, share, size, kinds, form, per_row, overlap, class_rates = options
    if not 0 <= clean <= 1:
        raise ValueError(f"clean: found {clean}, expected a share of the rows in [0, 1]")
    part = [jax.random.fold_in(key, i) for i in range(5)]
    labels = np.asarray(labels)
    if rule is not None:
        index = subset(part[0], table, labels, rule, share=share, size=size)
    else:
        index = np.flatnonzero(corruptions.choose(part[0], table.id, len(labels) if size is None else size))
    table, labels = tables.take(table, index), labels[index]
    rare = np.zeros(len(labels), bool) if rule is None else minority(rule, table, labels)
    num = int((1 - clean) * len(labels) / 2 + 1e-9)
    wrong = _wrong_labels(part[1], table, labels, num, class_rates)
    among = None if overlap else ~wrong
    if num_classes is None:
        dirty = corruptions.shift_targets(part[3], table.id, labels, wrong)
    else:
        dirty = corruptions.flip_labels(part[3], table.id, labels, wrong, num_classes=num_classes)
    if form is None:
        broken = corruptions.choose(part[2], table.id, num, among=among)
        spoiled = corruptions.break_features(part[4], table, broken, kinds=kinds, per_row=per_row)
    else:
        spoiled, broken = table_errors.plant(part[4], table, form, num, among=among)
    return Errors(spoiled, dirty, np.stack([wrong, broken, rare], 1), labels, table)


def _support(table, labels, rule: Rule, share: float):
    """The rows of each kind that a rule needs, the share of each, and the number of rows that there can be."""
    condition, label = np.asarray(rule.condition(table)), np.asarray(rule.label(np.asarray(labels)))
    rare = condition != label
    cells = [(rare == r) & (label == y) for r in (False, True) for y in (False, True)]
    if not rule.balanced:
        cells = [~rare, rare]
    weights = np.repeat([1 - share, share], 2) / 2 if rule.balanced else np.array([1 - share, share])
    return cells, weights, int(min(np.array([cell.sum() for cell in cells]) / weights))


def _wrong_labels(key, table, labels, num, class_rates):
    if class_rates is None:
        return corruptions.choose(key, table.id, num)
    have = np.bincount(labels, minlength=len(class_rates))
    sizes = have * np.asarray(class_rates)
    counts = np.floor(num * sizes / max(sizes.sum(), 1e-12)).astype(int)
    counts[np.argmax(counts)] += num - counts.sum()
    if len(have) != len(class_rates) or min(class_rates) < 0 or (counts > have).any():
        raise ValueError(f"class_rates: found {class_rates} for {num} wrong labels in classes of {have.tolist()} rows")
    flags = [
        corruptions.choose(jax.random.fold_in(key, c), table.id, int(count), among=labels == c)
        for c, count in enumerate(counts)
    ]
    return np.any(flags, axis=0)
