"""Which rows of the benchmarks steer an edit, choose its step, and are measured."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from d3mjax.data.sets.stereotypes import Sentences

Rows = Int[np.ndarray, " r"]
FOLDS = 3


class Parts(NamedTuple):
    """Rows that steer, that choose, and rows of StereoSet that are measured."""

    reference: Rows
    selection: Rows
    report: Rows


def halves_of_crows(stereoset: Sentences, crows: Sentences, rng: np.random.Generator) -> tuple[Parts, ...]:
    """Halves of CrowS-Pairs; all of StereoSet is measured."""
    order = rng.permutation(len(crows.id))
    return (Parts._make([*np.array_split(order, 2), np.arange(len(stereoset.id))]),)


def unseen_terms(stereoset: Sentences, crows: Sentences, rng: np.random.Generator) -> tuple[Parts, ...]:
    """`FOLDS` of the terms of every kind: each is measured once, two fifths of the others choose, the rest steers."""
    kind, term = np.array(stereoset.kind), np.array(stereoset.term)
    fold, chooses = np.zeros(len(kind), int), np.zeros((FOLDS, len(kind)), bool)
    for name in np.unique(kind):
        terms = rng.permutation(np.unique(term[kind == name]))
        of_kind = [np.isin(term, part) & (kind == name) for part in np.array_split(terms, FOLDS)]
        for i, rows in enumerate(of_kind):
            fold[rows] = i
            others = rng.permutation(np.unique(term[(kind == name) & ~rows]))
            chooses[i] |= (kind == name) & np.isin(term, others[: max(1, 2 * len(others) // 5)])
    rows = lambda at: rng.permutation(np.flatnonzero(at))
    return tuple(
        Parts(rows((fold != i) & ~chooses[i]), rows((fold != i) & chooses[i]), rows(fold == i)) for i in range(FOLDS)
    )


def unseen_kind(stereoset: Sentences, crows: Sentences, rng: np.random.Generator) -> tuple[Parts, ...]:
    """Halves of the terms of all kinds but gender; gender is measured."""
    kind, term = np.array(stereoset.kind), np.array(stereoset.term)
    terms = rng.permutation(np.unique(term[kind != "gender"]))
    halves = (np.flatnonzero(np.isin(term, half) & (kind != "gender")) for half in np.array_split(terms, 2))
    return (Parts._make([*map(rng.permutation, halves), np.flatnonzero(kind == "gender")]),)


class Task(NamedTuple):
    """Where pairs come from, and what is measured."""

    name: str
    about: str
    benchmark: str  # of reference and selection
    draw: Callable[[Sentences, Sentences, np.random.Generator], tuple[Parts, ...]]  # no row is measured twice


_TASKS = (
    Task(
        "crows",
        "Reference and selection are halves of CrowS-Pairs, all kinds of bias; their unrelated sides have a word of "
        "another sentence in place of one of theirs. All of StereoSet is measured.",
        "crows",
        halves_of_crows,
    ),
    Task(
        "terms",
        "Three edits, each measured on a third of the terms of StereoSet; reference and selection are the other terms, "
        "three to two. SS and LMS are of all terms, each by the edit that has not seen it.",
        "stereoset",
        unseen_terms,
    ),
    Task(
        "kinds",
        "Reference and selection are halves of the terms of StereoSet of profession, race and religion; gender is "
        "measured, a kind that nothing was learnt from.",
        "stereoset",
        unseen_kind,
    ),
)
TASKS = {task.name: task for task in _TASKS}
