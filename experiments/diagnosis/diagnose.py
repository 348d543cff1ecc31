"""Which rows of a table are wrong, and how: diagnosers on tables, rules and draws that they were not fitted on.

Claim:    boosted trees on influence vectors, with a few numbers a row that mean the same for any table, find planted
          label errors, feature errors and spurious minorities better than scores that need no training, on new draws
          and unseen rules, and on most unseen tables; figures of the cell that it was fitted on are no evidence.
Command:  python -m experiments demix_diagnose
Expected: macro-F1 of trees on Adult, new draw, clean ratio 0.5: 0.683 ± 0.024; best single scores: 0.515 ± 0.037.
Device:   two CPU cores, about 20 minutes; any JAX device works.

`fit`, `diagnosed`, `measured`, `split_figures` and `rows_of` serve the other studies of this wing as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from d3mjax.data.sets import shortcut_tables
from d3mjax.data.sets.shortcut_tables import TABLES, TableTask
from d3mjax.diagnosis import claims, trees
from d3mjax.diagnosis.cells import EXTRAS, FEATURES
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, row
from d3mjax.runtime import runs
from experiments.diagnosis import corpus
from experiments.diagnosis.corpus import BREAKS, SIGNALS, Stored, gather
from experiments.study import Study

Figures = dict[str, dict[str, dict[str, float]]]
"""``method -> clean ratio -> metric -> value``."""


@dataclass(frozen=True)
class Config:
    """What determines the numbers."""

    tasks: tuple[str, ...] = tuple(TABLES)
    cleans: tuple[float, ...] = (0.5, 0.8)
    # Draws of errors; every diagnoser is tried on one and fitted on others.
    seeds: int = 5
    first_seed: int = 0
    # On these every method and split is tried; on the others new draws and unseen tables.
    in_depth: tuple[str, ...] = ("adult",)
    # Rows stored of each cell, and how many of them a diagnoser is fitted on.
    rows: int = 2000
    fitted: int = 300
    rounds: int = 60
    smoke: bool = False

    def __post_init__(self) -> None:
        check_seeds(self.seeds)


def check_seeds(seeds: int) -> None:
    """Raises ValueError for fewer than three draws."""
    if seeds < 3:
        raise ValueError(f"seeds: found {seeds}, expected at least 3: one to try on, others to fit on")


def smoke(config: Config) -> Config:
    """Few rows of digits."""
    return replace(config, tasks=config.tasks[-1:], seeds=3, rows=150, fitted=60, rounds=5, in_depth=("digits",))


TYPES = ("label", "feature", "minority")
OURS = "trees"
CHANNELS = "trees, channels 1-3"


def features_of(*, influence: bool = True, others: bool = True, extras: bool = True) -> Bool[np.ndarray, "f"]:
    """Features of channel 0, of channels 1 to 3, and of the numbers of rows."""
    extra = np.array([name.startswith(EXTRAS) for name in FEATURES])
    channel = np.array([name.startswith("influence") for name in FEATURES])
    return (extra & extras) | (channel & influence) | (~extra & ~channel & others)


METHODS = {
    OURS: features_of(),
    "trees, published channels": features_of(extras=False),
    CHANNELS: features_of(influence=False, extras=False),
    "trees, influence alone": features_of(others=False, extras=False),
    "trees, without influence": features_of(influence=False),
}
MAIN = (OURS, CHANNELS)
KINDS = {
    **dict.fromkeys(METHODS, Kind("ours")),
    "flag everything": Kind("control", controls="number"),
    "S: knowing the rule": Kind("ceiling"),
    "trees on the raw rows and labels": Kind("yardstick"),
}
"""Kinds of methods; rivals elsewhere."""


def by_draw(cell: Stored) -> str:
    """Cells of one table and draw."""
    return f"{cell.task}-{cell.seed}"


def fit(
    train: Sequence[Stored], selected: Any, rows: int, rounds: int, new: Callable[[Stored], str] = by_draw
) -> trees.Trees:
    """Trees on the ``selected`` features of the first ``rows`` of every cell, whose order is random.

    Cells that agree in ``new`` are held out together for calibration and thresholds: it names what is new at use.
    """
    sizes = [len(cell.flags[:rows]) for cell in train]
    return trees.fit(
        np.concatenate([cell.features[:rows, selected] for cell in train]),
        np.concatenate([cell.flags[:rows] for cell in train]),
        np.repeat([new(cell) for cell in train], sizes),
        options=trees.Options(folds=2, rounds=rounds, leaves=15),
    )


def diagnosed(
    train: Sequence[Stored],
    test: Sequence[Stored],
    selected: Any,
    rows: int,
    rounds: int,
    new: Callable[[Stored], str] = by_draw,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probabilities and claims of the rows of every test cell, by trees fitted on the others."""
    fitted = fit(train, selected, rows, rounds, new)
    probabilities = [np.asarray(trees.predict(fitted, cell.features[:, selected])) for cell in test]
    return [(p, np.asarray(trees.claim(fitted, p))) for p in probabilities]


