"""The diagnoser that ships with d3mjax for classes: trees taught on the cells of all tables, and their figures.

Figures are of tables left out, by `travel.judge`: forests, calibration and thresholds have not seen them.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy.stats import rankdata

from d3mjax.data.planted.mixed_errors import KINDS
from d3mjax.diagnosis import claims, taught, trees
from d3mjax.diagnosis.cells import MLP2
from d3mjax.runtime import store
from experiments.diagnosis import pretrain
from experiments.diagnosis.travel_cells import FEATURES, Small
from experiments.diagnosis.travel_rivals import FROM_FEATURES

TRIVIAL = {
    "L: loss": "the largest losses",
    "F: largest robust z": "the largest z-scores",
    "S: SC = y": "the rarest class",
}
"""The rule for each of `KINDS`, by its name among `FROM_FEATURES`."""


def write(
    path: Path,
    cells: Sequence[Small],
    selected: Bool[np.ndarray, "f"],
    judged: dict[str, np.ndarray],
    grown: Bool[np.ndarray, "n"],
    options: trees.Options,
    config: Any,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Grow trees on the rows ``grown`` of all tables, and write them with the figures of ``judged`` as `taught.save`.

    ``judged``: log-odds and probabilities out of fold. Trees read the ``selected`` features; thresholds are chosen in
    every table. Returns rows of these figures, means over tables, and digests of the rows and arrays.
    """
    of_row = lambda get: np.concatenate([np.full(len(cell.y), get(cell)) for cell in cells])
    table, seed, clean = (of_row(lambda c, name=name: getattr(c, name)) for name in ("task", "seed", "clean"))
    features, flags = (np.concatenate([getattr(cell, name) for cell in cells]) for name in ("features", "flags"))
    lengths = np.cumsum([len(cell.y) for cell in cells])[:-1]
    claimed = np.concatenate([claims.expected_best(p) for p in np.split(judged["probabilities"], lengths)])
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
    means = [row for row in rows if row["task"] == pretrain.ALL]
    return means, {"rows": manifest["rows"], "arrays": taught.digest(fitted)}


def spread(fitted: trees.Trees, selected: Bool[np.ndarray, "f"]) -> trees.Trees:
    """Trees grown on the ``selected`` features as trees that read all; thresholds are chosen in every table."""
    feature = np.flatnonzero(selected).astype(np.int32)[fitted.forest.feature]
    thresholds = np.full(len(fitted.thresholds), np.nan, np.float32)
    return fitted._replace(forest=fitted.forest._replace(feature=feature), thresholds=thresholds)


def _ranks(cell: Small) -> np.ndarray:
    """The scores of `TRIVIAL` as ranks in the cell, larger is more suspicious."""
    scores = [sign * cell.features[:, FEATURES.index(name)] for name, sign in map(FROM_FEATURES.get, TRIVIAL)]
    return (rankdata(np.stack(scores, 1), axis=0) - 0.5) / len(cell.y)
