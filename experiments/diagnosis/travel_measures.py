"""Measures of diagnosers and of rivals on the cells of many tables, and their means over tables and draws."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from d3mjax.types import AnyArray
from experiments.diagnosis import travel_rivals as rivals
from experiments.diagnosis.travel_cells import Small

TYPES = ("label", "feature", "minority")
SCORES = "best single scores, thresholds of other tables"
UNTRAINED = "cleanlab, isolation forest, rare class"
EVERYTHING = "flag everything"
RULE = "S: knowing the rule"
Measures = dict[str, dict[str, np.ndarray]]
"""``method -> metric -> [cells]``; NaN where a cell has none."""


def of_claims(cell: Small, claimed: Bool[AnyArray, "n e"]) -> dict[str, float]:
    """F1 of each type and their mean over the types that occur, and the precision and recall of label errors."""
    claimed, flags = np.asarray(claimed), cell.flags
    hits, made, cases = (claimed & flags).sum(0), claimed.sum(0), flags.sum(0)
    f1 = np.where(cases > 0, 2 * hits / np.maximum(made + cases, 1), np.nan)
    first = {"label_precision": hits[0] / made[0] if made[0] else np.nan}
    first["label_recall"] = hits[0] / cases[0] if cases[0] else np.nan
    return {"macro_f1": float(np.nanmean(f1)), **_named("f1", f1), **first}


def of_values(cell: Small, values: Float[AnyArray, "n e"]) -> dict[str, float]:
    """Average precision of each type that occurs."""
    return _named("auprc", [average_precision(v, f) for v, f in zip(np.asarray(values).T, cell.flags.T, strict=True)])


def of_probabilities(cell: Small, p: Float[AnyArray, "n e"], claimed: Bool[AnyArray, "n e"]) -> dict[str, float]:
    """`of_claims`, `of_values`, and the sums that tell claimed precision from true: expected hits, hits and claims."""
    claimed = np.asarray(claimed)
    sums = {
        "expected": (np.asarray(p) * claimed).sum(0),
        "hits": (claimed & cell.flags).sum(0),
        "claims": claimed.sum(0),
    }
    counted = {key: value for name, each in sums.items() for key, value in _named(name, each).items()}
    return of_claims(cell, claimed) | of_values(cell, p) | counted


def average_precision(values: Float[AnyArray, "n"], truth: Bool[AnyArray, "n"]) -> float:
    """As `claims.average_precision`, without a compilation for every number of rows."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, values)) if np.any(truth) else float("nan")


def of_rivals(cells: Sequence[Small], fold: Mapping[str, int]) -> Measures:
    """Every rival on every cell."""
    scored = [rivals.scores(cell) for cell in cells]
    each: dict[str, list[dict[str, float]]] = {}
    for cell, scores in zip(cells, scored, strict=True):
        for name, score in scores.items():
            k = "LFS".index(name[0])
            each.setdefault(name, []).append({f"{TYPES[k]}_auprc": average_precision(score, cell.flags[:, k])})
        for source in rivals.SUGGESTED:
            claimed = np.zeros(cell.flags.shape, bool)
            claimed[:, 0] = rivals.suspects(cell, source)
            of_label = {name: v for name, v in of_claims(cell, claimed).items() if name.startswith("label")}
            each.setdefault(f"L: cleanlab, its suspects, of {source}", []).append(of_label)
        each.setdefault(UNTRAINED, []).append(of_claims(cell, rivals.without_flags(cell)))
        each.setdefault(EVERYTHING, []).append(of_claims(cell, np.ones(cell.flags.shape, bool)))
        minority = {"minority_auprc": average_precision(cell.told, cell.flags[:, 2])}
        claimed = np.zeros(cell.flags.shape, bool)
        claimed[:, 2] = cell.told
        each.setdefault(RULE, []).append(minority | {"minority_f1": of_claims(cell, claimed)["minority_f1"]})
    each[SCORES] = [of_claims(cell, claimed) for cell, claimed in zip(cells, _joined(cells, scored, fold), strict=True)]
    return {name: stacked(measures) for name, measures in each.items()}


