"""Features of a row relative to its own table: what other rows say about its label, its columns and its values.

They need no network, and mean the same for any table:

* *label*: class probabilities by trees that were grown without the row, and their mean with those of networks;
* *shortcuts*: how each column alone predicts the recorded label, the most informative columns first;
* *values*: isolation by random cuts, copies of the row, numbers that repeat, cells as in the row above, misspelt
  levels, and how much more usual a row is if an error is undone (`undone`);
* *table*: its size, and how well labels can be predicted, the same for all rows.

Scores of the row are given with their normal scores in the table.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import ndtri
from scipy.stats import rankdata

from d3mjax.data import tables
from d3mjax.diagnosis import undone
from d3mjax.types import AnyArray, Table

FOREST = 200  # trees
BINS = 4  # of a number, to predict labels with
_SOURCES = ("trees", "networks", "both")
_LABEL = tuple(f"{source}: {name}" for source in _SOURCES for name in ("margin", "log-odds"))
_SHORTCUT = tuple(f"lift by {name}" for name in ("the best column", "the second", "the third", "all", "the worst"))
_VALUES = (
    *("isolation", "distance", "copies", "repeated numbers", "repeated in its column", "cells as above", "misspelt"),
    *undone.NAMES,
)
ROWS = (*_LABEL, "votes of the nearest", *_SHORTCUT, *_VALUES)
"""Scores of each row."""
TABLE = (
    *("accuracy of trees", "accuracy of networks", "confidence in the label", "share of the largest class"),
    *("rows", "features", "classes", "information of the best column", "of the second", "of the third", "copied rows"),
    *(f"rows that gain by an {name}" for name in undone.NAMES),
)
"""Facts about the table."""
NAMES = (*ROWS, *(f"{name} in the table" for name in ROWS), *(f"table: {name}" for name in TABLE))


class Scores(NamedTuple):
    """The part of the features that networks do not change, so that several networks of a table share it."""

    forest: Float[np.ndarray, "n C"]  # class probabilities by trees without the row
    rows: Float[np.ndarray, "n k"]  # the last of `ROWS`, those after `_LABEL`
    facts: Float[np.ndarray, "j"]  # the last of `TABLE`


def scores(table: Table, y: Int[AnyArray, "n"], num_classes: int) -> Scores:
    """Trees and scores of a table; raises ImportError without scikit-learn."""
    try:
        forest = out_of_bag(table, y, num_classes).astype(np.float32)
    except ImportError as error:
        raise ImportError("features relative to a table need scikit-learn: pip install 'd3mjax[commands]'") from error
    y, x = np.asarray(y), tables.encode(tables.fit_encoder(table), table)
    lifts, information = shortcuts(table, y, num_classes)
    copies = copies_of(table)
    votes, distance = nearest(x, y)
    gains = undone.gains(table)
    values = [isolation(x), distance, copies, *repeated(table).T, above(table), misspelt(table), *gains.T]
    sizes = [np.log(len(y)), np.log(x.shape[1]), np.log(num_classes)]
    facts = [np.bincount(y).max() / len(y), *sizes, *information, np.mean(copies > 1)]
    facts += list((gains > undone.USUAL).mean(0))
    return Scores(forest, np.stack([votes, *lifts.T, *values], 1), np.array(facts))


def features(of_table: Scores, y: Int[AnyArray, "n"], left_out: Float[AnyArray, "n C"]) -> Float[np.ndarray, "n f"]:
    """`NAMES` of every row. ``left_out``: class probabilities by networks without the row.

    Margins are ``p_y - max_{k != y} p_k``, log-odds those of the same two, each with 0.01 added.
    """
    y = np.asarray(y)
    n, rows = len(y), np.arange(len(y))
    sources = {"trees": of_table.forest, "networks": np.asarray(left_out)}
    sources["both"] = (sources["trees"] + sources["networks"]) / 2
    label, accuracy = [], {}
    for name, p in sources.items():
        others = p.copy()
        others[rows, y] = -1
        own, other = p[rows, y], others.max(1)
        label += [own - other, np.log((own + 0.01) / (other + 0.01))]
        accuracy[name] = np.mean(own > other)
    of_rows = np.concatenate([np.stack(label, 1), of_table.rows], 1)
    facts = [accuracy["trees"], accuracy["networks"], sources["both"][rows, y].mean(), *of_table.facts]
    normal = ndtri((rankdata(of_rows, axis=0) - 0.5) / n)
    return np.concatenate([of_rows, normal, np.tile(facts, (n, 1))], 1).astype(np.float32)


def out_of_bag(
    table: Table, y: Int[AnyArray, "n"], num_classes: int, *, seed: int = 0, trees: int = FOREST
) -> Float[np.ndarray, "n C"]:
    """Class probabilities by those extremely randomised trees that were grown on a bootstrap sample without the row.

    Rows in all samples, of which there are hardly any, have the shares of the classes. Sources: Geurts et al., 2006,
    "Extremely randomized trees"; Breiman, 1996, "Out-of-bag estimation".
    """
    from sklearn.ensemble import ExtraTreesClassifier

    x, y = tables.encode(tables.fit_encoder(table), table), np.asarray(y)
    options: dict[str, Any] = {"min_samples_leaf": 2, "bootstrap": True, "oob_score": True, "n_jobs": 1}
    grown = ExtraTreesClassifier(n_estimators=trees, random_state=seed, **options).fit(x, y)
    p = np.zeros((len(y), num_classes))
    p[:, grown.classes_] = grown.oob_decision_function_
    shares = np.bincount(y, minlength=num_classes) / len(y)
    return np.where(np.isfinite(p).all(1, keepdims=True) & (p.sum(1, keepdims=True) > 0), p, shares[None])


def shortcuts(
    table: Table, y: Int[AnyArray, "n"], num_classes: int
) -> tuple[Float[np.ndarray, "n 5"], Float[np.ndarray, "3"]]:
    """Log-lift ``log P(y_i | x_ij) - log P(y_i)`` of each row by its three most informative columns, the sum and least.

    Each column is cut at its quartiles, or by levels; shares are of the other rows, with two pseudo-rows. Second: the
    mean lift of the three columns, which is the information that they have about the label, 0 where there are fewer.
    """
    y = np.asarray(y)
    n, rows = len(y), np.arange(len(y))
    prior = (np.bincount(y, minlength=num_classes) + 0.5) / (n + 0.5 * num_classes)
    lifts = []
    for name, a in table.columns.items():
        part = a + 1 if name in table.levels else _quantile_bins(a, BINS)
        counts = np.zeros((part.max() + 1, num_classes))
        np.add.at(counts, (part, y), 1)
        own, size = counts[part, y] - 1, counts.sum(1)[part] - 1
        lifts.append(np.log((own + 2 * prior[y]) / (size + 2) / prior[y]))
    by_column = np.stack(lifts, 1)
    information = by_column.mean(0)
    best = np.argsort(-information, kind="stable")[:3]
    top = np.zeros((n, 3))
    top[:, : len(best)] = by_column[rows[:, None], best[None]]
    known = np.zeros(3)
    known[: len(best)] = information[best]
    return np.concatenate([top, by_column.sum(1)[:, None], by_column.min(1)[:, None]], 1), known


def nearest(
    x: Float[AnyArray, "n d"], y: Int[AnyArray, "n"], *, neighbours: int = 10
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Share of the recorded label among the nearest other rows (Euclidean), and the mean distance to them."""
    from sklearn.neighbors import NearestNeighbors

    x, y = np.asarray(x), np.asarray(y)
    fitted = NearestNeighbors(n_neighbors=min(neighbours, len(y) - 1), n_jobs=1).fit(x)
    distances, near = fitted.kneighbors()
    return (y[near] == y[:, None]).mean(1), distances.mean(1)