def measured(cell: Stored, values: Float[np.ndarray, "r e"], claimed: Bool[np.ndarray, "r e"]) -> dict[str, float]:
    """Metrics of one cell."""
    f1 = np.asarray(claims.scores(claimed, cell.flags).f1)
    pairs = list(zip(values.T, cell.flags.T, strict=True))
    precision = {name: float(claims.average_precision(v, f)) for name, (v, f) in zip(TYPES, pairs, strict=True)}
    return {
        "macro_f1": float(np.nanmean(f1)),
        **{f"{name}_f1": float(v) for name, v in zip(TYPES[:2], f1, strict=False)},
        "minority_f1_balanced" if cell.balanced else "minority_f1_published": float(f1[2]),
        **{f"{name}_auprc": value for name, value in precision.items()},
        f"{cell.kind}_auprc": precision["feature"],
        "exact_match": float(claims.exact_match(claimed, cell.flags)),
        "clean_rows_flagged": float(claims.clean_false_positives(claimed, cell.flags)),
        "calibration_error": float(np.mean([claims.calibration_error(np.clip(v, 0, 1), f) for v, f in pairs])),
    }


def scores_of(cell: Stored) -> Float[np.ndarray, "r s"]:
    """Signals of a cell; those of two values as 1 and 0, as their ranks depend on their number."""
    yes = (cell.signals > cell.signals.min(0, keepdims=True)).astype(np.float32)
    return np.where(np.isin(SIGNALS, corpus.BINARY)[None], yes, cell.signals)


