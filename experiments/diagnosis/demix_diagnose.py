"""Which rows of a table are wrong, and in which way: diagnosers on tables, rules and draws they were not made for.

Claim:    boosted trees on influence vectors, with a few numbers a row that mean the same for any table, tell planted
          label errors, feature errors and spurious minorities better than scores that need no training, on new draws
          and unseen rules, and on most unseen tables; what holds in the cell a diagnoser was fitted on is no evidence.
Command:  python -m experiments.demix_diagnose            (`--config.smoke` takes half a minute)
Expected: the tables in experiments/README.md, which this command wrote.
Device:   two CPU cores, about 20 minutes; any JAX device works.
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

from d3mjax.diagnosis import claim_metrics, trees
from d3mjax.reports import page
from d3mjax.runtime import hosts, preemption, runs
from experiments import study
from experiments.diagnosis import demix_corpus, demix_report
from experiments.diagnosis.demix_cells import EXTRAS, FEATURES
from experiments.diagnosis.demix_corpus import BREAKS, SIGNALS, Stored
from experiments.diagnosis.demix_tables import TABLES


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


def by_draw(cell: Stored) -> str:
    """Cells of one table and draw."""
    return f"{cell.task}-{cell.seed}"


def fit(
    train: Sequence[Stored], columns, *, rows: int, rounds: int, new: Callable[[Stored], str] = by_draw
) -> trees.Trees:
    """Trees on the first ``rows`` of every cell, whose order is random.

    Cells that agree in ``new`` are held out together for calibration and thresholds: it names what is new at use.
    """
    groups = [new(cell) for cell in train]
    return trees.fit(
        np.concatenate([cell.features[:rows, columns] for cell in train]),
        np.concatenate([cell.flags[:rows] for cell in train]),
        np.repeat(groups, [len(cell.flags[:rows]) for cell in train]),
        folds=2,
        rounds=rounds,
        leaves=15,
    )


def told(
    train: Sequence[Stored],
    test: Sequence[Stored],
    columns,
    config: Config,
    *,
    new: Callable[[Stored], str] = by_draw,
) -> tuple[list[Any], list[Any]]:
    """Probabilities and flags that trees give the rows of every test cell."""
    fitted = fit(train, columns, rows=config.fitted, rounds=config.rounds, new=new)
    found = [np.asarray(trees.predict(fitted, cell.features[:, columns])) for cell in test]
    return found, [np.asarray(trees.claim(fitted, p)) for p in found]


def measured(cell: Stored, values: Float[np.ndarray, "r 3"], claimed: Bool[np.ndarray, "r 3"]) -> dict[str, float]:
    """Figures of one cell."""
    f1 = np.asarray(claim_metrics.scores(claimed, cell.flags).f1)
    precision = {
        name: float(claim_metrics.average_precision(v, f))
        for name, v, f in zip(TYPES, values.T, cell.flags.T, strict=True)
    }
    figures = {"macro_f1": float(np.nanmean(f1))}
    figures |= {f"{name}_f1": float(v) for name, v in zip(TYPES[:2], f1, strict=False)}
    figures["minority_f1_balanced" if cell.balanced else "minority_f1_published"] = float(f1[2])
    figures |= {f"{name}_auprc": value for name, value in precision.items()}
    figures[f"{cell.kind}_auprc"] = precision["feature"]
    figures["exact_match"] = float(claim_metrics.exact_match(claimed, cell.flags))
    figures["clean_rows_flagged"] = float(claim_metrics.clean_false_positives(claimed, cell.flags))
    figures["calibration_error"] = float(
        np.mean(
            [claim_metrics.calibration_error(np.clip(v, 0, 1), f) for v, f in zip(values.T, cell.flags.T, strict=True)]
        )
    )
    return figures


def scores_of(cell: Stored) -> Float[np.ndarray, "r s"]:
    """Signals of a cell; those that say yes or no as 1 and 0, where a rank would depend on how many there are."""
    yes = (cell.signals > cell.signals.min(0, keepdims=True)).astype(np.float32)
    return np.where(np.isin(SIGNALS, demix_corpus.BINARY)[None], yes, cell.signals)


def rivals(train: Sequence[Stored], test: Sequence[Stored]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Scores without training, thresholds by F1 on the training cells; the best of each type there, joined."""
    of = {kind: [i for i, name in enumerate(SIGNALS) if name[0] == kind] for kind in "LFS"}
    ranks, flags = np.concatenate(list(map(scores_of, train))), np.concatenate([c.flags for c in train])
    chosen, thresholds = [], np.zeros(len(SIGNALS), np.float32)
    for k, kind in enumerate("LFS"):
        each = np.repeat(flags[:, k : k + 1], len(of[kind]), axis=1)
        cuts = np.asarray(claim_metrics.best_thresholds(ranks[:, of[kind]], each))
        f1 = np.asarray(claim_metrics.scores(ranks[:, of[kind]] >= cuts[None], each).f1)
        thresholds[of[kind]] = cuts
        chosen.append(of[kind][int(np.argmax(f1))])
    joined = lambda cell, at: (scores_of(cell)[:, at], scores_of(cell)[:, at] >= thresholds[None, at])
    found = {"best single scores": [joined(cell, chosen) for cell in test]}
    for k, kind in enumerate("LFS"):
        for i in of[kind]:
            at = [*chosen[:k], i, *chosen[k + 1 :]]
            found[f"{SIGNALS[i]}"] = [joined(cell, at) for cell in test]
    return found