def isolation(x: Float[AnyArray, "n d"], *, trees: int = 100) -> Float[np.ndarray, "n"]:
    """Isolation by random cuts, in (0, 1): larger is odder (Liu et al., 2008, "Isolation forest")."""
    from sklearn.ensemble import IsolationForest

    return -IsolationForest(n_estimators=trees, random_state=0, n_jobs=1).fit(x).score_samples(x)


def copies_of(table: Table) -> Int[np.ndarray, "n"]:
    """Number of rows with the same entries in all columns, the row among them."""
    entries = np.stack([np.nan_to_num(a.astype(np.float64), nan=-np.pi) for a in table.columns.values()], 1)
    _, which, counts = np.unique(entries, axis=0, return_inverse=True, return_counts=True)
    return counts[which.reshape(-1)]


def repeated(table: Table) -> Float[np.ndarray, "n 2"]:
    """How often the number of a row repeats, the largest over columns: two scores.

    The share of rows that have it, over columns in which most rows have a number of their own; and the logarithm of
    their number over the median of the column. Numbers that stand for something else, such as 999, and stuck sensors
    repeat; measurements do not.
    """
    share, excess = np.zeros(len(table.id)), np.zeros(len(table.id))
    for name, a in table.columns.items():
        if name in table.levels:
            continue
        _, which, counts = np.unique(a, return_inverse=True, return_counts=True)
        of_row = np.where(np.isfinite(a), counts[which], 0)
        excess = np.maximum(excess, np.log(np.maximum(of_row, 1) / np.median(counts[which])))
        if len(counts) > len(a) / 2:
            share = np.maximum(share, of_row / len(a))
    return np.stack([share, excess], 1)


