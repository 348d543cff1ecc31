"""Which rows of a table that nobody has seen are wrong, and how: diagnosers judged on 43 tables, left out in folds.

Claim:    trees on features of a row relative to its own table, taught on other tables, find planted errors on tables
          left out better than all scores that need no training, and claims of the highest expected F1 in the table
          suit tables with few errors and with many.
Command:  python -m experiments demix_tables
Expected: macro-F1 on tables left out at clean ratio 0.5, 0.8 and 0.95: ours 0.568 ± 0.030, 0.563 ± 0.036 and
          0.508 ± 0.034; features of vectors and networks 0.496, 0.469, 0.376; best single scores 0.422, 0.437, 0.264.
Device:   two CPU cores, an hour, most of it for the cells, which it keeps; any JAX device works.

Errors are of eight forms (`table_errors`), one a draw. Forests, calibration and thresholds of a table come from the
tables of other folds alone. Files: `make data`, and two of UCI (`many_tables`).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from d3mjax.data.sets.shortcut_tables import TableTask
from d3mjax.diagnosis import cells as networks
from d3mjax.diagnosis import claims, relative, trees
from d3mjax.reports import page, plots, sentences
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, row
from d3mjax.runtime import hosts, preemption, runs
from experiments.diagnosis import travel_cells, travel_measures
from experiments.diagnosis.many_tables import TASKS, complete
from experiments.diagnosis.travel_cells import FEATURES, Small
from experiments.study import Study

PRESENT = "vectors and networks"
OURS = "numbers of rows, relative to the table"
_NUMBERS = ("loss", "share of the own class", *networks.EXTRAS)
METHODS: Mapping[str, Bool[np.ndarray, "f"]] = {
    OURS: np.array([name.startswith(_NUMBERS) or name in relative.NAMES for name in FEATURES]),
    PRESENT: np.isin(FEATURES, networks.FEATURES),
    "both": np.ones(len(FEATURES), bool),
}
"""Features that trees read. The second are those of the diagnoser taught on six tables; ours have no quantiles of
influence vectors, but the numbers of each row beside them, and those of `relative`.
"""
ONE = ", one threshold for all tables"
KINDS = {
    **{f"{name}{end}": Kind("ours") for name in METHODS for end in ("", ONE)},
    travel_measures.EVERYTHING: Kind("control", controls="number"),
    travel_measures.RULE: Kind("ceiling"),
}
SUMS = ("expected", "hits", "claims")


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = tuple(TASKS)
    cleans: tuple[float, ...] = (0.5, 0.8, 0.95)
    # Draws of errors, and rules with them.
    seeds: int = 5
    first_seed: int = 0
    # Rows of a cell, and rows to validate on, fewer where rules leave no more.
    rows: int = 300
    validation: int = 128
    # Parts of the tables, each left out once; rows of each cell that forests are grown on, and trees of a forest.
    folds: int = 5
    fitted: int = 60
    rounds: int = 100
    smoke: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.folds <= len(set(self.tasks)):
            raise ValueError(f"folds: found {self.folds} for {len(set(self.tasks))} tables, expected 2 up to as many")
        if unknown := set(self.tasks) - TASKS.keys():
            raise ValueError(f"tasks: found {sorted(unknown)}, expected names among {sorted(TASKS)}")


def smoke(config: Config) -> Config:
    """Three tables that need no files, and few rows."""
    config = replace(config, tasks=("planted", "digits", "credit"), cleans=(0.5, 0.8), seeds=2, folds=3)
    return replace(config, rows=100, validation=40, fitted=60, rounds=8)


def judge(
    cells: Sequence[Small], selected: Bool[np.ndarray, "f"], config: Config, fold: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Log-odds, calibrated ``probabilities``, and claims ``fixed`` by one threshold of each type for all tables.

    Of shape ``[n e]``; rows are in the order of the cells, and none by forests that have seen its table.
    Forests of a fold are grown on ``fitted`` rows of every cell of the others. Their log-odds on those other folds,
    out of fold too, make the calibration and the fixed thresholds.
    """
    features = np.concatenate([cell.features[:, selected] for cell in cells])
    flags = np.concatenate([cell.flags for cell in cells])
    of_row = np.concatenate([np.full(len(cell.y), fold[cell.task]) for cell in cells])
    odds = trees.out_of_fold(features, flags, of_row, options=options_of(config), grown=grown_on(cells, config))
    probabilities, fixed = np.zeros(flags.shape, np.float32), np.zeros(flags.shape, bool)
    for k in np.unique(of_row):
        rows = of_row == k
        calibration, thresholds = trees.calibrate(odds[~rows], flags[~rows])
        probabilities[rows] = claims.calibrated(odds[rows], calibration)
        fixed[rows] = probabilities[rows] >= thresholds[None]
    return {"odds": odds, "probabilities": probabilities, "fixed": fixed}


def options_of(config: Config) -> trees.Options:
    """How forests are grown."""
    return trees.Options(folds=config.folds, rounds=config.rounds, leaves=15)


def grown_on(cells: Sequence[Small], config: Config) -> Bool[np.ndarray, "n"]:
    """The rows that forests are grown on: ``fitted`` of each cell."""
    rng = np.random.default_rng(0)
    return np.concatenate([rng.permutation(len(cell.y)) < config.fitted for cell in cells])


def tasks_of(config: Config) -> dict[str, TableTask]:
    """The tables by name, complete."""
    return {name: complete(TASKS[name], config.rows, config.validation) for name in config.tasks}


