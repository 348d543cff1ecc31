"""A diagnoser for tables that nobody has looked at: boosted trees taught on tables with planted errors, ready for use.

Claim:    what a row's influence vectors look like when its label or features are wrong carries over to other tables;
          how far it does is measured on tables that were left out, and kept beside the diagnoser.
Command:  python -m experiments.demix_pretrain               (d3mjax-diagnose does this by itself where it has none)
Expected: the table in experiments/README.md, which this command wrote.
Device:   two CPU cores, 2 minutes after demix_diagnose, whose cells it uses, a quarter of an hour without;
          --config.smoke takes seconds and gives a diagnoser of no use.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Bool, Float, Shaped

from d3mjax.data.planted.mixed_errors import KINDS
from d3mjax.diagnosis import claim_metrics, trees
from d3mjax.reports import page, plots
from d3mjax.reports.rows import Kind, row
from d3mjax.runtime import diagnoser, hosts, preemption, runs
from experiments.diagnosis import demix_corpus
from experiments.diagnosis.demix_cells import FEATURES, MLP2
from experiments.diagnosis.demix_tables import TABLES, TableTask

TRIVIAL = {"L: loss": "the largest losses", "F: largest z": "the largest z-scores", "S: SC = y": "the rarest class"}
"""For each of `KINDS` what anybody would try first, by its name in `demix_corpus.SIGNALS`."""
SMOKE = ("credit", "planted", "digits")
BINS = 10
ALL = "all tables"
ROLES = {
    "diagnoser": Kind("ours"),
    "trivial rules": Kind("rival"),
    "every row": Kind("control", controls="number"),
}


@dataclass(frozen=True)
class Config:
    """What determines the diagnoser."""

    # Tables of experiments.demix_tables to teach with; three at least, or nothing can be left out.
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


def main(config: Config, results: Path = Path("results"), run: str | None = None) -> Path:
    """Make cells, teach, evaluate, save; returns ``RESULTS/demix_pretrain/RUN/diagnoser.npz``, at once if it is there.

    Raises:
      ValueError: an unknown table, fewer than three, or one whose package is not installed.
    """
    begin = time.perf_counter()
    hosts.start()
    path = place(config, results, run)
    config = _smaller(config)
    if finished(path):
        print(f"diagnoser: {path}")
        return path
    with preemption.at_once():
        cells = [cell for name in config.tasks for cell in _cells(config, TABLES[name], results)]
        of_row = lambda get: np.concatenate([np.full(len(cell.flags), get(cell)) for cell in cells])
        table, seed = of_row(lambda cell: cell.task), of_row(lambda cell: cell.seed)
        features, flags, signals = (
            np.concatenate([getattr(cell, name) for cell in cells]) for name in ("features", "flags", "signals")
        )
        print(f"growing trees on {len(flags):,} rows of {len(cells)} cells")
        options: dict[str, Any] = {"folds": len(config.tasks), "rounds": config.rounds}
        odds = trees.out_of_fold(features, flags, table, **options)
        fitted = trees.fit(features, flags, table, **options, odds=odds)
        probabilities, claimed = out_of_table(odds, flags, table)
        rows = rows_of(probabilities, claimed, flags, signals, table, seed)
        manifest = {
            "channels": list(FEATURES),
            "kinds": list(KINDS),
            "sizes": {"trees": config.rounds, "rows": len(flags)},
            "cells": [f"{c.task}, rule {c.rule}, clean {c.clean}, seed {c.seed}" for c in cells],
            "config": asdict(config),
            "network": MLP2.name,
            "evaluation": evaluation(rows, probabilities, claimed, flags, of_row(lambda cell: cell.clean)),
        }
        save(path, fitted, manifest)
        sections = {ALL: page.Section(ABOUT, {"How often what is said is true.": _figure(manifest)})}
        page.finish(path.parent, "demix_pretrain", asdict(config), rows, sections, time.perf_counter() - begin)
    print(f"diagnoser: {path}")
    return path


ABOUT = (
    "Every number is of a table that its forests have not seen, and whose rows neither calibrated them nor chose the "
    "thresholds. The forests whose log-odds did that, on the other tables, have seen it.\n"
    "The trivial rules claim as many rows as the diagnoser does, or more where they are tied."
)


def place(config: Config, results: Path, run: str | None) -> Path:
    """Where the diagnoser of ``config`` is, or will be; another layout of the features is another place."""
    if unknown := set(config.tasks) - set(TABLES):
        raise ValueError(f"tasks: found {sorted(unknown)}, expected names among {sorted(TABLES)}")
    if len(set(config.tasks)) < 3:
        raise ValueError(f"tasks: found {list(config.tasks)}, expected three tables or more, for some to be left out")
    facts = asdict(_smaller(config)) | {"network": MLP2.name, "features": list(FEATURES)}
    return runs.open_run(results, "demix_pretrain", facts, run) / "diagnoser.npz"


def finished(path: Path) -> bool:
    """Whether the diagnoser and its report are there."""
    return path.exists() and (path.parent / "metrics.json").exists()


def save(path: Path, fitted: trees.Trees, manifest: dict[str, Any]) -> None:
    """One file, as `load` reads it."""
    arrays = fitted._asdict() | {"forest": fitted.forest._asdict()}
    diagnoser.save_diagnoser(path, arrays, manifest)


def load(path: Path) -> tuple[trees.Trees, dict[str, Any]]:
    """Trees and their manifest. Raises ValueError if it was made for other features, naming both layouts."""
    arrays, manifest = diagnoser.load_diagnoser(path, FEATURES)
    if set(arrays) != set(trees.Trees._fields):
        raise ValueError(f"{path} holds {sorted(arrays)}, expected trees: {sorted(trees.Trees._fields)}")
    forest = trees.Forest(**arrays.pop("forest"))
    return trees.Trees(forest, **arrays), manifest


def out_of_table(
    odds: Float[np.ndarray, "n e"], flags: Bool[np.ndarray, "n e"], table: Shaped[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, "n e"], Bool[np.ndarray, "n e"]]:
    """Probabilities and claims of each table, calibrated and with thresholds by rows of the other tables alone.

    The log-odds of those rows are of forests that were grown without their own table, but with this one.
    """
    probabilities, claimed = np.zeros(flags.shape, np.float32), np.zeros(flags.shape, bool)
    for name in np.unique(table):
        own = table == name
        slope, intercept, thresholds = trees.calibrate(odds[~own], flags[~own])
        probabilities[own] = trees.calibrated(odds[own], slope, intercept)
        claimed[own] = probabilities[own] >= thresholds[None]
    return probabilities, claimed


def rows_of(
    probabilities: Float[np.ndarray, "n e"],
    claimed: Bool[np.ndarray, "n e"],
    flags: Bool[np.ndarray, "n e"],
    signals: Float[np.ndarray, "n s"],
    table: Shaped[np.ndarray, " n"],
    seed: Shaped[np.ndarray, " n"],
) -> list[dict[str, Any]]:
    """Precision, recall and F1 of each kind, for each table and for all together (the mean over tables)."""
    simple = signals[:, [demix_corpus.SIGNALS.index(name) for name in TRIVIAL]]
    measured: dict[str, dict[str, list[dict[str, float | None]]]] = {}
    for name in np.unique(table):
        found: dict[str, list] = {"diagnoser": [], "trivial rules": [], "every row": []}
        for s in np.unique(seed):
            own = (table == name) & (seed == s)
            claims = {"diagnoser": claimed[own], "every row": np.ones_like(flags[own])}
            claims["trivial rules"] = _as_many(simple[own], claimed[own].sum(0))
            for method in found:
                ranked = probabilities[own] if method == "diagnoser" else None
                found[method].append(_measures(claims[method], flags[own], ranked))
        measured[str(name)] = found
    rows = []
    for name, found in measured.items():
        rows += [_row(name, method, values) for method, values in found.items()]
    for method in ("diagnoser", "trivial rules", "every row"):
        values = [_mean([found[method][i] for found in measured.values()]) for i in range(len(np.unique(seed)))]
        rows.append(_row(ALL, method, values))
    return rows


def evaluation(
    rows: Sequence[dict[str, Any]],
    probabilities: Float[np.ndarray, "n e"],
    claimed: Bool[np.ndarray, "n e"],
    flags: Bool[np.ndarray, "n e"],
    clean: Float[np.ndarray, " n"],
) -> dict[str, Any]:
    """What a user is told of each kind, all of it out of table.

    Figures by table, those of rivals, ``[mean probability, true share, rows]`` by bins, and ``[clean ratio, precision
    of the claims]``: the rarer an error, the fewer claims are right.
    """
    told = {}
    for i, kind in enumerate(KINDS):
        of_kind = lambda row, kind=kind: {
            name.removeprefix(f"{kind} "): value["mean"]
            for name, value in row["metrics"].items()
            if name.startswith(kind)
        }
        table = {row["task"]: of_kind(row) for row in rows if row["method"] == "diagnoser" and row["task"] != ALL}
        rivals = {row["method"]: of_kind(row) for row in rows if row["task"] == ALL}
        p, flag = probabilities[:, i], flags[:, i]
        bin = np.minimum((p * BINS).astype(int), BINS - 1)
        full = [b for b in range(BINS) if (bin == b).sum() >= 20]  # a share of fewer rows says nothing
        reliability = [[p[bin == b].mean(), flag[bin == b].mean(), int((bin == b).sum())] for b in full]
        own = rivals.pop("diagnoser")
        told[kind] = own | {"share": float(flag.mean()), "tables": table, "rivals": rivals, "reliability": reliability}
        told[kind]["trivial"] = list(TRIVIAL.values())[i]
        right = [(c, flag[(clean == c) & claimed[:, i]]) for c in np.unique(clean)]
        told[kind]["by_clean"] = [[float(c), float(of.mean())] for c, of in right if len(of)]
    return told


def _cells(config: Config, task: TableTask, results: Path) -> list[demix_corpus.Stored]:
    """The cells of a table, read where they are stored."""
    task = demix_corpus.small(task, smoke=config.smoke)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    try:
        cells = demix_corpus.gather(results, {task.name: task}, config.clean, config.rows, seeds)
    except ImportError as error:
        raise ValueError(
            f"tasks: {task.name!r} needs a package that is missing: {error}; pip install it, or leave out {task.name!r}"
        ) from error
    return [demix_corpus.take(cell, slice(config.fitted)) for cell in cells[task.name]]


def _smaller(config: Config) -> Config:
    if not config.smoke:
        return config
    return replace(config, tasks=SMOKE, clean=(0.5,), rows=100, fitted=100, seeds=1, rounds=10)


def _as_many(signals: Float[np.ndarray, "n e"], counts) -> Bool[np.ndarray, "n e"]:
    """The ``counts[e]`` rows of the largest signal, and those tied with the last of them."""
    last = [np.inf if not k else np.sort(a)[-k] for a, k in zip(signals.T, counts, strict=True)]
    return signals >= np.asarray(last)[None]


def _measures(claimed, flags, ranked) -> dict[str, float | None]:
    """Figures of each kind by name; None where there is none."""
    scores = claim_metrics.scores(claimed, flags)._asdict()
    if ranked is not None:
        scores["AUPRC"] = [claim_metrics.average_precision(p, f) for p, f in zip(ranked.T, flags.T, strict=True)]
    named = {"f1": "F1"}
    each = {f"{kind} {named.get(name, name)}": a[i] for i, kind in enumerate(KINDS) for name, a in scores.items()}
    return {name: None if np.isnan(value) else float(value) for name, value in each.items()}


def _mean(found: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Mean over tables that have the figure."""
    there = {name: [v for of in found if (v := of[name]) is not None] for name in found[0]}
    return {name: float(np.mean(values)) if values else None for name, values in there.items()}


def _per_seed(found: Sequence[dict[str, float | None]]) -> dict[str, list[float | None]]:
    return {name: [of[name] for of in found] for name in found[0]}


def _row(task: str, method: str, values: Sequence[dict[str, float | None]]) -> dict[str, Any]:
    kind = ROLES[method]
    return row(task, method, _per_seed(values), role=kind.role, settings=kind.settings())


def _figure(manifest: dict[str, Any]):
    return plots.reliability({kind: told["reliability"] for kind, told in manifest["evaluation"].items()})


if __name__ == "__main__":
    tyro.cli(main)
