"""Diagnosed rows of tables whose labels are numbers: features, training-free signals and true errors of planted cells.

The counterpart of `corpus`. A unit is one table and seed: all rules at all clean ratios, every row of each.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from d3mjax.data import label_scale, tables
from d3mjax.data.label_scale import LabelScale
from d3mjax.data.planted import mixed_errors
from d3mjax.data.planted.mixed_errors import Errors
from d3mjax.data.sets.shortcut_tables import Parts, TableTask, divide
from d3mjax.diagnosis import baseline_scores, number_scores
from d3mjax.diagnosis.cells import MLP2, NUMBER_EXTRAS, NUMBER_FEATURES, Cell, features, labelled, make_train
from d3mjax.runtime import hosts, runs
from d3mjax.types import Split
from experiments.diagnosis.corpus import Stored, kind_of_errors

LABEL = ("loss", "left-out residual", "local residual", "neighbours' labels", "more neighbours' labels", "far label")
FEATURE = ("largest z", "surprise", "far")
MINORITY = ("far label", "self-influence", "left-out residual")
SIGNALS = tuple(
    f"{letter}: {name}" for letter, names in zip("LFS", (LABEL, FEATURE, MINORITY), strict=True) for name in names
)
"""Training-free scores, for label errors (L), feature errors (F) and the spurious minority (S)."""


class Planned(NamedTuple):
    """Planted errors in train and validation rows, and their features."""

    train: Errors
    validation: Errors
    scale: LabelScale  # of the dirty labels to train on
    splits: tuple[Split, Split]


def plan(task: TableTask, parts: Parts, rule: int, clean: float, seed: int) -> Planned:
    """Errors drawn by ``seed``, in train and validation rows alike; encoder and scale are fitted on the dirty rows."""
    key = jax.random.key(100 * seed + rule)
    dirty, held = (
        mixed_errors.inject(
            key, *part, task.rules[rule], num_classes=None, options=mixed_errors.Options(clean=clean, size=size)
        )
        for part, size in ((parts.train, task.train), (parts.validation, task.validation))
    )
    encoder, scale = tables.fit_encoder(dirty.table), label_scale.fit(dirty.labels)
    train, validation = (
        labelled(encoder, errors.table, label_scale.standardise(scale, errors.labels)) for errors in (dirty, held)
    )
    return Planned(dirty, held, scale, (train, validation))


@cache
def parts_of(task: TableTask) -> Parts:
    """The rows of a table, read once."""
    return divide(task)


def gather(
    results: Path, tasks: Mapping[str, TableTask], cleans: Sequence[float], seeds: range
) -> dict[str, list[tuple[Stored, Float[np.ndarray, "n"]]]]:
    """Cells of all tables and draws, each with the predictions without the row, in the unit of the labels.

    Made where ``results/demix_number_cells`` does not have them yet. Raises ValueError on several hosts.
    """
    if jax.process_count() > 1:
        raise ValueError(f"found {jax.process_count()} processes, expected one: diagnosis runs on one host")
    stored = {}
    for name, task in tasks.items():
        sizes = {"train": task.train, "validation": task.validation, "rules": [rule.name for rule in task.rules]}
        facts = {"task": name, **sizes, "network": MLP2.name, "cleans": list(cleans)}
        facts |= {"features": list(NUMBER_FEATURES), "signals": list(SIGNALS)}
        directory = runs.open_run(results, "demix_number_cells", facts, None)
        cells = [(rule, clean) for rule in range(len(task.rules)) for clean in cleans]
        collect = _make_collect(task, cells)
        units = runs.run_units(directory, name, seeds, collect, models=len(cells))
        stored[name] = [
            cell for seed, unit in zip(seeds, units, strict=True) for cell in _read(task, seed, cells, *unit)
        ]
    return stored


def sampled(cell: Stored, count: int) -> Stored:
    """Random rows of a cell, whose rows are in the order of the table."""
    rows = np.random.default_rng(cell.seed).permutation(len(cell.flags))[:count]
    return cell._replace(features=cell.features[rows], flags=cell.flags[rows], signals=cell.signals[rows])


def _make_collect(task: TableTask, cells: Sequence[tuple[int, float]]):
    compiled: list[Any] = []  # made by the first unit that is not stored

    def collect(seed, progress):
        parts = parts_of(task)
        if not compiled:
            columns = list(tables.slices(parts.train[0]).values())
            spread = {"width": hosts.models_at_once(), "mesh": hosts.local_mesh()}
            compiled.append(make_train(MLP2, columns, None, task.train, **spread))
        planned = [plan(task, parts, rule, clean, seed) for rule, clean in cells]
        trained = compiled[0](jax.random.key(seed), [p.splits for p in planned], [p.train.table for p in planned])
        progress(len(cells))
        arrays = [_arrays(p, cell) for p, cell in zip(planned, trained, strict=True)]
        return {"kinds": [kind_of_errors(p.train) for p in planned]}, {
            name: np.stack([a[name] for a in arrays]) for name in arrays[0]
        }

    return collect


def _arrays(planned: Planned, cell: Cell) -> dict[str, np.ndarray]:
    y = planned.splits[0].y
    return {
        "features": features(cell, y, None),
        "flags": planned.train.flags,
        "signals": _signals(planned, cell),
        "left_out": label_scale.restore(planned.scale, cell.left_out[:, 0]),
    }


def _signals(planned: Planned, cell: Cell) -> Float[np.ndarray, "n s"]:
    """`SIGNALS` as ranks in the cell."""
    table, (train, _) = planned.train.table, planned.splits
    numbers = [train.x[:, span] for name, span in tables.slices(table).items() if name not in table.levels]
    flat = np.concatenate([np.zeros((len(train.y), 1), np.float32), *numbers], axis=1)
    extra = dict(zip(NUMBER_EXTRAS, cell.extras.T, strict=True))
    left_out = number_scores.absolute_residuals(cell.left_out[:, 0], train.y)
    label = (cell.vectors[:, 3, 0], left_out, *(extra[name] for name in number_scores.NAMES))
    feature = (baseline_scores.outliers(flat), extra["surprise"], extra["far"])
    scores = (*label, *feature, extra["far label"], extra["norm"], left_out)
    return np.stack([np.asarray(baseline_scores.loss_rank(np.asarray(a, np.float32))) for a in scores], 1)


def _read(task: TableTask, seed: int, cells, facts, arrays) -> list[tuple[Stored, Float[np.ndarray, "n"]]]:
    of = lambda i: {name: arrays[name][i] for name in ("features", "flags", "signals")}
    return [
        (Stored(task.name, seed, rule, task.rules[rule].balanced, clean, kind, **of(i)), arrays["left_out"][i])
        for i, ((rule, clean), kind) in enumerate(zip(cells, facts["kinds"], strict=True))
    ]
