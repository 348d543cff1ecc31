"""A table as its own test bed: errors planted into it a second time, measured, and used to calibrate its claims.

Claim:    errors planted on top of the unknown ones do not make the claims on a table left out better calibrated than
          other tables do; nor would the flags of another draw of its errors.
Command:  python -m experiments demix_tables_planted
Expected: claimed precision of label errors within five points of the true one on 43 % of 14 tables today, and on 36,
          50 and 29 % by planted errors; macro-F1 at clean ratio 0.95 is 0.483 today, and 0.478, 0.434 and 0.476.
Device:   two CPU cores, an hour after demix_tables_pretrain, whose cells and probabilities it reads; most of it
          compiles programs of the copies.

Every cell stands for the table of a user (`travel_copies`). Log-odds of its rows and of the rows of its copies are by
trees that have not seen the table. Platt's two numbers of each type are then fitted to the copies
(`travel_recalibrate`). Both fits assume that planted errors get the log-odds that unknown ones of their type get.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from d3mjax.data.sets.shortcut_tables import TableTask, divide
from d3mjax.diagnosis import claims, trees
from d3mjax.reports import page, plots, sentences
from d3mjax.reports.rows import Kind, row
from d3mjax.runtime import hosts, preemption, runs
from experiments.diagnosis import travel, travel_cells, travel_copies, travel_measures
from experiments.diagnosis import travel_recalibrate as recalibrate
from experiments.diagnosis.many_tables import TASKS
from experiments.diagnosis.travel_cells import Small
from experiments.diagnosis.travel_copies import Copy
from experiments.diagnosis.travel_measures import TYPES
from experiments.diagnosis.travel_recalibrate import Prior
from experiments.study import Study

TODAY = "calibrated on other tables, as d3mjax-diagnose is"
AS_BEFORE = "planted labels and features, others as before"
SET_BACK = "planted errors of all types, others as before, shares set back"
AGAINST = "planted errors of all types against the rest, prior of other tables"
DRAWN = "flags of another draw of errors of the table"
KNOWN = "all flags of the copies"
CHANCE = "were the probabilities of today right"
KINDS = {TODAY: Kind("plain"), DRAWN: Kind("ceiling"), KNOWN: Kind("ceiling")}
PLAIN, COPIES, COST = "the table, one network", "its copies, one network each", "cost of a table"
BY_TABLE, BY_DRAW = "claimed precision by table", "claimed precision by table and draw"
"""Two draws that calibrate each other err in opposite ways, which cancels in the first."""
MINORITY = TYPES.index("minority")


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    # The cells of all tables, and the trees, that have not seen the table.
    judged: travel.Config = field(default_factory=lambda: travel.Config(seeds=2, fitted=150))
    # Tables whose cells are copied, each as a table left out.
    tasks: tuple[str, ...] = tuple(TASKS)[:14]
    seeds: int = 2
    first_seed: int = 0
    # Share of the rows that get a planted error of each type, copies with errors, and what a row counts `against_rest`.
    share: float = 0.1
    count: int = 2
    weight: float = 0.1
    smoke: bool = False

    def __post_init__(self) -> None:
        if (self.seeds, self.first_seed) != (self.judged.seeds, self.judged.first_seed):
            raise ValueError(f"seeds: found {self.seeds} from {self.first_seed}, expected those of judged")
        if unknown := set(self.tasks) - set(self.judged.tasks):
            raise ValueError(f"tasks: found {sorted(unknown)}, expected names among those of judged")


def smoke(config: Config) -> Config:
    """The tables of a smoke run of `demix_tables`, one of them copied."""
    return replace(config, judged=travel.smoke(config.judged), tasks=("planted",), count=1)


def work(config: Config, results: Path, run: str | None) -> Path:
    """Copy the cells, calibrate each by its copies, count claims and hits, and write the run."""
    begin = time.perf_counter()
    hosts.start()
    with preemption.at_once():
        run_dir = runs.open_run(results, STUDY.name, asdict(config), run)
        tasks, cells = travel.tasks_of(config.judged), travel.cells_of(config.judged, results)
        judged = travel.judged(config.judged, results, cells)
        odds, before = (travel.by_cell(judged[name], cells) for name in ("odds", "probabilities"))
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        chosen = {name: tasks[name] for name in config.tasks}
        made: Any = {"share": config.share, "count": config.count}
        copies = travel_copies.gather(results, chosen, config.judged.cleans, seeds, **made)
        _, arrays = runs.unit(run_dir, "odds", lambda: ({}, odds_of(cells, copies, config.judged)))
        copied = {
            key: [arrays["-".join(map(str, (*key, i)))] for i in range(len(each))] for key, each in copies.items()
        }
        some = [i for i, cell in enumerate(cells) if cell.task in config.tasks]
        fold = travel.folds_of(config.judged.tasks, config.judged.folds)
        priors = priors_of(cells, odds, fold)
        probabilities: dict[str, list[np.ndarray]] = {}
        for i in some:
            others = [j for j, c in enumerate(cells) if c.task == cells[i].task and c.seed != cells[i].seed]
            key = cells[i].task, cells[i].seed, cells[i].clean
            known = claims.platt(
                *(np.concatenate(a) for a in ([odds[j] for j in others], [cells[j].flags for j in others]))
            )
            of_cell = variants(
                cells[i], odds[i], before[i], copies[key], copied[key], priors[fold[key[0]]], config.weight
            )
            of_cell[DRAWN] = np.asarray(claims.calibrated(odds[i], known))
            for name, p in of_cell.items():
                probabilities.setdefault(name, []).append(p)
        measured = measures(probabilities, [cells[i] for i in some])
        _, cost = runs.unit(run_dir, "cost", lambda: ({}, costs(chosen[config.tasks[-1]], config)))
        rows = rows_of(measured, [cells[i] for i in some], cost, config)
        rows += chance_rows(probabilities[TODAY], [cells[i] for i in some])
        _write(run_dir, rows, config, time.perf_counter() - begin)
    return run_dir


def odds_of(
    cells: Sequence[Small], copies: Mapping[tuple[str, int, float], Sequence[Copy]], config: travel.Config
) -> dict[str, Float[np.ndarray, "n e"]]:
    """Log-odds of the rows of every copy, by the trees of `travel.judge` that have not seen the table."""
    fold = travel.folds_of(config.tasks, config.folds)
    named = {
        "-".join(map(str, (*key, i))): (key[0], copy) for key, each in copies.items() for i, copy in enumerate(each)
    }
    features = [cell.features[:, travel_copies.SELECTED] for cell in cells] + [c.features for _, c in named.values()]
    flags = [cell.flags for cell in cells] + [c.flags for _, c in named.values()]
    tables = [cell.task for cell in cells] + [task for task, _ in named.values()]
    of_row = np.concatenate([np.full(len(f), fold[task]) for f, task in zip(flags, tables, strict=True)])
    grown = travel.grown_on(cells, config)
    grown = np.pad(grown, (0, len(of_row) - len(grown)))  # none on copies
    options = travel.options_of(config)
    odds = trees.out_of_fold(np.concatenate(features), np.concatenate(flags), of_row, options=options, grown=grown)
    parts = np.split(odds, np.cumsum([len(f) for f in flags])[:-1])[len(cells) :]
    return dict(zip(named, parts, strict=True))


def priors_of(cells: Sequence[Small], odds: Sequence[np.ndarray], fold: Mapping[str, int]) -> dict[int, list[Prior]]:
    """By the fold of a table, of each type: Platt's numbers of the tables of other folds."""
    numbers = {}
    for name in sorted({cell.task for cell in cells}):
        of = [j for j, cell in enumerate(cells) if cell.task == name]
        numbers[name] = claims.platt(
            np.concatenate([odds[j] for j in of]), np.concatenate([cells[j].flags for j in of])
        )
    priors = {}
    for k in set(fold.values()):
        others = [one for name, one in numbers.items() if fold[name] != k]
        slopes, intercepts = (np.stack([n[i] for n in others]) for i in (0, 1))
        priors[k] = [recalibrate.prior_of(s, b) for s, b in zip(slopes.T, intercepts.T, strict=True)]
    return priors


