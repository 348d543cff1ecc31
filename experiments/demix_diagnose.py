"""Which rows of a table are wrong, and in which way: diagnosers on tables, rules and draws they were not made for.

Claim:    boosted trees on influence vectors, with a few numbers a row that mean the same for any table, tell planted
          label errors, feature errors and spurious minorities better than every score that needs no training, on new
          draws, unseen rules and unseen tables; what holds in the cell a diagnoser was fitted on is no evidence.
Command:  python -m experiments.demix_diagnose            (`--config.smoke` takes half a minute)
Expected: the tables in experiments/README.md, which this command wrote.
Device:   two CPU cores, about 45 minutes; any JAX device works.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import tyro
from jaxtyping import Bool, Float

from d3mjax.diagnosis import detection, trees
from d3mjax.runtime import mesh, preemption, record
from experiments import demix_corpus, plots, report, units
from experiments.demix_cells import EXTRAS, FEATURES
from experiments.demix_corpus import KINDS, SIGNALS, Stored
from experiments.demix_tables import TABLES, TableTask


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


TYPES = ("label", "feature", "minority")
OURS = "trees"


def columns_of(*, influence: bool = True, others: bool = True, extras: bool = True) -> Bool[np.ndarray, " f"]:
    """Features that come from channel 0, from channels 1 to 3, and from the numbers of rows."""
    extra = np.array([name.startswith(EXTRAS) for name in FEATURES])
    channel = np.array([name.startswith("influence") for name in FEATURES])
    return (extra & extras) | (channel & influence) | (~extra & ~channel & others)


METHODS = {
    OURS: columns_of(),
    "trees, published channels": columns_of(extras=False),
    "trees, channels 1-3": columns_of(influence=False, extras=False),
    "trees, influence alone": columns_of(others=False, extras=False),
    "trees, without influence": columns_of(influence=False),
}
MAIN = (OURS, "trees, channels 1-3")


def fit(train: Sequence[Stored], columns, *, rows: int, rounds: int) -> trees.Trees:
    """Trees on the first ``rows`` of every cell; their order is random."""
    # Cells of one table and draw are held out together: thresholds are for what is new.
    groups = [f"{cell.task}-{cell.seed}" for cell in train]
    return trees.fit(
        np.concatenate([cell.features[:rows, columns] for cell in train]),
        np.concatenate([cell.flags[:rows] for cell in train]),
        np.repeat(groups, [len(cell.flags[:rows]) for cell in train]),
        folds=2,
        rounds=rounds,
        leaves=15,
    )


def told(train: Sequence[Stored], test: Sequence[Stored], columns, config: Config) -> tuple[list[Any], list[Any]]:
    """Probabilities and flags that trees give the rows of every test cell."""
    fitted = fit(train, columns, rows=config.fitted, rounds=config.rounds)
    found = [np.asarray(trees.predict(fitted, cell.features[:, columns])) for cell in test]
    return found, [np.asarray(trees.claim(fitted, p)) for p in found]


def measured(cell: Stored, values: Float[np.ndarray, "r 3"], claimed: Bool[np.ndarray, "r 3"]) -> dict[str, float]:
    """Figures of one cell."""
    f1 = np.asarray(detection.scores(claimed, cell.flags).f1)
    precision = {
        name: float(detection.average_precision(v, f)) for name, v, f in zip(TYPES, values.T, cell.flags.T, strict=True)
    }
    figures = {"macro_f1": float(np.nanmean(f1))}
    figures |= {f"{name}_f1": float(v) for name, v in zip(TYPES[:2], f1, strict=False)}
    figures["minority_f1_balanced" if cell.balanced else "minority_f1_published"] = float(f1[2])
    figures |= {f"{name}_auprc": value for name, value in precision.items()}
    figures[f"{cell.kind}_auprc"] = precision["feature"]
    figures["exact_match"] = float(detection.exact_match(claimed, cell.flags))
    figures["clean_rows_flagged"] = float(detection.clean_false_positives(claimed, cell.flags))
    figures["calibration_error"] = float(
        np.mean([detection.calibration_error(np.clip(v, 0, 1), f) for v, f in zip(values.T, cell.flags.T, strict=True)])
    )
    return figures


def rivals(train: Sequence[Stored], test: Sequence[Stored]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Scores without training, thresholds by F1 on the training cells; the best of each type there, joined."""
    of = {kind: [i for i, name in enumerate(SIGNALS) if name[0] == kind] for kind in "LFS"}
    ranks, flags = np.concatenate([c.signals for c in train]), np.concatenate([c.flags for c in train])
    chosen, thresholds = [], np.zeros(len(SIGNALS), np.float32)
    for k, kind in enumerate("LFS"):
        each = np.repeat(flags[:, k : k + 1], len(of[kind]), axis=1)
        cuts = np.asarray(detection.best_thresholds(ranks[:, of[kind]], each))
        f1 = np.asarray(detection.scores(ranks[:, of[kind]] >= cuts[None], each).f1)
        thresholds[of[kind]] = cuts
        chosen.append(of[kind][int(np.argmax(f1))])
    joined = lambda cell, at: (cell.signals[:, at], cell.signals[:, at] >= thresholds[None, at])
    found = {"best single scores": [joined(cell, chosen) for cell in test]}
    for k, kind in enumerate("LFS"):
        for i in of[kind]:
            at = [*chosen[:k], i, *chosen[k + 1 :]]
            found[f"{SIGNALS[i]}"] = [joined(cell, at) for cell in test]
    return found


