"""Rows of `demix_diagnose`, `demix_networks` and `demix_ablate`; pages and figures of the first."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, row
from experiments.diagnosis.demix_tables import TableTask

OURS = ("trees", "trees, channels 1-3", "trees, published channels")
KINDS = {
    "flag everything": Kind("control", controls="number"),
    "S: knowing the rule": Kind("ceiling"),
}


def rows_of(task: str, found: Sequence[dict[str, Any]], ours: Collection[str] | None = OURS) -> list[dict[str, Any]]:
    """One row a split, clean ratio and method; methods that are not among ``ours`` are rivals (None: all are)."""
    rows = []
    for split in dict.fromkeys(split for one in found for split in one):
        having = [one[split] for one in found if split in one]
        for clean in dict.fromkeys(c for one in having for by in one.values() for c in by):
            for method in dict.fromkeys(method for one in having for method in one):
                figures = [one[method][clean] for one in having if clean in one.get(method, {})]
                names = dict.fromkeys(name for f in figures for name in f)
                per_seed = {n: [f[n] for f in figures if n in f and np.isfinite(f[n])] for n in names}
                per_seed = {n: values for n, values in per_seed.items() if values}
                if per_seed:
                    default = Kind("ours" if ours is None or method in ours else "rival")
                    kind = KINDS.get(method, default)
                    place = (f"{task}, {split}, clean ratio {clean}", method)
                    rows.append(row(*place, per_seed, role=kind.role, settings=kind.settings()))
    return rows


def averaged(tree: dict[str, Any]) -> dict[str, Any]:
    """The same tree with the means of its lists, NaN left out."""
    return {k: averaged(v) if isinstance(v, dict) else float(np.nanmean(v)) for k, v in tree.items()}


SHOWN_METHODS = ("trees", "trees, channels 1-3")
SHOWN = ("new draw", "unseen rule", "unseen table")
SPLITS = {
    "in-cell": "Fitted on other rows of the same cells: an upper bound, and no evidence. Trees on the raw rows and "
    "their labels, without any task model, have the higher macro-F1 there.",
    "new draw": "The same table and rules, errors drawn anew.",
    "unseen rule": "Fitted on cells of the other rules of the table; means over rules.",
    "unseen table": "Fitted on all other tables.",
    "other clean ratio": "Fitted at the other share of clean rows.",
}


def sections_of(task: TableTask, rows: Sequence[dict[str, Any]]) -> dict[str, Section]:
    """What the page says of each split of a table, and macro-F1 by split with the first."""
    made = {}
    for name in dict.fromkeys(of["task"] for of in rows):
        split = name.split(", ")[1]
        made[name] = Section(SPLITS.get(split, "Fitted on cells of one sort of feature error alone."), {})
    about = (
        f"{task.about} {task.train:,} rows with planted errors, {task.validation} to validate on, {len(task.rules)} "
        "rules.\n"
    )
    first = next(iter(made))
    made[first] = Section(about + made[first].text, _bars(rows))
    return made


def _bars(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Macro-F1 of the main methods by split, a figure for each clean ratio."""
    of = {(row["method"], row["task"].split(", ", 1)[1]): row["metrics"].get("macro_f1") for row in rows}
    figures = {}
    for clean in dict.fromkeys(split.rsplit(" ", 1)[1] for _, split in of):
        names = [s for s in SHOWN if of.get((SHOWN_METHODS[0], f"{s}, clean ratio {clean}"))]
        shown = {
            method: np.transpose([of[method, f"{s}, clean ratio {clean}"]["per_seed"] for s in names])
            for method in (*SHOWN_METHODS, "best single scores", "flag everything")
        }
        caption = f"Macro-F1 by split, clean ratio {clean}, with deviations over draws."
        figures[caption] = plots.bar_groups(shown, names, ylabel="macro-F1")
    return figures