def above(table: Table) -> Float[np.ndarray, "n"]:
    """Surprise at cells that are as in the row above, by id: the sum of ``-log`` of how often that is so by chance.

    Of a column that is ``sum_v (c_v / n)^2`` over its values. Missing entries are never as above.
    """
    order = np.argsort(table.id)
    surprise = np.zeros(len(order))
    for a in table.columns.values():
        values = a[order].astype(np.float64)
        _, counts = np.unique(values[np.isfinite(values)], return_counts=True)
        chance = (counts**2).sum() / len(a) ** 2
        same = np.r_[False, values[1:] == values[:-1]]
        surprise[order] += np.where(same, -np.log(max(chance, 1e-12)), 0)
    return surprise


def misspelt(table: Table) -> Float[np.ndarray, "n"]:
    """How much more frequent the level is that a row's level is a misspelling of, as a log-ratio; largest over columns.

    Misspellings have two neighbouring letters exchanged, or one letter doubled.
    """
    largest = np.zeros(len(table.id))
    for name, levels in table.levels.items():
        codes = table.columns[name]
        counts = np.bincount(codes[codes >= 0], minlength=len(levels))
        at = {level: i for i, level in enumerate(levels)}
        ratio = np.zeros(len(levels) + 1)  # the last is of -1, no level
        for i, level in enumerate(levels):
            similar = [at[text] for text in _misspellings(level) if text in at]
            for j in similar:  # each is a misspelling of the other
                ratio[j] = max(ratio[j], np.log((counts[i] + 1) / (counts[j] + 1)))
                ratio[i] = max(ratio[i], np.log((counts[j] + 1) / (counts[i] + 1)))
        largest = np.maximum(largest, ratio[codes])
    return largest


def _misspellings(level: str) -> set[str]:
    swapped = {level[:i] + level[i + 1] + level[i] + level[i + 2 :] for i in range(len(level) - 1)}
    doubled = {level[: i + 1] + level[i:] for i in range(len(level))}
    return (swapped | doubled) - {level}


def _quantile_bins(a, bins: int) -> Int[np.ndarray, "n"]:
    """Bins between quantiles; missing numbers are in the last one."""
    present = a[np.isfinite(a)]
    edges = np.unique(np.quantile(present, np.arange(1, bins) / bins)) if len(present) else np.zeros(0)
    return np.where(np.isfinite(a), np.searchsorted(edges, a, side="left"), len(edges) + 1)