def cells_of(config: Config, results: Path) -> list[Small]:
    """The cells of all tables, made where they are not stored."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    return travel_cells.gather(results, tasks_of(config), config.cleans, seeds)


def judged(config: Config, results: Path, cells: Sequence[Small]) -> dict[str, np.ndarray]:
    """`judge` of ours, made where the run of ``config`` does not have it yet."""
    return _judged(_run_dir(config, results, None), OURS, METHODS[OURS], cells, config)


def work(config: Config, results: Path, run: str | None) -> Path:
    """Make the cells, judge every method on tables left out, measure rivals, and write the run."""
    begin = time.perf_counter()
    hosts.start()
    with preemption.at_once():
        run_dir = _run_dir(config, results, run)
        cells = cells_of(config, results)
        measures = travel_measures.of_rivals(cells, folds_of(config.tasks, config.folds))
        for name, selected in METHODS.items():
            arrays = _judged(run_dir, name, selected, cells, config)
            p, fixed = (by_cell(arrays[field], cells) for field in ("probabilities", "fixed"))
            best = [claims.expected_best(of) for of in p]
            measures[name] = travel_measures.stacked(list(map(travel_measures.of_probabilities, cells, p, best)))
            measures[f"{name}{ONE}"] = travel_measures.stacked(list(map(travel_measures.of_claims, cells, fixed)))
        rows = rows_of(measures, cells, config)
        figure = plots.bar_groups(
            {
                name: _macro(rows, name)
                for name in (OURS, f"{OURS}{ONE}", travel_measures.SCORES, travel_measures.UNTRAINED)
            },
            [f"clean ratio {clean}" for clean in config.cleans],
            ylabel="macro-F1, tables left out",
        )
        size = f"{len(config.tasks)} tables in {config.folds} folds, {len(cells)} cells"
        about = f"{size}; means over tables, spread over draws."
        sections = {rows[0]["task"]: Section(about, {"Macro-F1 by clean ratio.": figure}, findings(rows, config))}
        page.finish(run_dir, "demix_tables", asdict(config), rows, sections, time.perf_counter() - begin)
    return run_dir


def findings(rows: Sequence[dict[str, Any]], config: Config) -> list[str]:
    """Macro-F1 at every clean ratio against the best single scores of other tables."""
    verdicts, pairs = [], [(OURS, travel_measures.SCORES)]
    for clean in config.cleans:
        of = [each for each in rows if each["task"] == f"all tables, clean ratio {clean}"]
        name = f"Macro-F1 on tables left out, clean ratio {clean}"
        verdicts += sentences.comparisons(of, pairs, metric="macro_f1", name=name)
    return verdicts


def rows_of(measures: travel_measures.Measures, cells: Sequence[Small], config: Config) -> list[dict[str, Any]]:
    """Rows by clean ratio, by form of broken rows, by table, and the shares of tables."""
    of = lambda get: np.array([get(cell) for cell in cells])
    clean, form, task = of(lambda c: c.clean), of(lambda c: c.form), of(lambda c: c.task)
    parts = {f"all tables, clean ratio {c}": (clean == c, list(measures), "") for c in config.cleans}
    of_forms = [OURS, "F: isolation forest", "F: largest robust z"]
    for name in dict.fromkeys(form.tolist()):
        chosen = (form == name) & (clean < 0.9)
        parts[f"all tables, {name}"] = (chosen, of_forms, "feature")
    few = [OURS, travel_measures.SCORES, travel_measures.UNTRAINED]
    parts |= {name: (task == name, few, "") for name in config.tasks}
    rows = []
    for title, (chosen, methods, kind) in parts.items():
        for method in methods:
            means = travel_measures.averaged(measures[method], cells, chosen)
            means = {name: values for name, values in means.items() if name.startswith(kind) and "_" in name}
            shown = {name: values for name, values in means.items() if not name.endswith(SUMS)}
            if shown:
                one = KINDS.get(method, Kind("rival"))
                rows.append(row(title, method, shown, role=one.role, settings=one.settings()))
    shares = travel_measures.shares(measures, OURS, cells)
    return [*rows, row("shares of the tables", OURS, shares, role="ours")]


def folds_of(tasks: Sequence[str], folds: int) -> dict[str, int]:
    """The fold of each table, by a permutation of their sorted names."""
    names = sorted(tasks)
    order = np.random.default_rng(0).permutation(len(names))
    return {name: int(k) % folds for name, k in zip(names, order, strict=True)}


def by_cell(a: np.ndarray, cells: Sequence[Small]) -> list[np.ndarray]:
    """The rows of each cell."""
    return np.split(a, np.cumsum([len(cell.y) for cell in cells])[:-1])


def _run_dir(config: Config, results: Path, run: str | None) -> Path:
    return runs.open_run(results, "demix_tables", asdict(config) | {"features": list(FEATURES)}, run)


def _judged(run_dir: Path, name: str, selected, cells: Sequence[Small], config: Config) -> dict[str, np.ndarray]:
    fold = folds_of(config.tasks, config.folds)
    return runs.unit(run_dir, name.replace(" ", "-"), lambda: ({}, judge(cells, selected, config, fold)))[1]


def _macro(rows: Sequence[Mapping[str, Any]], method: str) -> Float[np.ndarray, "s c"]:
    of_method = [one for one in rows if one["method"] == method and one["task"].startswith("all tables, clean")]
    return np.transpose([one["metrics"]["macro_f1"]["per_seed"] for one in of_method])


STUDY = Study(
    "demix_tables",
    claim="Trees on features of a row relative to its own table find planted errors on tables that they have not seen "
    "better than scores that need no training.",
    config=Config(),
    tasks=TASKS,
    # The tables are judged by each other, so they are one unit.
    work=work,
    minutes=60,
    headline=("all tables, clean ratio 0.8", OURS, "macro_f1"),
    smoke=smoke,
)
