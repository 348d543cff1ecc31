"""A diagnoser of vectors and networks alone: trees taught on six tables with planted errors.

Claim:    influence vectors of rows with a wrong label or wrong features look alike on different tables; how well a
          diagnoser carries over is measured on tables that were left out, and kept beside it.
Command:  python -m experiments demix_pretrain
          d3mjax-diagnose ... --diagnoser results/demix_pretrain/RUN/diagnoser.npz
Expected: means over tables left out: label errors at precision 0.672 ± 0.011 and recall 0.718 ± 0.013, feature errors
          at 0.673 ± 0.027 and 0.608 ± 0.053; the largest losses have precision 0.571, the largest z-scores 0.391.
Device:   two CPU cores, 2 minutes after demix_diagnose, whose cells it reads, a quarter of an hour without.

Reports hold digests of the rows that taught it and of its arrays. `travel_teach` makes the diagnoser that ships.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from d3mjax.data.planted.mixed_errors import KINDS
from d3mjax.data.sets.shortcut_tables import TABLES, TableTask, small
from d3mjax.diagnosis import claims, taught, trees
from d3mjax.diagnosis.cells import FEATURES, MLP2
from d3mjax.reports import page, plots
from d3mjax.reports.rows import Kind, row
from d3mjax.runtime import hosts, preemption, runs, store
from experiments.diagnosis import corpus
from experiments.diagnosis.corpus import Stored
from experiments.study import Study


class Sort(NamedTuple):
    """What a diagnoser reads, and the obvious rules with which it is compared."""

    study: str
    features: tuple[str, ...]
    signals: tuple[str, ...]
    trivial: Mapping[str, str]  # the rule for each of `KINDS`, by its name in ``signals``


SORT = Sort(
    "demix_pretrain",
    tuple(FEATURES),
    corpus.SIGNALS,
    {"L: loss": "the largest losses", "F: largest z": "the largest z-scores", "S: SC = y": "the rarest class"},
)
METHODS = {
    "diagnoser": Kind("ours"),
    "trivial rules": Kind("rival"),
    "every row": Kind("control", controls="number"),
}
BINS = 10
ALL = "all tables"
ABOUT = (
    "Every number is of a table that its forests have not seen, and whose rows neither calibrated them nor chose the "
    "thresholds. The forests whose log-odds did that, on the other tables, have seen it.\n"
    "The trivial rules claim as many rows as the diagnoser does, or more where they are tied."
)


@dataclass(frozen=True)
class Config:
    """What determines the diagnoser."""

    # Tables of d3mjax.data.sets.shortcut_tables to teach with: three at least, as each is left out once.
    tasks: tuple[str, ...] = tuple(TABLES)
    # Shares of the rows without planted errors.
    clean: tuple[float, ...] = (0.5, 0.8)
    # Rows stored of each cell (a table, rule, clean ratio and seed), as demix_diagnose does, and those used of them.
    rows: int = 2000
    fitted: int = 200
    # Draws of the errors.
    seeds: int = 5
    first_seed: int = 0
    # Trees for each kind of error.
    rounds: int = 150
    # Small tables, in seconds: to see that it runs.
    smoke: bool = False


def smoke(config: Config) -> Config:
    """The configuration of a smoke run: seconds, and a diagnoser of no use."""
    tasks = ("credit", "planted", "digits")
    return replace(config, tasks=tasks, clean=(0.5,), rows=100, fitted=100, seeds=1, rounds=10)


def teach(config: Config, results: Path, *, run: str | None = None) -> Path:
    """Make cells, fit, evaluate, save; returns ``RESULTS/demix_pretrain/RUN/diagnoser.npz``, at once if it is there.

    Raises:
      ValueError: an unknown table, fewer than three, or one whose package is not installed.
    """
    begin = time.perf_counter()
    hosts.start()
    path = diagnoser_path(config, results, run=run)
    if finished(path):
        print(f"diagnoser: {path}")
        return path
    with preemption.at_once():
        cells = [cell for name in config.tasks for cell in _cells(config, TABLES[name], results)]
        options = trees.Options(folds=len(config.tasks), rounds=config.rounds)
        write(path, SORT, config, cells, options, begin)
    print(f"diagnoser: {path}")
    return path


def write(path: Path, sort: Sort, config: Any, cells: Sequence[Any], options: trees.Options, begin: float) -> None:
    """Fit trees on the rows of ``cells``, judge them on tables left out, and write the diagnoser and its report."""
    of_row = lambda get: np.concatenate([np.full(len(cell.flags), get(cell)) for cell in cells])
    table, seed = of_row(lambda cell: cell.task), of_row(lambda cell: cell.seed)
    features, flags, signals = (
        np.concatenate([getattr(cell, name) for cell in cells]) for name in ("features", "flags", "signals")
    )
    print(f"growing trees on {len(flags):,} rows of {len(cells)} cells")
    odds = trees.out_of_fold(features, flags, table, options=options)
    fitted = trees.fit(features, flags, table, options=options, odds=odds)
    probabilities, claimed = out_of_table(odds, flags, table)
    simple = signals[:, [sort.signals.index(name) for name in sort.trivial]]
    rows = rows_of(probabilities, claimed, flags, simple, table, seed)
    clean = of_row(lambda cell: cell.clean)
    manifest = {
        "channels": list(sort.features),
        "kinds": list(KINDS),
        "sizes": {"trees": config.rounds, "rows": len(flags)},
        "cells": [f"{c.task}, rule {c.rule}, clean {c.clean}, seed {c.seed}" for c in cells],
        "config": asdict(config),
        "rows": store.digest({"features": features, "flags": flags, "table": table}),
        "network": MLP2.name,
        "evaluation": evaluation(rows, probabilities, claimed, flags, clean, tuple(sort.trivial.values())),
    }
    taught.save(path, fitted, manifest)
    reliability = {kind: figures["reliability"] for kind, figures in manifest["evaluation"].items()}
    sections = {ALL: page.Section(ABOUT, {"Reliability of the probabilities.": plots.reliability(reliability)})}
    facts = asdict(config) | {"digests": {"rows": manifest["rows"], "arrays": taught.digest(fitted)}}
    page.finish(path.parent, sort.study, facts, rows, sections, time.perf_counter() - begin)


def diagnoser_path(config: Config, results: Path, *, run: str | None = None) -> Path:
    """The file of the diagnoser of ``config``, made or not; another layout of the features is another file."""
    if unknown := set(config.tasks) - set(TABLES):
        raise ValueError(f"tasks: found {sorted(unknown)}, expected names among {sorted(TABLES)}")
    if len(set(config.tasks)) < 3:
        raise ValueError(f"tasks: found {list(config.tasks)}, expected three tables or more, as each is left out once")
    facts = asdict(config) | {"network": MLP2.name, "features": list(FEATURES)}
    return runs.open_run(results, "demix_pretrain", facts, run) / "diagnoser.npz"


def finished(path: Path) -> bool:
    """Whether the diagnoser and its report are there."""
    return path.exists() and (path.parent / "metrics.json").exists()


def out_of_table(
    odds: Float[np.ndarray, "n e"], flags: Bool[np.ndarray, "n e"], table: Shaped[np.ndarray, "n"]
) -> tuple[Float[np.ndarray, "n e"], Bool[np.ndarray, "n e"]]:
    """Probabilities and claims of each table, calibrated and with thresholds by rows of the other tables alone.

    The log-odds of those rows are of forests that were grown without their own table, but with this one.
    """
    probabilities, claimed = np.zeros(flags.shape, np.float32), np.zeros(flags.shape, bool)
    for name in np.unique(table):
        rows = table == name
        calibration, thresholds = trees.calibrate(odds[~rows], flags[~rows])
        probabilities[rows] = claims.calibrated(odds[rows], calibration)
        claimed[rows] = probabilities[rows] >= thresholds[None]
    return probabilities, claimed


def rows_of(
    probabilities: Float[np.ndarray, "n e"],
    claimed: Bool[np.ndarray, "n e"],
    flags: Bool[np.ndarray, "n e"],
    simple: Float[np.ndarray, "n e"],
    table: Shaped[np.ndarray, "n"],
    seed: Shaped[np.ndarray, "n"],
) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each kind, for each table and for all together (the mean over tables).

    ``simple``: the score of the obvious rule for each kind.
    """
    by_table: dict[str, dict[str, list[dict[str, float | None]]]] = {}
    for name in np.unique(table):
        figures: dict[str, list] = {method: [] for method in METHODS}
        for s in np.unique(seed):
            rows = (table == name) & (seed == s)
            trivial = _as_many(simple[rows], claimed[rows].sum(0))
            for method, flagged in zip(METHODS, (claimed[rows], trivial, np.ones_like(flags[rows])), strict=True):
                ranked = probabilities[rows] if method == "diagnoser" else None
                figures[method].append(_measures(flagged, flags[rows], ranked))
        by_table[str(name)] = figures
    of_all = lambda method, i: _mean([figures[method][i] for figures in by_table.values()])
    by_table[ALL] = {method: [of_all(method, i) for i in range(len(np.unique(seed)))] for method in METHODS}
    per_seed = lambda figures: {name: [of[name] for of in figures] for name in figures[0]}
    return [
        row(name, method, per_seed(each), role=METHODS[method].role, settings=METHODS[method].settings())
        for name, figures in by_table.items()
        for method, each in figures.items()
    ]