def split_figures(
    train: Sequence[Stored],
    test: Sequence[Stored],
    config: Config,
    methods: Sequence[str],
    *,
    with_rivals: bool,
    new: Callable[[Stored], str] = by_draw,
) -> dict[str, dict[str, dict[str, float]]]:
    """``method -> clean ratio -> figures``, means over the test cells."""
    told_by = {}
    for name in methods:
        told_by[name] = list(zip(*told(train, test, METHODS[name], config, new=new), strict=True))
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
            if name not in METHODS:
                mean.pop("calibration_error")  # these are no probabilities
            if kind:  # a score for one type says nothing of the others
                broken = {f"{k}_auprc" for k in BREAKS} if kind == "feature" else set()
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
        found["unseen table"] = figures(tables, test, methods=MAIN, with_rivals=True, new=lambda c: c.task)
    if not deep:
        return found
    halves = [[demix_corpus.take(c, slice(i, None, 2)) for c in test] for i in (0, 1)]
    found["in-cell"] = figures(*halves, methods=MAIN[:1], with_rivals=False)
    for clean in config.cleans:
        raw = np.nanmean([c.in_cell for c in test if c.clean == clean], axis=0)
        of_raw = {"macro_f1": float(raw.mean()), **dict(zip(("label_f1", "feature_f1"), raw.tolist(), strict=False))}
        found["in-cell"].setdefault("trees on the raw rows and labels", {})[str(clean)] = of_raw
    parts = (([c for c in others if c.rule != k], [c for c in test if c.rule == k]) for k in {c.rule for c in test})
    by_rule = partial(figures, methods=MAIN, with_rivals=True, new=lambda c: f"rule {c.rule}")
    found["unseen rule"] = _averaged([by_rule(*part) for part in parts])
    for clean in config.cleans if len(config.cleans) > 1 else ():
        part = [c for c in others if c.clean != clean], [c for c in test if c.clean == clean]
        _merge(found, "other clean ratio", figures(*part, methods=MAIN[:1], with_rivals=False))
    for kind, other in (BREAKS[:2], BREAKS[1::-1]):
        part = [c for c in others if c.kind == kind], [c for c in test if c.kind == other]
        if len({c.seed for c in part[0]}) > 1 and part[1]:
            found[f"from {kind} to {other}"] = figures(*part, methods=MAIN[:1], with_rivals=False)
    return found


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
    return demix_report.averaged(collected)


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Run or resume; returns the directory of results."""
    if config.smoke:
        config = replace(config, tasks=config.tasks[-1:], seeds=3, rows=150, fitted=60, rounds=5, in_depth=("digits",))
    if unknown := set(config.tasks) - TABLES.keys():
        raise ValueError(f"tasks: found {sorted(unknown)}, expected names among {sorted(TABLES)}")
    if config.seeds < 3:
        raise ValueError(f"seeds: found {config.seeds}, expected at least 3: one to try on, others to fit on")
    begin = perf_counter()
    hosts.start()
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    tasks = {name: demix_corpus.small(TABLES[name], smoke=config.smoke) for name in config.tasks}
    with preemption.at_once():
        directory = runs.open_run(results, "demix_diagnose", asdict(config), run)
        corpus = demix_corpus.gather(results, tasks, config.cleans, config.rows, seeds)
        rows, sections = [], {}
        for name, task in tasks.items():
            found = study.run_units(directory, name, seeds, partial(_measure, config, corpus, name), models=1)
            own = demix_report.rows_of(name, [facts for facts, _ in found])
            rows, sections = rows + own, sections | demix_report.sections_of(task, own)
        page.finish(directory, "demix_diagnose", asdict(config), rows, sections, perf_counter() - begin)
    return directory


def _measure(config: Config, corpus, name: str, seed: int, progress: Callable[[int], object]) -> study.Unit:
    found = splits_of(config, corpus, name, seed)
    progress(1)
    return found, {}


if __name__ == "__main__":
    tyro.cli(main)
