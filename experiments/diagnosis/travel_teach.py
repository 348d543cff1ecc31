"""The diagnoser that ships with d3mjax for classes: trees taught on 43 tables with planted errors.

Claim:    what shows errors relative to a table carries over: claims on tables left out are right more often than the
          trivial rules'.
Command:  python -m experiments demix_tables_pretrain
          cp results/demix_tables_pretrain/RUN/diagnoser.npz d3mjax/diagnosis/shipped/
          python -m experiments report results/demix_tables_pretrain/RUN --publish study
Expected: means over tables left out and clean ratios: label errors at precision 0.650 ± 0.010 and recall 0.742 ± 0.023,
          feature errors at 0.553 ± 0.056 and 0.62 ± 0.13; the largest losses have precision 0.388, the largest z-scores
          0.357.
Device:   two CPU cores, half an hour, most of it for cells, which demix_tables makes, too.

Two draws of errors, and more rows of each cell than demix_tables has of its five. Figures are of tables left out, by
`travel.judge`: forests, calibration and thresholds have not seen them. The published metrics hold digests of the rows
that taught it and of its arrays; a test compares the shipped file.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy.stats import rankdata

from d3mjax.data.planted.mixed_errors import KINDS
from d3mjax.diagnosis import claims, taught, trees
from d3mjax.diagnosis.cells import MLP2
from d3mjax.reports import page, plots
from d3mjax.runtime import hosts, preemption, runs, store
from experiments.diagnosis import pretrain, travel
from experiments.diagnosis.many_tables import TASKS
from experiments.diagnosis.travel_cells import FEATURES, Small
from experiments.diagnosis.travel_rivals import FROM_FEATURES
from experiments.study import Study

TRIVIAL = {
    "L: loss": "the largest losses",
    "F: largest robust z": "the largest z-scores",
    "S: SC = y": "the rarest class",
}
"""The rule for each of `KINDS`, by its name among `FROM_FEATURES`."""


@dataclass(frozen=True)
class Config:
    """What determines the diagnoser."""

    judged: travel.Config = field(default_factory=lambda: travel.Config(seeds=2, fitted=150))
    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: int = 2
    first_seed: int = 0
    smoke: bool = False

    def __post_init__(self) -> None:
        same = [(of.tasks, of.seeds, of.first_seed) for of in (self, self.judged)]
        if same[0] != same[1]:
            raise ValueError(f"judged: found other tables or seeds, {same[1]}, expected {same[0]}")


def smoke(config: Config) -> Config:
    """That of `demix_tables`."""
    judged = travel.smoke(config.judged)
    return replace(config, judged=judged, tasks=judged.tasks, seeds=judged.seeds)


def work(config: Config, results: Path, run: str | None) -> Path:
    """Make the cells, judge tables left out, grow trees on all, and write the diagnoser and its report."""
    begin = time.perf_counter()
    hosts.start()
    run_dir = runs.open_run(results, STUDY.name, asdict(config) | {"features": list(FEATURES)}, run)
    with preemption.at_once():
        cells = travel.cells_of(config.judged, results)
        judged = travel.judged(config.judged, results, cells)
        rows, manifest, digests = write(run_dir / "diagnoser.npz", cells, judged, config.judged)
    reliability = {kind: figures["reliability"] for kind, figures in manifest["evaluation"].items()}
    section = page.Section(pretrain.ABOUT, {"Reliability of the probabilities.": plots.reliability(reliability)})
    facts = asdict(config) | {"digests": digests}
    page.finish(run_dir, STUDY.name, facts, rows, {pretrain.ALL: section}, time.perf_counter() - begin)
    print(f"diagnoser: {run_dir / 'diagnoser.npz'}")
    return run_dir


def write(
    path: Path, cells: Sequence[Small], judged: dict[str, np.ndarray], config: travel.Config
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, str]]:
    """Grow trees on rows of all tables, and write them with the figures of ``judged`` as `taught.save`.

    ``judged``: the result of `travel.judged`. Trees read the features of `travel.OURS`; thresholds are chosen in every
    table. Returns rows of the figures by table and their means, the manifest, and digests of the rows and arrays.
    """
    selected, grown, options = travel.METHODS[travel.OURS], travel.grown_on(cells, config), travel.options_of(config)
    of_row = lambda get: np.concatenate([np.full(len(cell.y), get(cell)) for cell in cells])
    table, seed, clean = (of_row(lambda c, name=name: getattr(c, name)) for name in ("task", "seed", "clean"))
    features, flags = (np.concatenate([getattr(cell, name) for cell in cells]) for name in ("features", "flags"))
    claimed = np.concatenate([claims.expected_best(p) for p in travel.by_cell(judged["probabilities"], cells)])
    simple = np.concatenate([_ranks(cell) for cell in cells])
    rows = pretrain.rows_of(judged["probabilities"], claimed, flags, simple, table, seed)
    taught_on = features[grown], flags[grown], table[grown]
    fitted = spread(
        trees.fit(taught_on[0][:, selected], *taught_on[1:], options=options, odds=judged["odds"][grown]), selected
    )
    manifest = {
        "channels": list(FEATURES),
        "kinds": list(KINDS),
        "sizes": {"trees": options.rounds, "rows": int(grown.sum())},
        "cells": [f"{c.task}, rule {c.rule}, clean {c.clean}, seed {c.seed}" for c in cells],
        "config": asdict(config),
        "rows": store.digest(dict(zip(("features", "flags", "table"), taught_on, strict=True))),
        "network": MLP2.name,
        "evaluation": pretrain.evaluation(
            rows, judged["probabilities"], claimed, flags, clean, tuple(TRIVIAL.values())
        ),
    }
    taught.save(path, fitted, manifest)
    return rows, manifest, {"rows": manifest["rows"], "arrays": taught.digest(fitted)}


def spread(fitted: trees.Trees, selected: Bool[np.ndarray, "f"]) -> trees.Trees:
    """Trees grown on the ``selected`` features as trees that read all; thresholds are chosen in every table."""
    feature = np.flatnonzero(selected).astype(np.int32)[fitted.forest.feature]
    thresholds = np.full(len(fitted.thresholds), np.nan, np.float32)
    return fitted._replace(forest=fitted.forest._replace(feature=feature), thresholds=thresholds)


def _ranks(cell: Small) -> np.ndarray:
    """The scores of `TRIVIAL` as ranks in the cell, larger is more suspicious."""
    chosen = [FROM_FEATURES[rule] for rule in TRIVIAL]
    scores = [sign * cell.features[:, FEATURES.index(name)] for name, sign in chosen]
    return (rankdata(np.stack(scores, 1), axis=0) - 0.5) / len(cell.y)


STUDY = Study(
    "demix_tables_pretrain",
    claim="Trees taught on features relative to many tables find planted errors on tables that were left out.",
    config=Config(),
    tasks=TASKS,
    # The tables are calibrated by each other, so they are one unit.
    work=work,
    minutes=30,
    headline=(pretrain.ALL, "diagnoser", "label error precision"),
    smoke=smoke,
)