def evaluation(
    rows: Sequence[dict[str, Any]],
    probabilities: Float[np.ndarray, "n e"],
    claimed: Bool[np.ndarray, "n e"],
    flags: Bool[np.ndarray, "n e"],
    clean: Float[np.ndarray, "n"],
    trivial: Sequence[str],
) -> dict[str, Any]:
    """The figures that a user reads, for each kind, all of them out of table.

    Figures by table, those of rivals, ``[mean probability, true share, rows]`` by bins, and ``[clean ratio, precision
    of the claims]``: the rarer an error, the fewer claims are right.
    """
    by_kind = {}
    for i, kind in enumerate(KINDS):
        of_kind = lambda metrics, kind=kind: {
            name.removeprefix(f"{kind} "): value["mean"] for name, value in metrics.items() if name.startswith(kind)
        }
        figures = [(of["task"], of["method"], of_kind(of["metrics"])) for of in rows]
        tables = {task: each for task, method, each in figures if method == "diagnoser" and task != ALL}
        rivals = {method: each for task, method, each in figures if task == ALL}
        p, flag = probabilities[:, i], flags[:, i]
        bin = np.minimum((p * BINS).astype(int), BINS - 1)
        full = [b for b in range(BINS) if (bin == b).sum() >= 20]  # a share of fewer rows is mostly noise
        right = [(c, flag[(clean == c) & claimed[:, i]]) for c in np.unique(clean)]
        by_kind[kind] = rivals.pop("diagnoser") | {
            "share": float(flag.mean()),
            "tables": tables,
            "rivals": rivals,
            "reliability": [[p[bin == b].mean(), flag[bin == b].mean(), int((bin == b).sum())] for b in full],
            "trivial": trivial[i],
            "by_clean": [[float(c), float(of.mean())] for c, of in right if len(of)],
        }
    return by_kind