def split_figures(
    train: Sequence[Stored], test: Sequence[Stored], config: Config, methods: Sequence[str], *, with_rivals: bool
) -> dict[str, dict[str, dict[str, float]]]:
    """``method -> clean ratio -> figures``, means over the test cells."""
    told_by = {}
    for name in methods:
        told_by[name] = list(zip(*told(train, test, METHODS[name], config), strict=True))
    if with_rivals:
        told_by |= rivals(train, test)
        everything = [(np.ones(cell.flags.shape), np.ones(cell.flags.shape, bool)) for cell in test]
        told_by["flag everything"] = everything
        known = [np.stack([c.signals[:, 0], c.signals[:, 0], c.told], 1) for c in test]
        told_by["S: knowing the rule"] = [(k, k > 0.5) for k in known]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, pairs in told_by.items():
        kind = TYPES["LFS".index(name[0])] if name[1:3] == ": " else None
        for clean in sorted({cell.clean for cell in test}):
            each = [measured(c, *pair) for c, pair in zip(test, pairs, strict=True) if c.clean == clean]
            names = dict.fromkeys(key for figures in each for key in figures)
            mean = {key: float(np.nanmean([figures[key] for figures in each if key in figures])) for key in names}
            if kind:  # a score for one type says nothing of the others
                broken = {f"{k}_auprc" for k in KINDS} if kind == "feature" else set()
                mean = {key: v for key, v in mean.items() if key.startswith(kind) or key in broken}
            found.setdefault(name, {})[str(clean)] = mean
    return found


def splits_of(config: Config, corpus: dict[str, list[Stored]], name: str, seed: int) -> dict[str, Any]:
    """All figures of a table at one draw: split -> method -> clean ratio -> figures."""
    own, deep = corpus[name], name in config.in_depth
    test, others = [c for c in own if c.seed == seed], [c for c in own if c.seed != seed]
    figures = partial(split_figures, config=config)
    found = {
        "new draw": figures(
            others, test, methods=tuple(METHODS) if deep and not config.smoke else MAIN, with_rivals=True
        )
    }
    tables = [c for other, cells in corpus.items() if other != name for c in cells if c.seed != seed]
    if tables:
        found["unseen table"] = figures(tables, test, methods=MAIN, with_rivals=True)
    if not deep:
        return found
    halves = [[_rows(c, slice(i, None, 2)) for c in test] for i in (0, 1)]
    found["in-cell"] = figures(*halves, methods=MAIN[:1], with_rivals=False)
    for clean in config.cleans:
        raw = np.nanmean([c.in_cell for c in test if c.clean == clean], axis=0)
        of_raw = {"macro_f1": float(raw.mean()), **dict(zip(("label_f1", "feature_f1"), raw.tolist(), strict=False))}
        found["in-cell"].setdefault("trees on the raw rows and labels", {})[str(clean)] = of_raw
    found["unseen rule"] = _averaged(
        [
            figures(
                [c for c in others if c.rule != k], [c for c in test if c.rule == k], methods=MAIN, with_rivals=True
            )
            for k in sorted({c.rule for c in test})
        ]
    )
    for clean in config.cleans if len(config.cleans) > 1 else ():
        part = [c for c in others if c.clean != clean], [c for c in test if c.clean == clean]
        _merge(found, "other clean ratio", figures(*part, methods=MAIN[:1], with_rivals=False))
    for kind, other in ((KINDS[0], KINDS[1]), (KINDS[1], KINDS[0])):
        part = [c for c in others if c.kind == kind], [c for c in test if c.kind == other]
        if len({c.seed for c in part[0]}) > 1 and part[1]:
            found[f"from {kind} to {other}"] = figures(*part, methods=MAIN[:1], with_rivals=False)
    return found


