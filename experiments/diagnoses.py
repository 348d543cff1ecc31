"""Diagnoses of cells by trees and by single scores, both taught on other draws: what studies of DeMix share.

A cell is described by arrays of its rows: ``features [n f]`` for trees (`cells.features`), ``flags [n e]``, and
``signals [n s]``, single scores as ranks, whose names begin with the kind of error that they are for: "L: loss".
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from d3mjax.diagnosis import claims, trees
from d3mjax.diagnosis.cells import EXTRAS, FEATURES
from d3mjax.reports import plots
from d3mjax.reports.rows import Kind, row
from d3mjax.runtime import runs

TYPES = ("label", "feature", "minority")
LETTERS = "LFS"  # in the names of signals, in the order of `TYPES`
OURS, SINGLE, EVERYTHING = "trees", "best single scores", "flag everything"
METHODS = {
    OURS: np.ones(len(FEATURES), bool),
    "trees, published channels": np.array([not name.startswith(EXTRAS) for name in FEATURES]),
    "trees, without influence": np.array([not name.startswith("influence") for name in FEATURES]),
}
"""The features of each kind of trees."""
PAIRS = ((OURS, SINGLE), (OURS, EVERYTHING))
"""Methods that the verdict on a diagnosis compares."""


class Taught(NamedTuple):
    """What the teaching draws leave: trees by method, and the thresholds of single scores."""

    trees: dict[str, trees.Trees]
    signals: tuple[str, ...]
    best: tuple[int, int, int]  # positions in ``signals``, one a type
    thresholds: np.ndarray  # Float[s]


def teach(
    cells: Mapping[str, np.ndarray], draws: Sequence[int] | np.ndarray, signals: Sequence[str], *, rounds: int
) -> Taught:
    """Trees of ``rounds`` and thresholds from arrays ``[cells n ...]``; cells of one draw are held out together."""
    count, rows = cells["flags"].shape[:2]
    flat = {name: a.reshape(count * rows, *a.shape[2:]) for name, a in cells.items()}
    options = trees.Options(folds=2, rounds=rounds, leaves=15)
    held = np.repeat(np.asarray(draws), rows)
    fitted = {
        name: trees.fit(flat["features"][:, chosen], flat["flags"], held, options=options)
        for name, chosen in METHODS.items()
    }
    return Taught(fitted, tuple(signals), *best_signals(signals, flat["signals"], flat["flags"]))


def best_signals(
    signals: Sequence[str], values: np.ndarray, flags: np.ndarray
) -> tuple[tuple[int, int, int], np.ndarray]:
    """The score of highest F1 for each type, and the threshold of each score, on these rows."""
    thresholds, best = np.zeros(len(signals), np.float32), []
    for k, letter in enumerate(LETTERS):
        at = [i for i, name in enumerate(signals) if name[0] == letter]
        truth = np.repeat(flags[:, k : k + 1], len(at), axis=1)
        thresholds[at] = np.asarray(claims.best_thresholds(values[:, at], truth))
        f1 = np.asarray(claims.scores(values[:, at] >= thresholds[None, at], truth).f1)
        best.append(at[int(np.argmax(f1))])
    return (best[0], best[1], best[2]), thresholds


def diagnoses(
    of: Mapping[str, np.ndarray], taught_by: Taught, others: Mapping[str, trees.Trees], known: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Values and claims ``[n e]`` of every method and rival on one cell.

    ``others`` are trees that were taught on other data; ``known`` rows of the minority as who knows the rule sees them.
    """
    by_trees = {name: (taught_by.trees[name], chosen) for name, chosen in METHODS.items()}
    by_trees |= {name: (fitted, METHODS[OURS]) for name, fitted in others.items()}
    made = {}
    for name, (fitted, chosen) in by_trees.items():
        values = np.asarray(trees.predict(fitted, of["features"][:, chosen]))
        made[name] = values, np.asarray(trees.claim(fitted, values))
    claimed = of["signals"] >= taught_by.thresholds[None]
    joined = lambda at: (of["signals"][:, at], claimed[:, at])
    best = list(taught_by.best)
    made[SINGLE] = joined(best)
    for i, name in enumerate(taught_by.signals):
        k = LETTERS.index(name[0])
        made[name] = joined([*best[:k], i, *best[k + 1 :]])
    for name, rows in known.items():
        values, claim = (np.concatenate([a[:, best[:2]], rows[:, None]], 1) for a in (of["signals"], claimed))
        made[name] = values, claim.astype(bool)
    made[EVERYTHING] = np.ones(of["flags"].shape), np.ones(of["flags"].shape, bool)
    return made


def kind_of(method: str, kinds: Mapping[str, Kind]) -> Kind:
    """The place of a method in the tables: in ``kinds``, or by the first word of its name."""
    if method in kinds:
        return kinds[method]
    first = method.split()[0].rstrip(",:")
    return Kind("ceiling" if first == "oracle" else "ours" if first in ("predicted", "recommended", OURS) else "rival")


def rows_of(
    task: str, cleans: Sequence[float], units: Sequence[runs.Unit], kinds: Mapping[str, Kind]
) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """``(name, part, rows)`` of each clean ratio and part, diagnosis and repair: a row a method."""
    draws = [facts for facts, _ in units]
    for clean, part in itertools.product(map(str, cleans), ("diagnosis", "repair")):
        name, rows = f"{task}, {part}, clean ratio {clean}", []
        for method, first in draws[0][clean][part].items():
            kind = kind_of(method, kinds)
            values = {metric: [facts[clean][part][method][metric] for facts in draws] for metric in first}
            rows.append(row(name, method, values, role=kind.role, settings=kind.settings()))
        yield name, part, rows


def f1_figure(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """F1 by kind of error, single scores of one kind left out, by caption."""
    shown = [r for r in rows if ": " not in r["method"]]
    bars = {r["method"]: np.transpose([r["metrics"][f"{t}_f1"]["per_seed"] for t in TYPES]) for r in shown}
    return {"F1 by kind of error.": plots.bar_groups(bars, TYPES, ylabel="F1")}


def measured(values: np.ndarray, claimed: np.ndarray, flags: np.ndarray, *, row: str = "rows") -> dict[str, float]:
    """Metrics of the claims about one cell."""
    f1 = np.asarray(claims.scores(claimed, flags).f1)
    precision = [float(claims.average_precision(v, f)) for v, f in zip(values.T, flags.T, strict=True)]
    return {
        "macro_f1": float(np.nanmean(f1)),
        **{f"{name}_f1": float(v) for name, v in zip(TYPES, f1, strict=True)},
        **{f"{name}_auprc": v for name, v in zip(TYPES, precision, strict=True)},
        "exact_match": float(claims.exact_match(claimed, flags)),
        f"clean_{row}_flagged": float(claims.clean_false_positives(claimed, flags)),
    }