def _cells(config: Config, task: TableTask, results: Path) -> list[Stored]:
    """The cells of a table, read where they are stored."""
    task = small(task) if config.smoke else task
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    try:
        cells = corpus.gather(results, {task.name: task}, config.clean, config.rows, seeds)
    except ImportError as error:
        raise ValueError(
            f"tasks: {task.name!r} needs a package that is missing: {error}; pip install it, or leave out {task.name!r}"
        ) from error
    return [corpus.take(cell, slice(config.fitted)) for cell in cells[task.name]]


def _as_many(signals: Float[np.ndarray, "n e"], counts) -> Bool[np.ndarray, "n e"]:
    """The ``counts[e]`` rows of the largest signal, and those tied with the last of them."""
    last = [np.inf if not k else np.sort(a)[-k] for a, k in zip(signals.T, counts, strict=True)]
    return signals >= np.asarray(last)[None]


def _measures(claimed, flags, ranked) -> dict[str, float | None]:
    """Figures of each kind by name; None where there is none."""
    scores = claims.scores(claimed, flags)._asdict()
    if ranked is not None:
        scores["AUPRC"] = [claims.average_precision(p, f) for p, f in zip(ranked.T, flags.T, strict=True)]
    named = {"f1": "F1"}
    each = {f"{kind} {named.get(name, name)}": a[i] for i, kind in enumerate(KINDS) for name, a in scores.items()}
    return {name: None if np.isnan(value) else float(value) for name, value in each.items()}


def _mean(figures: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Mean over tables that have the figure."""
    values = {name: [v for of in figures if (v := of[name]) is not None] for name in figures[0]}
    return {name: float(np.mean(each)) if each else None for name, each in values.items()}


STUDY = Study(
    "demix_pretrain",
    claim="Trees taught on tables with planted errors find such errors on tables that were left out.",
    config=Config(),
    tasks=TABLES,
    # The tables are calibrated by each other, so they are one unit.
    work=lambda config, results, run: teach(config, results, run=run),
    minutes=15,
    headline=(ALL, "diagnoser", "label error precision"),
    smoke=smoke,
)
