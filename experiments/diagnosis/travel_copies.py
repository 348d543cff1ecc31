"""Copies of the cells of many tables with known errors on top of unknown ones: what a user can measure on one table.

A cell of `travel_cells` stands for the table of a user, who does not know its errors. It is copied, and the copies get
further errors that are known, networks as the cell has them, and the features of `travel.OURS`:

* *errors*: wrong labels, and rows broken by the published form and by one other, ``share`` of the rows of each kind;
* *rule*: one more column that follows a made rule (`made_rules.deal`), and the rows against it.

A unit is one table: all its draws at all clean ratios, so that its copies are one program.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, Key

from d3mjax.data import tables
from d3mjax.data.planted import corruptions, made_rules, table_errors
from d3mjax.data.planted.mixed_errors import Errors
from d3mjax.data.sets.shortcut_tables import TableTask, divide
from d3mjax.diagnosis import cells, relative
from d3mjax.diagnosis.cells import MLP2, make_train
from d3mjax.runtime import runs
from d3mjax.types import AnyArray, Split, Table
from experiments.diagnosis import travel, travel_cells
from experiments.diagnosis.travel_cells import FEATURES

SELECTED = travel.METHODS[travel.OURS]
HELD = 8  # rows that stand for those to validate on, which the selected features do not read


class Copy(NamedTuple):
    """One copy of a cell."""

    features: np.ndarray  # Float32[n f], the selected ones
    flags: np.ndarray  # Bool[n e], what was planted
    of_rule: bool  # a column that follows a rule was planted, and else labels and features


def with_errors(
    key: Key[jax.Array, ""], table: Table, y: Int[AnyArray, "n"], *, num_classes: int, share: float
) -> Errors:
    """``share`` of the labels wrong, and as many other rows broken: half by the published form, half by another.

    Flags and what counts as clean are relative to the table, which has errors of its own. The other form
    is drawn among those that the table can have; the published one if there are none.
    """
    part, num = [jax.random.fold_in(key, i) for i in range(5)], int(share * len(y))
    wrong = corruptions.choose(part[0], table.id, num)
    labels = corruptions.flip_labels(part[1], table.id, y, wrong, num_classes=num_classes)
    published, *others = table_errors.FORMS
    spoiled, broken = table_errors.plant(part[2], table, table_errors.FORMS[published], num - num // 2, among=~wrong)
    rest = ~wrong & ~broken
    able = [name for name in table_errors.possible(part[3], spoiled, num // 2, among=rest) if name in others]
    form = able[int(jax.random.randint(part[4], (), 0, len(able)))] if able else published
    spoiled, further = table_errors.plant(part[3], spoiled, table_errors.FORMS[form], num // 2, among=rest)
    return Errors(spoiled, labels, np.stack([wrong, broken | further, np.zeros(len(y), bool)], 1), np.asarray(y), table)


def with_rule(key: Key[jax.Array, ""], table: Table, y: Int[AnyArray, "n"]) -> Errors:
    """One more column that follows the made rule that is least true of the table."""
    (rule,) = made_rules.made_rules(table, y, 1)
    widened, rare = made_rules.deal(key, table, y, rule)
    none = np.zeros(len(y), bool)
    return Errors(widened, np.asarray(y), np.stack([none, none, rare], 1), np.asarray(y), table)


def copies_of(
    key: Key[jax.Array, ""], table: Table, y: Int[AnyArray, "n"], *, num_classes: int, share: float, count: int
) -> list[Errors]:
    """``count`` copies with errors, and one with a rule."""
    keys = [jax.random.fold_in(key, 100 + i) for i in range(count + 1)]
    errors = [with_errors(k, table, y, num_classes=num_classes, share=share) for k in keys[:-1]]
    return [*errors, with_rule(keys[-1], table, y)]


def collect(task: TableTask, cleans: Sequence[float], seeds: range, *, share: float, count: int) -> runs.Unit:
    """Features and flags of the copies of all cells of a table, in the order seed, clean ratio, copy."""
    parts, planted = divide(task), []
    for seed in seeds:
        _, pairs = travel_cells.planted(task, parts, cleans, seed)
        for train, _ in pairs:
            key = jax.random.key(seed)
            planted += copies_of(key, train.table, train.labels, num_classes=task.classes, share=share, count=count)
    describe, each, features = make_describe(task, planted), len(planted) // len(seeds), []
    for i, seed in enumerate(seeds):
        features += describe(jax.random.key(seed), planted[i * each : (i + 1) * each])
    return {}, {"features": np.stack(features), "flags": np.stack([p.flags for p in planted])}


def make_describe(
    task: TableTask, wide: Sequence[Errors] = ()
) -> Callable[[Key[jax.Array, ""], Sequence[Errors]], list[Float[np.ndarray, "n f"]]]:
    """``(key, tables) -> [features]``, the selected ones, by one network each.

    Encoded rows get zeros up to the width of those of ``wide``, so that draws are one program.
    """
    train = make_train(MLP2, [], task.classes, task.train, mesh=None)
    width = encoded(wide)[0][0].x.shape[1] if wide else 0
    widen = lambda split: split._replace(x=np.pad(split.x, ((0, 0), (0, max(width - split.x.shape[1], 0)))))

    def describe(key, planted):
        splits = [(widen(rows), widen(held)) for rows, held in encoded(planted)]
        features = []
        for p, cell in zip(planted, train(key, splits, [p.table for p in planted]), strict=True):
            of_table = relative.scores(p.table, p.labels, task.classes)
            features.append(cells.features(cell, p.labels, task.classes, of_table=of_table)[:, SELECTED])
        return features

    return describe


def encoded(planted: Sequence[Errors]) -> list[tuple[Split, Split]]:
    """Splits of tables and of the rows that stand for those to validate on."""
    few = [p._replace(table=tables.take(p.table, np.arange(HELD)), labels=p.labels[:HELD]) for p in planted]
    return travel_cells.encoded(list(zip(planted, few, strict=True)))


def gather(
    results: Path,
    tasks: Mapping[str, TableTask],
    cleans: Sequence[float],
    seeds: range,
    *,
    share: float,
    count: int,
) -> dict[tuple[str, int, float], list[Copy]]:
    """The copies of every cell by table, seed and clean ratio, made where ``results/demix_copies`` lacks them."""
    copies = {}
    for name, task in tasks.items():
        facts = {"task": name, "train": task.train, "rules": [rule.name for rule in task.rules], "cleans": list(cleans)}
        facts |= {"seeds": list(seeds), "share": share, "count": count, "network": MLP2.name}
        facts |= {"features": [f for f, used in zip(FEATURES, SELECTED, strict=True) if used]}
        run_dir = runs.open_run(results, "demix_copies", facts, None)
        _, arrays = runs.unit(run_dir, name, lambda task=task: collect(task, cleans, seeds, share=share, count=count))
        shape = (len(seeds), len(cleans), count + 1)
        features, flags = (arrays[k].reshape(*shape, *arrays[k].shape[1:]) for k in ("features", "flags"))
        for i, seed in enumerate(seeds):
            for j, clean in enumerate(cleans):
                copies[name, seed, clean] = [
                    Copy(features[i, j, c], flags[i, j, c], c == count) for c in range(count + 1)
                ]
    return copies