def rivals(train: Sequence[Stored], test: Sequence[Stored]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Scores without training, thresholds by F1 on the training cells; the best of each type there, joined."""
    of = {letter: [i for i, name in enumerate(SIGNALS) if name[0] == letter] for letter in "LFS"}
    ranks, flags = np.concatenate(list(map(scores_of, train))), np.concatenate([c.flags for c in train])
    best, thresholds = [], np.zeros(len(SIGNALS), np.float32)
    for k, letter in enumerate("LFS"):
        each = np.repeat(flags[:, k : k + 1], len(of[letter]), axis=1)
        cuts = np.asarray(claims.best_thresholds(ranks[:, of[letter]], each))
        f1 = np.asarray(claims.scores(ranks[:, of[letter]] >= cuts[None], each).f1)
        thresholds[of[letter]] = cuts
        best.append(of[letter][int(np.argmax(f1))])
    joined = lambda cell, at: (scores_of(cell)[:, at], scores_of(cell)[:, at] >= thresholds[None, at])
    results = {"best single scores": [joined(cell, best) for cell in test]}
    for k, letter in enumerate("LFS"):
        for i in of[letter]:
            results[SIGNALS[i]] = [joined(cell, [*best[:k], i, *best[k + 1 :]]) for cell in test]
    return results


def split_figures(
    train: Sequence[Stored],
    test: Sequence[Stored],
    config: Any,
    methods: Sequence[str],
    *,
    with_rivals: bool,
    new: Callable[[Stored], str] = by_draw,
) -> Figures:
    """Means over the test cells, of methods fitted on the ``train`` cells; ``config`` has ``fitted`` and ``rounds``."""
    results = {name: diagnosed(train, test, METHODS[name], config.fitted, config.rounds, new) for name in methods}
    if with_rivals:
        results |= rivals(train, test)
        results["flag everything"] = [(np.ones(cell.flags.shape), np.ones(cell.flags.shape, bool)) for cell in test]
        known = [np.stack([c.signals[:, 0], c.signals[:, 0], c.told], 1) for c in test]
        results["S: knowing the rule"] = [(k, k > 0.5) for k in known]
    figures: Figures = {}
    for name, pairs in results.items():
        of_type = TYPES["LFS".index(name[0])] if name[1:3] == ": " else None
        for clean in sorted({cell.clean for cell in test}):
            each = [measured(c, *pair) for c, pair in zip(test, pairs, strict=True) if c.clean == clean]
            names = dict.fromkeys(key for values in each for key in values)
            mean = {key: float(np.nanmean([values[key] for values in each if key in values])) for key in names}
            if name not in METHODS:
                mean.pop("calibration_error")  # these are not probabilities
            if of_type:  # a score for one type claims that type alone
                broken = {f"{k}_auprc" for k in BREAKS} if of_type == "feature" else set()
                mean = {key: v for key, v in mean.items() if key.startswith(of_type) or key in broken}
            figures.setdefault(name, {})[str(clean)] = mean
    return figures


def splits_of(config: Config, cells: dict[str, list[Stored]], name: str, seed: int) -> dict[str, Figures]:
    """All figures of a table at one draw, by split."""
    of_table, deep = cells[name], name in config.in_depth
    test, others = [c for c in of_table if c.seed == seed], [c for c in of_table if c.seed != seed]
    figures = partial(split_figures, config=config)
    methods = tuple(METHODS) if deep and not config.smoke else MAIN
    splits = {"new draw": figures(others, test, methods=methods, with_rivals=True)}
    elsewhere = [c for other, of_other in cells.items() if other != name for c in of_other if c.seed != seed]
    if elsewhere:
        splits["unseen table"] = figures(elsewhere, test, methods=MAIN, with_rivals=True, new=lambda c: c.task)
    if not deep:
        return splits
    halves = [[corpus.take(c, slice(i, None, 2)) for c in test] for i in (0, 1)]
    splits["in-cell"] = figures(*halves, methods=MAIN[:1], with_rivals=False)
    for clean in config.cleans:
        raw = np.nanmean([c.in_cell for c in test if c.clean == clean], axis=0)
        of_raw = {"macro_f1": float(raw.mean()), **dict(zip(("label_f1", "feature_f1"), raw.tolist(), strict=False))}
        splits["in-cell"].setdefault("trees on the raw rows and labels", {})[str(clean)] = of_raw
    rules = {c.rule for c in test}
    parts = (([c for c in others if c.rule != k], [c for c in test if c.rule == k]) for k in rules)
    by_rule = partial(figures, methods=MAIN, with_rivals=True, new=lambda c: f"rule {c.rule}")
    splits["unseen rule"] = averaged(by_rule(*part) for part in parts)
    alone = partial(figures, methods=MAIN[:1], with_rivals=False)
    for clean in config.cleans if len(config.cleans) > 1 else ():
        of_clean = alone([c for c in others if c.clean != clean], [c for c in test if c.clean == clean])
        for method, by_clean in of_clean.items():
            splits.setdefault("other clean ratio", {}).setdefault(method, {}).update(by_clean)
    for kind, other in (BREAKS[:2], BREAKS[1::-1]):
        train, of_other = [c for c in others if c.kind == kind], [c for c in test if c.kind == other]
        if len({c.seed for c in train}) > 1 and of_other:
            splits[f"from {kind} to {other}"] = alone(train, of_other)
    return splits


def averaged(parts: Any) -> Figures:
    """Means over several figures, NaN left out; a metric that only some have is the mean over those."""
    collected: dict[str, Any] = {}
    for part in parts:
        for method, by_clean in part.items():
            for clean, figures in by_clean.items():
                for key, value in figures.items():
                    collected.setdefault(method, {}).setdefault(clean, {}).setdefault(key, []).append(value)
    mean = lambda of: {key: float(np.nanmean(values)) for key, values in of.items()}
    return {method: {clean: mean(of) for clean, of in by_clean.items()} for method, by_clean in collected.items()}


def rows_of(task: str, draws: Sequence[dict[str, Figures]], kind_of: Callable[[str], Kind]) -> list[dict[str, Any]]:
    """One row a split, clean ratio and method."""
    tables: dict[str, dict[str, dict[str, list[float]]]] = {}
    for split in dict.fromkeys(split for one in draws for split in one):
        having = [one[split] for one in draws if split in one]
        for clean in dict.fromkeys(clean for one in having for by_clean in one.values() for clean in by_clean):
            table = tables.setdefault(f"{task}, {split}, clean ratio {clean}", {})
            for method, by_clean in ((method, by_clean) for one in having for method, by_clean in one.items()):
                for name, value in by_clean.get(clean, {}).items():
                    if np.isfinite(value):
                        table.setdefault(method, {}).setdefault(name, []).append(value)
    kinds = lambda method: {"role": kind_of(method).role, "settings": kind_of(method).settings()}
    return [row(name, m, values, **kinds(m)) for name, table in tables.items() for m, values in table.items()]


SHOWN = ("new draw", "unseen rule", "unseen table")
SPLITS = {
    "in-cell": "Fitted on other rows of the same cells: an upper bound, and no evidence. Trees on the raw rows and "
    "their labels, without any task model, have the higher macro-F1 there.",
    "new draw": "The same table and rules, errors drawn anew.",
    "unseen rule": "Fitted on cells of the other rules of the table; means over rules.",
    "unseen table": "Fitted on all other tables.",
    "other clean ratio": "Fitted at the other share of clean rows.",
}


def describe(task: TableTask, config: Config, units: Sequence[runs.Unit]) -> tuple[list[dict], dict[str, Section]]:
    """Rows, and a section of the page for each split; macro-F1 by split with the first."""
    rows = rows_of(task.name, [facts for facts, _ in units], lambda method: KINDS.get(method, Kind("rival")))
    other = "Fitted on cells of one sort of feature error alone."
    sections = {name: Section(SPLITS.get(name.split(", ")[1], other), {}) for name in (r["task"] for r in rows)}
    about = (
        f"{task.description} {task.train:,} rows with planted errors, {task.validation} to validate on, "
        f"{len(task.rules)} rules.\n"
    )
    macro = {(r["method"], r["task"]): r["metrics"]["macro_f1"] for r in rows if "macro_f1" in r["metrics"]}
    figures = {}
    for clean in config.cleans:
        at = {split: f"{task.name}, {split}, clean ratio {clean}" for split in SHOWN}
        names = [split for split in SHOWN if (OURS, at[split]) in macro]
        shown = {
            method: np.transpose([macro[method, at[split]]["per_seed"] for split in names])
            for method in (*MAIN, "best single scores", "flag everything")
        }
        caption = f"Macro-F1 by split, clean ratio {clean}, with deviations over draws."
        figures[caption] = plots.bar_groups(shown, names, ylabel="macro-F1")
    first = next(iter(sections))
    return rows, sections | {first: Section(about + sections[first].text, figures)}


@lru_cache(maxsize=1)
def gathered(config: Config, results: Any) -> dict[str, list[Stored]]:
    """The cells of all tables, read once for all tasks of a run."""
    small = shortcut_tables.small if config.smoke else lambda task: task
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    return gather(results, {n: small(TABLES[n]) for n in config.tasks}, config.cleans, config.rows, seeds)


def prepare(task: TableTask, config: Config, results: Any) -> Callable[..., runs.Unit]:
    """``measure(seed, progress)`` of a table."""

    def measure(seed, progress):
        splits = splits_of(config, gathered(config, results), task.name, seed)
        progress(1)
        return splits, {}

    return measure


STUDY = Study(
    "demix_diagnose",
    claim="Boosted trees on influence vectors find planted errors of tables, rules and draws that they have not seen, "
    "better than scores that need no training.",
    config=Config(),
    tasks=TABLES,
    prepare=prepare,
    describe=describe,
    minutes=20,
    headline=("adult, new draw, clean ratio 0.5", OURS, "macro_f1"),
    smoke=smoke,
    small=shortcut_tables.small,
)