def variants(
    cell: Small,
    odds: Float[np.ndarray, "n e"],
    before: Float[np.ndarray, "n e"],
    copies: Sequence[Copy],
    copied: Sequence[Float[np.ndarray, "n e"]],
    priors: Sequence[Prior],
    weight: float,
) -> dict[str, Float[np.ndarray, "n e"]]:
    """Probabilities of every variant, and those of `claims.platt` by all flags of the copies.

    ``copied``: log-odds of the rows of ``copies``, which are in the order of the cell's.
    """
    p = {name: before.copy() for name in (TODAY, AS_BEFORE, SET_BACK, AGAINST, KNOWN)}
    for k in range(len(TYPES)):
        used = [i for i, copy in enumerate(copies) if copy.of_rule == (k == MINORITY)]
        o, planted = (
            np.concatenate(a) for a in ([copied[i][:, k] for i in used], [copies[i].flags[:, k] for i in used])
        )
        undone = 1 / (cell.left_out.shape[1] - 1) if TYPES[k] == "label" else 0.0
        own, true = (np.tile(a[:, k], len(used)) for a in (before, cell.flags))
        fit: Any = (o, planted, own, undone, priors[k])
        numbers = {
            SET_BACK: recalibrate.as_before(*fit, set_back=True),
            AGAINST: recalibrate.against_rest(o, planted, undone, priors[k], weight=weight),
        }
        if k != MINORITY:
            numbers[AS_BEFORE] = recalibrate.as_before(*fit, set_back=False)
        for name, fitted in numbers.items():
            p[name][:, k] = recalibrate.probabilities(fitted, odds[:, k])
        wrong = np.where(planted, ~true if undone == 1 else True, true)
        p[KNOWN][:, k] = claims.calibrated(odds[:, k : k + 1], claims.platt(o[:, None], wrong[:, None]))[:, 0]
    return p


