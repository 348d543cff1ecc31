"""Fashion-MNIST with a planted cue that agrees with the label for most of the training set.

The default is the task *patch*: pullover against coat at 14 x 14, a white 2 x 2 patch top left or top right that
agrees with the label for 95 % of the 4,000 training images. Groups are ``num_attributes * y + attribute``:
0 = pullover left, 1 = pullover right, 2 = coat left, 3 = coat right.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from d3mjax.data.planted import cues
from d3mjax.data.planted.cues import Counts, split_counts
from d3mjax.data.sets import fashion, idx
from d3mjax.types import Data, Split

GROUP_NAMES = ("pullover, patch left", "pullover, patch right", "coat, patch left", "coat, patch right")
"""Groups of the default task."""

TEN = tuple((label,) for label in range(10))
"""Each official label a class of its own."""

PATCH = cues.CornerPatch()


@dataclasses.dataclass(frozen=True)
class Task:
    """What to draw. A split is given by its size, or by the exact number of images of each group.

    A size alone means, for train: ``class_shares`` (equal if None) and ``aligned``; for targets: the mix of train;
    for selection: the mix of targets; for test: the same number of each group. Test comes from the official test
    images, all else from the official train images; no image is in two splits.
    """

    classes: tuple[tuple[int, ...], ...] = ((2,), (4,))  # official labels that make up class 0, 1, ...
    cue: cues.Cue = PATCH
    aligned: float = 0.95
    class_shares: tuple[float, ...] | None = None
    train: Counts = 4000
    targets: Counts = 800
    selection: Counts = 1000
    test: Counts = 2000
    size: int = 14
    seed: int = 0


def group_counts(task: Task) -> dict[str, tuple[int, ...]]:
    """Exact images of each group in each split. Raises ``ValueError`` where the task contradicts itself."""
    members = [label for part in task.classes for label in part]
    if len(task.classes) < 2 or not all(task.classes) or len(set(members)) != len(members):
        raise ValueError(f"classes: found {task.classes}, expected two or more disjoint, non-empty sets of labels")
    if not set(members) <= set(range(10)):
        raise ValueError(f"classes: found {task.classes}, expected official labels 0..9")
    num_groups = len(task.classes) * task.cue.num_attributes
    mix = cues.group_shares(len(task.classes), task.cue.num_attributes, task.aligned, task.class_shares)
    train = split_counts("train", task.train, mix)
    targets = split_counts("targets", task.targets, train)
    selection = split_counts("selection", task.selection, targets)
    test = split_counts("test", task.test, (1.0,) * num_groups)
    return {"train": train, "target": targets, "selection": selection, "test": test}


def cued_splits(task: Task, pool: idx.Pool, *, flat: bool = True) -> Data:
    """The four splits of a task, the cue painted on: x float32 in 0..1, [n, h*w*c] if ``flat`` else [n, h, w, c].

    Test is drawn from the images of the official test files; from what the others leave where there are none. Raises
    ``ValueError`` when a class has too few images.
    """
    counts, num_attributes = group_counts(task), task.cue.num_attributes
    official_test = pool.id >= idx.NUM_TRAIN
    sides = {False: ("train", "target", "selection"), True: ("test",)}
    sides = sides if official_test.any() else {False: tuple(counts)}
    splits = {}
    for side, names in sides.items():
        part = idx.rows(pool, official_test == side)
        drawn = cues.draw(task.seed, part.labels, task.classes, num_attributes, [counts[name] for name in names])
        for name, (row, y, attribute) in zip(names, drawn, strict=True):
            x = task.cue(part.images[row], attribute).astype(np.float32) / 255
            x = x.reshape(len(x), -1) if flat else x
            group = num_attributes * y + attribute
            splits[name] = Split(x, y.astype(np.int32), group.astype(np.int32), part.id[row])
    return Data(**splits)


def load_fashion_spurious(task: Task | None = None, *, source_dir: str | Path | None = None, flat: bool = True) -> Data:
    """The four splits of a task by `cued_splits`; the default is *patch*.

    Ids are image numbers in the official files: train 0..59999, test 60000..69999. ``source_dir``: a directory with
    the official idx files. Raises ``ValueError`` for a task that contradicts itself, and for a source that is missing
    or not the official one.
    """
    task = Task() if task is None else task
    group_counts(task)  # a bad task fails before anything is read
    members = {label for part in task.classes for label in part}
    return cued_splits(task, fashion.read(members, task.size, source_dir=source_dir), flat=flat)


def load_fashion(
    seed: int = 0,
    *,
    size: int = 14,
    train: Counts = 5000,
    targets: Counts = 1000,
    selection: Counts = 1000,
    test: Counts = 10_000,
    source_dir: str | Path | None = None,
    flat: bool = True,
) -> Data:
    """Plain ten-class Fashion-MNIST, nothing planted: group = y, classes balanced."""
    parts: dict[str, Any] = {"train": train, "targets": targets, "selection": selection, "test": test}
    task = Task(classes=TEN, cue=cues.NoCue(), size=size, seed=seed, **parts)
    return load_fashion_spurious(task, source_dir=source_dir, flat=flat)