def stacked(measures: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """``metric -> [cells]``."""
    return {name: np.array([of[name] for of in measures], np.float64) for name in measures[0]}


def averaged(
    measures: Mapping[str, np.ndarray], cells: Sequence[Small], chosen: Bool[np.ndarray, "k"]
) -> dict[str, list[float]]:
    """Means over the chosen cells of each draw, in the order of the seeds; metrics that a draw lacks are left out."""
    seeds = np.array([cell.seed for cell in cells])
    means = {}
    for name, values in measures.items():
        of_draws = [values[chosen & (seeds == seed) & np.isfinite(values)] for seed in np.unique(seeds)]
        if all(len(of) for of in of_draws):
            means[name] = [float(of.mean()) for of in of_draws]
    return means


def by_table(values: Float[np.ndarray, "k"], cells: Sequence[Small]) -> dict[str, float]:
    """Mean over the cells of each table."""
    tasks = np.array([cell.task for cell in cells])
    return {str(name): float(np.nanmean(values[tasks == name])) for name in np.unique(tasks)}


def precision_gaps(measures: Mapping[str, np.ndarray], cells: Sequence[Small]) -> dict[str, np.ndarray]:
    """Claimed precision less true precision of each table and type, over all its cells; NaN without claims."""
    tasks = np.array([cell.task for cell in cells])
    gaps = {}
    for kind in TYPES:
        sums = [
            [measures[f"{kind}_{name}"][tasks == task].sum() for name in ("expected", "hits", "claims")]
            for task in np.unique(tasks)
        ]
        expected, hits, made = np.array(sums).T
        gaps[kind] = np.where(made > 0, (expected - hits) / np.maximum(made, 1), np.nan)
    return gaps


def shares(measures: Measures, ours: str, cells: Sequence[Small]) -> dict[str, list[float]]:
    """Shares of the tables on which ``ours`` is better than the best of its rivals, or near the truth."""
    mean = {name: of for name, of in measures.items() if name[1:3] != ": "}
    macro = {name: by_table(of["macro_f1"], cells) for name, of in mean.items() if name in (ours, SCORES, UNTRAINED)}
    label = {name: by_table(measures[name]["label_auprc"], cells) for name in (ours, *rivals.LABEL)}

    def above(figures, others):
        best = {table: max(figures[name][table] for name in others) for table in figures[ours]}
        return [float(np.mean([figures[ours][table] > best[table] for table in best]))]

    gaps = precision_gaps(measures[ours], cells)
    within = {f"{kind}_precision_within_5_points": [float(np.mean(abs(gaps[kind]) <= 0.05))] for kind in TYPES}
    return {
        "macro_f1_above_rivals": above(macro, (SCORES, UNTRAINED)),
        "label_auprc_above_cleanlab": above(label, rivals.CLEANLAB),
        "label_auprc_above_all_scores": above(label, rivals.LABEL),
        **within,
    }


def _joined(cells, scored, fold) -> list[Bool[np.ndarray, "n e"]]:
    """Claims by the score of each type that does best on the tables of other folds, with the threshold of its ranks."""
    ranks = [{name: _rank(score) for name, score in scores.items()} for scores in scored]
    of_fold = np.array([fold[cell.task] for cell in cells])
    cuts = np.arange(0.5, 1, 0.02)
    claimed = [np.zeros(cell.flags.shape, bool) for cell in cells]
    for k, letter in enumerate("LFS"):
        names = [name for name in scored[0] if name[0] == letter]
        pairs = list(zip(ranks, (cell.flags[:, k] for cell in cells), strict=True))
        f1 = np.array([[[_f1(r[name] >= cut, flag) for cut in cuts] for name in names] for r, flag in pairs])
        for fold_number in np.unique(of_fold):
            mean = np.nanmean(f1[of_fold != fold_number], axis=0)
            score, cut = np.unravel_index(np.argmax(mean), mean.shape)
            for i in np.flatnonzero(of_fold == fold_number):
                claimed[i][:, k] = ranks[i][names[score]] >= cuts[cut]
    return claimed


def _f1(claimed, truth) -> float:
    return float(2 * (claimed & truth).sum() / max(claimed.sum() + truth.sum(), 1)) if truth.any() else float("nan")


def _rank(score) -> Float[np.ndarray, "n"]:
    from scipy.stats import rankdata

    return (rankdata(score) - 0.5) / len(score)


def _named(metric: str, values: Any) -> dict[str, float]:
    return {f"{kind}_{metric}": float(value) for kind, value in zip(TYPES, values, strict=True)}