def measures(probabilities: Mapping[str, Sequence[np.ndarray]], cells: Sequence[Small]) -> travel_measures.Measures:
    """Claims of the highest expected F1 of every method, counted."""
    return {
        name: travel_measures.stacked(
            [travel_measures.of_probabilities(c, q, claims.expected_best(q)) for c, q in zip(cells, p, strict=True)]
        )
        for name, p in probabilities.items()
    }


def rows_of(
    measured: travel_measures.Measures, cells: Sequence[Small], cost: Mapping[str, np.ndarray], config: Config
) -> list[dict[str, Any]]:
    """Rows by clean ratio, and of the tables: shares with claimed precision near the true one, and mean distances."""
    clean, rows = np.array([cell.clean for cell in cells]), []
    shown = ("macro_f1", *(f"{kind}_f1" for kind in TYPES))
    for name, of in measured.items():
        kind = KINDS.get(name, Kind("ours"))
        as_row: Any = {"role": kind.role, "settings": kind.settings()}
        for c in config.judged.cleans:
            means = travel_measures.averaged({key: of[key] for key in shown}, cells, clean == c)
            rows.append(row(f"clean ratio {c}", name, means, **as_row))
        for title, units in units_of(cells).items():
            gaps = travel_measures.precision_gaps(of, units)
            near = {f"{k}_precision_within_5_points": [float(np.mean(abs(g) <= 0.05))] for k, g in gaps.items()}
            made = {k: abs(g[np.isfinite(g)]) for k, g in gaps.items()}  # not where nothing is claimed
            far = {f"{k}_precision_distance": [float(g.mean()) if len(g) else np.nan] for k, g in made.items()}
            rows.append(row(title, name, near | far, **as_row))
    for name, seconds in cost.items():
        rows.append(row(COST, name, {"cpu_seconds": [float(seconds)]}, role="plain" if name == PLAIN else "ours"))
    return rows


