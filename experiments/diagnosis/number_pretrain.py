"""The diagnoser that d3mjax ships for numbers as labels: trees taught on eight tables with planted errors.

Claim:    trees taught on tables of regressions find label errors and feature errors of tables that were left out.
Command:  python -m experiments demix_number_pretrain
          cp results/demix_number_pretrain/RUN/diagnoser.npz d3mjax/diagnosis/shipped/diagnoser_numbers.npz
Device:   two CPU cores, 4 minutes after demix_regression, whose cells it reads, half an hour without.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from d3mjax.data.planted.mixed_errors import KINDS
from d3mjax.diagnosis import taught, trees
from d3mjax.diagnosis.cells import MLP2, NUMBER_FEATURES
from d3mjax.reports import page, plots
from d3mjax.runtime import hosts, preemption, runs, store
from experiments.diagnosis import corpus, number_corpus, pretrain, regression
from experiments.number_tables import TABLES
from experiments.study import Study

TRIVIAL = {
    "L: loss": "the largest losses",
    "F: largest z": "the largest z-scores",
    "S: far label": "the farthest labels",
}
"""The obvious rule for each of `KINDS`, by its name in `number_corpus.SIGNALS`."""


@dataclass(frozen=True)
class Config:
    """What determines the diagnoser."""

    tasks: tuple[str, ...] = tuple(TABLES)
    # Shares of the rows without planted errors.
    cleans: tuple[float, ...] = (0.5, 0.8)
    # Rows of each cell that trees are fitted on.
    fitted: int = 200
    # Draws of the errors.
    seeds: int = 5
    first_seed: int = 0
    # Trees for each kind of error.
    rounds: int = 60
    smoke: bool = False


def smoke(config: Config) -> Config:
    """Seconds, and a diagnoser of no use."""
    return replace(config, tasks=("computers", "houses"), cleans=(0.5,), fitted=60, seeds=2, rounds=5)


def teach(config: Config, results: Path, *, run: str | None = None) -> Path:
    """Make cells, fit, evaluate, save ``RESULTS/demix_number_pretrain/RUN/diagnoser.npz``; returns the run."""
    begin = time.perf_counter()
    hosts.start()
    directory = runs.open_run(results, "demix_number_pretrain", asdict(config) | {"features": NUMBER_FEATURES}, run)
    if pretrain.finished(directory / "diagnoser.npz"):
        return directory
    with preemption.at_once():
        small = regression.small if config.smoke else lambda task: task
        chosen = {name: small(TABLES[name]) for name in config.tasks}
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        every = number_corpus.gather(results, chosen, config.cleans, seeds)
        cells = [number_corpus.sampled(cell, config.fitted) for each in every.values() for cell, _ in each]
        of_row: Callable[..., Any] = lambda get: np.concatenate([np.full(len(cell.flags), get(cell)) for cell in cells])
        table, seed = of_row(lambda cell: cell.task), of_row(lambda cell: cell.seed)
        features, flags, signals = (
            np.concatenate([getattr(cell, name) for cell in cells]) for name in ("features", "flags", "signals")
        )
        options = trees.Options(folds=len(config.tasks), rounds=config.rounds, leaves=15)
        odds = trees.out_of_fold(features, flags, table, options=options)
        fitted = trees.fit(features, flags, table, options=options, odds=odds)
        probabilities, claimed = pretrain.out_of_table(odds, flags, table)
        named = np.zeros((len(flags), len(corpus.SIGNALS)), np.float32)
        for ours, theirs in zip(TRIVIAL, pretrain.TRIVIAL, strict=True):
            named[:, corpus.SIGNALS.index(theirs)] = signals[:, number_corpus.SIGNALS.index(ours)]
        rows = pretrain.rows_of(probabilities, claimed, flags, named, table, seed)
        evaluation = pretrain.evaluation(rows, probabilities, claimed, flags, of_row(lambda cell: cell.clean))
        for figures, rule in zip(evaluation.values(), TRIVIAL.values(), strict=True):
            figures["trivial"] = rule
        manifest = {
            "channels": list(NUMBER_FEATURES),
            "kinds": list(KINDS),
            "sizes": {"trees": config.rounds, "rows": len(flags)},
            "cells": [f"{c.task}, rule {c.rule}, clean {c.clean}, seed {c.seed}" for c in cells],
            "config": asdict(config),
            "rows": store.digest({"features": features, "flags": flags, "table": table}),
            "network": MLP2.name,
            "evaluation": evaluation,
        }
        taught.save(directory / "diagnoser.npz", fitted, manifest)
        reliability = {kind: figures["reliability"] for kind, figures in evaluation.items()}
        sections = {
            pretrain.ALL: page.Section(
                pretrain.ABOUT, {"Reliability of the probabilities.": plots.reliability(reliability)}
            )
        }
        facts = asdict(config) | {"digests": {"rows": manifest["rows"], "arrays": taught.digest(fitted)}}
        page.finish(directory, "demix_number_pretrain", facts, rows, sections, time.perf_counter() - begin)
    print(f"diagnoser: {directory / 'diagnoser.npz'}")
    return directory


STUDY = Study(
    "demix_number_pretrain",
    claim="Trees taught on tables of regressions find label errors and feature errors of tables that were left out.",
    config=Config(),
    tasks=TABLES,
    # The tables are calibrated by each other, so they are one unit.
    work=lambda config, results, run: teach(config, results, run=run),
    minutes=5,
    headline=(pretrain.ALL, "diagnoser", "label error precision"),
    smoke=smoke,
)
