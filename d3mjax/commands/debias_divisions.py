"""Divisions of the targets into parts that score, select and report, and the strata that they go by."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from d3mjax.commands.debias_data import UserData
from d3mjax.data import label_scale, splits
from d3mjax.types import AnyArray, Data

PARTS = (0, 1, 2, 0)  # scoring, selection, report, scoring: dealt out to the targets of each group over and over
PARTS_BESIDE_TEST = (0, 1, 0)


def divide(data: UserData, seed: int) -> Data:
    """The targets divided for one seed: every group, and as far as possible every stratum in it, is in every part."""
    pattern = PARTS if data.test is None else PARTS_BESIDE_TEST
    part = deal(data.target.group, strata(data, data.target.y), seed, pattern)
    pieces = [splits.take(data.target, np.flatnonzero(part == i)) for i in range(max(pattern) + 1)]
    return Data(data.train, pieces[0], pieces[1], data.test or pieces[2])


def strata(data: UserData, y: AnyArray) -> Int[np.ndarray, " n"]:
    """What division and balance go by: the class, or the interval of a number (`label_scale.intervals` of training)."""
    if data.scale is None:
        return np.asarray(y)
    return np.searchsorted(label_scale.intervals(data.train.y), y, side="right").astype(np.int32)


def strata_names(data: UserData) -> tuple[str, ...]:
    """Names of the classes, or of the intervals of numbers in their unit."""
    if data.scale is None:
        return data.class_names
    edges = [f"{edge:.3g}" for edge in label_scale.restore(data.scale, label_scale.intervals(data.train.y))]
    between = (f"{low} to {high}" for low, high in itertools.pairwise(edges))
    return (f"below {edges[0]}", *between, f"{edges[-1]} and more")


def deal(group: AnyArray, stratum: AnyArray, seed: int, pattern: Sequence[int]) -> Int[np.ndarray, " t"]:
    """The part of each example, Int[t], given its group and its stratum, both Int[t].

    Parts follow ``pattern`` over and over along each group, stratum by stratum, in random order within one.
    """
    order = np.lexsort((np.random.default_rng(seed).random(len(stratum)), stratum, group))
    rank = np.arange(len(stratum)) - np.searchsorted(group[order], group[order])
    part = np.zeros(len(stratum), int)
    part[order] = np.asarray(pattern)[rank % len(pattern)]
    return part
