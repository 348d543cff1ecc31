"""What people use on the same cells: scores and claims without flags, from stored probabilities and features.

Names begin with the type that they are for: label errors (L), feature errors (F), the spurious minority (S). Cleanlab
is the package itself, with its own defaults.
"""

import warnings

import numpy as np
from jaxtyping import Bool, Float

from experiments.diagnosis.travel_cells import FEATURES, Small

CLEANLAB = {
    f"L: cleanlab, {name}, of {source}": (source, method)
    for source in ("networks", "trees")
    for name, method in (
        ("self-confidence", "self_confidence"),
        ("normalized margin", "normalized_margin"),
        ("confidence-weighted entropy", "confidence_weighted_entropy"),
    )
}
"""Source of the probabilities, and cleanlab's name of the score."""
FROM_FEATURES = {
    "L: loss": ("loss", 1),
    "L: AUM": ("path", -1),
    "L: votes of the nearest": ("votes of the nearest", -1),
    "F: isolation forest": ("isolation", 1),
    "F: largest robust z": ("far", 1),
    "F: surprise": ("surprise", 1),
    "S: SC = y": ("share of the own class", -1),
    "S: left-out loss": ("left out", 1),
}
"""Feature and sign: 1 where larger is more suspicious."""
LABEL = (*CLEANLAB, *(name for name in FROM_FEATURES if name.startswith("L")))
SUGGESTED = ("networks", "trees")
"""Sources of the probabilities of cleanlab's own suspects."""


def scores(cell: Small) -> dict[str, Float[np.ndarray, "n"]]:
    """Every rival's score of every row, larger is more suspicious."""
    from cleanlab.rank import get_label_quality_scores

    probabilities = {source: _of_present(cell, source) for source in SUGGESTED}
    values = {}
    for name, (source, method) in CLEANLAB.items():
        y, p = probabilities[source]
        values[name] = -get_label_quality_scores(y, p, method=method)
    at = {name: i for i, name in enumerate(FEATURES)}
    return values | {name: sign * cell.features[:, at[of]] for name, (of, sign) in FROM_FEATURES.items()}


def suspects(cell: Small, source: str) -> Bool[np.ndarray, "n"]:
    """The label errors that cleanlab itself suggests."""
    from cleanlab.filter import find_label_issues

    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of classes with few rows
        return np.asarray(find_label_issues(*_of_present(cell, source), n_jobs=1))


def without_flags(cell: Small) -> Bool[np.ndarray, "n e"]:
    """Claims that need no flags: cleanlab's suspects by trees, isolation beyond 0.5, rows of the rarest class."""
    counts = np.bincount(cell.y)
    rarest = np.flatnonzero(counts == counts[counts > 0].min())[-1]
    odd = cell.features[:, FEATURES.index("isolation")] > 0.5  # the threshold of its authors
    return np.stack([suspects(cell, "trees"), odd, cell.y == rarest], 1)


def _of_present(cell: Small, source: str):
    """Labels and probabilities of the classes that occur, which cleanlab expects."""
    present, y = np.unique(cell.y, return_inverse=True)
    p = (cell.left_out if source == "networks" else cell.forest)[:, present].astype(np.float64) + 1e-9
    return y, p / p.sum(1, keepdims=True)