def _rows(cell: Stored, rows: slice) -> Stored:
    each = {n: getattr(cell, n)[rows] for n in ("features", "flags", "signals", "vectors", "told")}
    return cell._replace(**each)


def _merge(found, split, more) -> None:
    for method, by_clean in more.items():
        found.setdefault(split, {}).setdefault(method, {}).update(by_clean)


def _averaged(parts: Sequence[dict]) -> dict:
    """Means over unseen rules; a figure that only some rules have is the mean over those."""
    collected: dict = {}
    for part in parts:
        for method, by_clean in part.items():
            for clean, figures in by_clean.items():
                for key, value in figures.items():
                    collected.setdefault(method, {}).setdefault(clean, {}).setdefault(key, []).append(value)
    mean = lambda tree: {k: mean(v) if isinstance(v, dict) else float(np.nanmean(v)) for k, v in tree.items()}
    return mean(collected)


def rows_of(task: str, found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a split, clean ratio and method."""
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
                    rows.append(report.row(f"{task}, {split}, clean ratio {clean}", method, per_seed))
    return rows


SHOWN = ("new draw", "unseen rule", "unseen table")
SPLITS = {
    "in-cell": "Fitted on other rows of the same cells: an upper bound, and no evidence. Trees on the raw rows and "
    "their labels, without any task model, do as well there.",
    "new draw": "The same table and rules, errors drawn anew.",
    "unseen rule": "Fitted on cells of the other rules of the table; means over rules.",
    "unseen table": "Fitted on all other tables.",
    "other clean ratio": "Fitted at the other share of clean rows.",
}


def sections_of(task: TableTask, rows: Sequence[dict[str, Any]]) -> dict[str, report.Section]:
    """What the page says of each split of a table, and macro-F1 by split with the first."""
    made = {}
    for name in dict.fromkeys(row["task"] for row in rows):
        split = name.split(", ")[1]
        made[name] = report.Section(SPLITS.get(split, "Fitted on cells of one sort of feature error alone."), {})
    about = (
        f"{task.about} {task.train:,} rows with planted errors, {task.validation} to validate on, {len(task.rules)} "
        "rules.\n"
    )
    first = next(iter(made))
    made[first] = report.Section(about + made[first].text, _bars(rows))
    return made


def _bars(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Macro-F1 of the main methods by split, a figure for each clean ratio."""
    of = {(row["method"], row["task"].split(", ", 1)[1]): row["metrics"].get("macro_f1") for row in rows}
    figures = {}
    for clean in dict.fromkeys(split.rsplit(" ", 1)[1] for _, split in of):
        names = [s for s in SHOWN if of.get((OURS, f"{s}, clean ratio {clean}"))]
        shown = {
            method: np.transpose([of[method, f"{s}, clean ratio {clean}"]["per_seed"] for s in names])
            for method in (*MAIN, "best single scores", "flag everything")
        }
        caption = f"Macro-F1 by split, clean ratio {clean}, with deviations over draws."
        figures[caption] = plots.bar_groups(shown, names, ylabel="macro-F1")
    return figures


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run or resume; returns the directory of results."""
    if config.smoke:
        config = replace(config, tasks=config.tasks[-1:], seeds=3, rows=150, fitted=60, rounds=5, in_depth=("digits",))
    if unknown := set(config.tasks) - TABLES.keys():
        raise ValueError(f"tasks: found {sorted(unknown)}, expected names among {sorted(TABLES)}")
    if config.seeds < 3:
        raise ValueError(f"seeds: found {config.seeds}, expected at least 3: one to try on, others to fit on")
    begin = perf_counter()
    mesh.start()
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    tasks = {name: demix_corpus.small(TABLES[name], smoke=config.smoke) for name in config.tasks}
    with preemption.at_once():
        directory = record.open_run(results, "demix_diagnose", asdict(config), run)
        corpus = demix_corpus.gather(results, tasks, config.cleans, config.rows, seeds, smoke=config.smoke)
        rows, sections = [], {}
        for name, task in tasks.items():
            found = units.run_units(directory, name, seeds, partial(_measure, config, corpus, name), models=1)
            own = rows_of(name, [facts for facts, _ in found])
            rows, sections = rows + own, sections | sections_of(task, own)
        report.finish(directory, "demix_diagnose", asdict(config), rows, sections, perf_counter() - begin)
    return directory


def _measure(config: Config, corpus, name: str, seed: int, progress: Callable[[int], object]) -> units.Unit:
    found = splits_of(config, corpus, name, seed)
    progress(1)
    return found, {}


if __name__ == "__main__":
    tyro.cli(main)