def units_of(cells: Sequence[Small]) -> dict[str, list[Small]]:
    """The cells, each of its table, and each of its table and draw."""
    return {BY_TABLE: list(cells), BY_DRAW: [cell._replace(task=f"{cell.task}, {cell.seed}") for cell in cells]}


def chance_rows(probabilities: Sequence[np.ndarray], cells: Sequence[Small]) -> list[dict[str, Any]]:
    """Precision near the claimed one by the chance of the hits alone, as normal numbers, if probabilities are right.

    Of ``n`` claims the precision has the variance ``sum p (1 - p) / n^2``.
    """
    claimed = [claims.expected_best(p) for p in probabilities]
    variance = np.stack([(p * (1 - p) * c).sum(0) for p, c in zip(probabilities, claimed, strict=True)])
    made, rows = np.stack([c.sum(0) for c in claimed]), []
    for title, units in units_of(cells).items():
        names = np.array([cell.task for cell in units])
        sums = [[a[names == name].sum(0) for name in np.unique(names)] for a in (variance, made)]
        deviation = np.sqrt(sums[0]) / np.maximum(sums[1], 1)
        within = np.where(np.array(sums[1]) > 0, 2 * norm.cdf(0.05 / np.maximum(deviation, 1e-9)) - 1, 0)
        shown = {f"{kind}_precision_within_5_points": [float(w)] for kind, w in zip(TYPES, within.mean(0), strict=True)}
        away = deviation.mean(0) * np.sqrt(2 / np.pi)
        shown |= {f"{kind}_precision_distance": [float(d)] for kind, d in zip(TYPES, away, strict=True)}
        rows.append(row(title, CHANCE, shown, role="ceiling"))
    return rows


def costs(task: TableTask, config: Config) -> dict[str, np.ndarray]:
    """CPU seconds of a table with one network, and of its copies, both without compilation."""
    errors = travel_cells.planted(task, divide(task), config.judged.cleans, config.first_seed)[1][0][0]
    key, options = jax.random.key(0), {"num_classes": task.classes, "share": config.share, "count": config.count}
    describe = travel_copies.make_describe(task)

    def copied():
        return describe(key, travel_copies.copies_of(key, errors.table, errors.labels, **options))

    return {PLAIN: _seconds(lambda: describe(key, [errors])), COPIES: _seconds(copied)}


def _seconds(call: Callable[[], object]) -> np.ndarray:
    """CPU seconds of a second call."""
    call()
    begin = time.process_time()
    call()
    return np.array(time.process_time() - begin)


def _write(run_dir: Path, rows: list[dict[str, Any]], config: Config, seconds: float) -> None:
    of_shares = {r["method"]: r["metrics"] for r in rows if r["task"] == BY_DRAW}
    figure = plots.bar_groups(
        {
            name: np.array([[metrics[f"{kind}_precision_within_5_points"]["mean"] for kind in TYPES]])
            for name, metrics in of_shares.items()
        },
        list(TYPES),
        ylabel="share of tables and draws",
    )
    about = f"{len(config.tasks)} tables, each calibrated by errors planted into copies of itself; spread over draws."
    caption = "Tables and draws whose claimed precision is within 5 points of the true one."
    sections = {}
    for clean in config.judged.cleans:
        title = f"clean ratio {clean}"
        pairs = [(name, TODAY) for name in (AS_BEFORE, SET_BACK, AGAINST)]
        of_ratio = [r for r in rows if r["task"] == title]
        findings = sentences.comparisons(of_ratio, pairs, metric="macro_f1", name="Macro-F1")
        sections[title] = page.Section(about, {} if sections else {caption: figure}, findings)
    page.finish(run_dir, STUDY.name, asdict(config), rows, sections, seconds)


STUDY = Study(
    "demix_tables_planted",
    claim="Errors planted into a table on top of its unknown ones do not calibrate claims about it better than other "
    "tables do.",
    config=Config(),
    tasks=TASKS,
    # The prior and the trees of a table come from the others, so they are one unit.
    work=work,
    minutes=60,
    headline=(BY_TABLE, AS_BEFORE, "label_precision_within_5_points"),
    smoke=smoke,
)
