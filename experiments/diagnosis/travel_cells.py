"""Small cells of many tables: one rule, one form of broken rows and one draw each, at several clean ratios.

A unit is one table and seed. The seed names the rule, and draws the errors and their form: that of DeMix for one half
of the draws, else one of the further ones that the table can have. `planted` makes the same errors again.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from d3mjax.data import tables
from d3mjax.data.planted import mixed_errors, table_errors
from d3mjax.data.planted.mixed_errors import Errors, Options
from d3mjax.data.sets.shortcut_tables import Parts, TableTask, divide
from d3mjax.diagnosis import cells, relative
from d3mjax.diagnosis.cells import MLP2, Network, labelled, make_train
from d3mjax.runtime import hosts, runs
from d3mjax.types import Split

FEATURES = cells.WIDE
"""Of each row: those of the influence vectors and networks, and those relative to the table."""


class Small(NamedTuple):
    """One cell."""

    task: str
    seed: int
    rule: int
    clean: float
    form: str  # of broken rows, one of `table_errors.FORMS`
    features: np.ndarray  # Float32[n f], in the order of `FEATURES`
    flags: np.ndarray  # Bool[n e]
    y: np.ndarray  # Int[n], as recorded
    told: np.ndarray  # Bool[n], minority of the rule as recorded, errors and all
    left_out: np.ndarray  # Float32[n C], class probabilities by networks that have not seen the row
    forest: np.ndarray  # Float32[n C], by trees that have not


def planted(
    task: TableTask, parts: Parts, cleans: Sequence[float], seed: int
) -> tuple[str, list[tuple[Errors, Errors]]]:
    """The form of broken rows, and errors in train and validation rows at each clean ratio."""
    key, rule = jax.random.key(seed), task.rules[seed % len(task.rules)]
    sized = ((parts.train, task.train), (parts.validation, task.validation))

    def inject(clean, form):
        options = [Options(clean, size=size, form=form) for _, size in sized]
        of_part = zip(sized, options, strict=True)
        return [
            mixed_errors.inject(key, *part, rule, num_classes=task.num_classes, options=chosen)
            for (part, _), chosen in of_part
        ]

    first = inject(min(cleans), None)
    able = [
        table_errors.possible(jax.random.fold_in(key, 4), e.clean_table, int(e.flags[:, 0].sum()), among=~e.flags[:, 0])
        for e in first
    ]
    published, *others = table_errors.FORMS
    others = [name for name in others if all(name in names for names in able)]
    rng = np.random.default_rng([seed, *task.name.encode()])
    form = str(rng.choice(others)) if others and rng.random() < 0.5 else published
    change = None if form == published else table_errors.FORMS[form]
    dirty = [first if change is None and clean == min(cleans) else inject(clean, change) for clean in cleans]
    return form, [(train, validation) for train, validation in dirty]


def encoded(pairs: Sequence[tuple[Errors, Errors]]) -> list[tuple[Split, Split]]:
    """Splits of all pairs, by encoders of their dirty train rows, with zeros up to one width: misspellings are new."""
    splits = []
    for train, validation in pairs:
        encoder = tables.fit_encoder(train.table)
        splits.append(tuple(labelled(encoder, errors.table, errors.labels) for errors in (train, validation)))
    width = max(split.x.shape[1] for pair in splits for split in pair)
    wide = lambda split: split._replace(x=np.pad(split.x, ((0, 0), (0, width - split.x.shape[1]))))
    return [(wide(train), wide(validation)) for train, validation in splits]


def make_collect(
    task: TableTask, network: Network, cleans: Sequence[float], *, mesh: Mesh | None
) -> Callable[[int, Callable[[int], object]], runs.Unit]:
    """``(seed, progress) -> facts, arrays`` of the cells of a table at all clean ratios; `read` makes cells of them."""
    parts = divide(task)
    # The columns of the widest encoding are not those of each table: a network must not depend on them.
    train = make_train(network, [], task.num_classes, task.train, mesh=mesh)

    def collect(seed, progress):
        form, pairs = planted(task, parts, cleans, seed)
        rule = seed % len(task.rules)
        trained = train(jax.random.key(seed), encoded(pairs), [errors.table for errors, _ in pairs])
        stored = [_arrays(task, rule, pair[0], cell) for pair, cell in zip(pairs, trained, strict=True)]
        progress(len(pairs))
        facts = {"form": form, "rule": rule, "cleans": list(cleans)}
        return facts, {name: np.stack([arrays[name] for arrays in stored]) for name in stored[0]}

    return collect


def read(task: str, seed: int, facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Small]:
    """The cells of a unit."""
    each = [{name: a[i] for name, a in arrays.items()} for i in range(len(facts["cleans"]))]
    return [
        Small(task, seed, facts["rule"], clean, facts["form"], **of_cell)
        for clean, of_cell in zip(facts["cleans"], each, strict=True)
    ]


def gather(
    results: Path, tasks: Mapping[str, TableTask], cleans: Sequence[float], seeds: range, *, network: Network = MLP2
) -> list[Small]:
    """The cells of all tables and draws, made where ``results/demix_small_cells`` does not have them yet.

    Raises:
      ValueError: on several hosts.
    """
    if jax.process_count() > 1:
        raise ValueError(f"found {jax.process_count()} processes, expected one: diagnosis runs on one host")
    stored = []
    for name, task in tasks.items():
        sizes = {"train": task.train, "validation": task.validation, "rules": [rule.name for rule in task.rules]}
        facts = {"task": name, **sizes, "network": network.name, "cleans": list(cleans), "features": list(FEATURES)}
        run_dir = runs.open_run(results, "demix_small_cells", facts, None)
        collect = make_collect(task, network, cleans, mesh=hosts.local_mesh())
        units = runs.run_units(run_dir, name, seeds, collect, models=len(cleans))
        stored += [cell for seed, unit in zip(seeds, units, strict=True) for cell in read(name, seed, *unit)]
    return stored


def _arrays(task: TableTask, rule: int, errors: Errors, cell: cells.Cell) -> dict[str, np.ndarray]:
    y, num_classes = errors.labels, cell.left_out.shape[1]
    of_table = relative.scores(errors.table, y, num_classes)
    return {
        "features": cells.features(cell, y, num_classes, of_table=of_table),
        "flags": errors.flags,
        "y": y,
        "told": mixed_errors.minority(task.rules[rule], errors.table, y),
        "left_out": np.asarray(jax.nn.softmax(cell.left_out, axis=1)),
        "forest": of_table.forest,
    }
