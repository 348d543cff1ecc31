"""Disjoint splits in memory, and the checks that every entry point runs on them.

All functions are host code on numpy arrays and mutate nothing. Each check raises ``ValueError`` with the name of the
argument, what was found and what is expected.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Int, Integer

from d3mjax.types import AnyArray, Data, Pairs, Split, is_regression

_INT32_MAX = np.iinfo(np.int32).max

Examples = TypeVar("Examples", Split, Pairs)
Counts = Mapping[str, Sequence[int]]  # examples of each group, by the name of a published split


def take(split: Examples, index: Integer[AnyArray, " k"]) -> Examples:
    """The examples or pairs at ``index``, in that order; ids are kept."""
    return jax.tree.map(lambda a: np.asarray(a)[np.asarray(index)], split)


def rows_of(ids: Integer[AnyArray, " k"], among: Integer[AnyArray, " n"]) -> Int[np.ndarray, " k"]:
    """Positions in ``among``, unique ids, of ``ids``; raises ``ValueError`` for one that is not there."""
    ids, among = np.asarray(ids), np.asarray(among)
    order = np.argsort(among)
    rows = order[np.minimum(np.searchsorted(among, ids, sorter=order), len(among) - 1)]
    if (absent := among[rows] != ids).any():
        raise ValueError(f"ids: found {ids[absent][0]}, expected ids among the {len(among):,} of the data")
    return rows


def concatenate(*splits: Split) -> Split:
    """All examples of all splits, in order, ids kept."""
    return jax.tree.map(lambda *a: np.concatenate(a), *splits)


def divide(split: Examples, seed: int, sizes: Sequence[int]) -> tuple[Examples, ...]:
    """Disjoint random parts of the given sizes; the same seed and sizes give the same parts.

    The parts are consecutive runs of one permutation, so a later size never changes an earlier part. Raises
    ``ValueError`` when the sizes add up to more than there is, or one is negative.
    """
    num_examples = len(split.y)
    if min(sizes, default=0) < 0 or sum(sizes) > num_examples:
        raise ValueError(f"sizes: found {tuple(sizes)}, expected non-negative, adding up to <= {num_examples}")
    order = np.random.default_rng(seed).permutation(num_examples)
    stops = np.cumsum(sizes)
    return tuple(take(split, order[stop - size : stop]) for size, stop in zip(sizes, stops, strict=True))


def from_published(parts: Mapping[str, Split], seed: int, *, counts: Counts | None) -> Data:
    """Published ``train`` and ``test`` as they are; target and selection are halves of ``val``, drawn by the seed.

    Raises ``ValueError`` where a part's groups are not of the published sizes ``counts[part][group]`` (None: any).
    """
    for name, expected in (counts or {}).items():
        check_counts(parts[name].group, expected, name=f"{name}.group")
    half = len(parts["val"].y) // 2
    target, selection = divide(parts["val"], seed, (half, len(parts["val"].y) - half))
    return Data(parts["train"], target, selection, parts["test"])


def check_counts(group: Integer[AnyArray, " n"], counts: Sequence[int], *, name: str) -> None:
    """Every group has exactly its published number of examples."""
    found = np.bincount(np.asarray(group), minlength=len(counts)).tolist()
    if found != list(counts):
        raise ValueError(f"{name}: found counts {found}, expected the published {list(counts)}; counts=None takes any")


def check_split(split: Split, *, name: str, num_classes: int | None = None) -> None:
    """Equal lengths, finite features, labels in ``0..C-1`` (non-negative where C is not given), unique int32 ids.

    Labels may be finite floats, those of a regression, where C is not given.
    """
    y, group, ids = (np.asarray(a) for a in (split.y, split.group, split.id))
    leaves = {f"x{jax.tree_util.keystr(path)}": np.asarray(a) for path, a in _leaves(split.x)}
    lengths = {key: len(a) for key, a in {**leaves, "y": y, "group": group, "id": ids}.items()}
    if len(set(lengths.values())) != 1 or not leaves or not len(y):
        raise ValueError(f"{name}: found lengths {lengths}, expected one common length of at least 1")
    for key, a in leaves.items():
        if np.issubdtype(a.dtype, np.inexact) and not np.isfinite(a).all():
            row = int(np.argwhere(~np.isfinite(a))[0, 0])
            raise ValueError(f"{name}.{key}: found NaN or infinity, first in row {row}, expected finite features")
    numbers = num_classes is None and is_regression(y)
    if numbers and (y.ndim != 1 or not np.isfinite(y).all()):
        raise ValueError(
            f"{name}.y: found {y.dtype}{list(y.shape)} with {(~np.isfinite(y)).sum()} NaN or infinite "
            "labels, expected finite numbers of shape [n]"
        )
    integers = {"group": group, "id": ids} | ({} if numbers else {"y": y})
    for key, a in integers.items():
        if a.ndim != 1 or not np.issubdtype(a.dtype, np.integer):
            raise ValueError(f"{name}.{key}: found {a.dtype}{list(a.shape)}, expected integers of shape [n]")
    if not numbers and (y.min() < 0 or (num_classes is not None and y.max() >= num_classes)):
        expected = "0 and more" if num_classes is None else f"0..{num_classes - 1}"
        raise ValueError(f"{name}.y: found labels {y.min()}..{y.max()}, expected {expected}")
    if ids.min() < -_INT32_MAX - 1 or ids.max() > _INT32_MAX:
        raise ValueError(f"{name}.id: found ids {ids.min()}..{ids.max()}, expected ids that fit in int32")
    values, counts = np.unique(ids, return_counts=True)
    if counts.max() > 1:
        twice = values[counts > 1]
        raise ValueError(f"{name}.id: found {len(twice)} duplicate ids, first {twice[0]}, expected unique ids")


def check_groups(split: Split, num_groups: int, *, name: str) -> None:
    """Every group id lies in ``0..G-1`` and every group has an example, so that no group's mean is undefined."""
    found = np.unique(np.asarray(split.group))
    expected = f"expected every group of 0..{num_groups - 1}"
    if found.min() < 0 or found.max() >= num_groups:
        unknown = " (-1 means unknown)" if found.min() == -1 else ""
        raise ValueError(f"{name}.group: found ids {found.min()}..{found.max()}{unknown}, {expected}")
    if missing := sorted(set(range(num_groups)) - set(found.tolist())):
        raise ValueError(f"{name}.group: found no example of groups {missing}, {expected}")


def check_numbers(y: AnyArray, *, name: str) -> None:
    """Labels of a regression: floats of three values or more."""
    values = np.unique(np.asarray(y))
    if not is_regression(y):
        raise ValueError(f"{name}: found {values.dtype} labels, expected floats of a regression")
    if len(values) < 3:
        raise ValueError(
            f"{name}: found {len(values)} different labels {values.tolist()}, expected numbers to predict; use "
            "classification, with integers as labels"
        )


def check_data(data: Data, num_classes: int | None, num_groups: int) -> None:
    """Each split is sound, features agree in shape, ids are disjoint, and groups are known outside training.

    ``num_classes`` None: a regression, whose labels are finite floats of more than two values. Training needs every
    class. Training groups may be unknown (-1), because only oracle methods read them.
    Target, selection and test need every group: their group means steer the choice and the report.
    """
    for name, split in data._asdict().items():
        check_split(split, name=name, num_classes=num_classes)
        if name != "train":
            check_groups(split, num_groups, name=name)
    if num_classes is None:
        check_numbers(data.train.y, name="train.y")
    elif missing := sorted(set(range(num_classes)) - set(np.unique(data.train.y).tolist())):
        raise ValueError(
            f"train.y: found no example of classes {missing}, expected every class of 0..{num_classes - 1}"
        )
    if (low := np.min(data.train.group)) < -1 or np.max(data.train.group) >= num_groups:
        high = np.max(data.train.group)
        raise ValueError(f"train.group: found ids {low}..{high}, expected -1 (unknown) or 0..{num_groups - 1}")
    shapes = {name: [a.shape[1:] for _, a in _leaves(split.x)] for name, split in data._asdict().items()}
    if any(shape != shapes["train"] for shape in shapes.values()):
        raise ValueError(f"data: found feature shapes {shapes}, expected the same in every split")
    seen: dict[int, str] = {}
    for name, split in data._asdict().items():
        ids = np.asarray(split.id).tolist()
        if shared := [i for i in ids if i in seen]:
            other = seen[shared[0]]
            raise ValueError(f"{name}.id: found {len(shared)} ids of {other}, first {shared[0]}, expected disjoint ids")
        seen.update(dict.fromkeys(ids, name))


def group_sizes(split: Split, num_groups: int) -> Int[np.ndarray, " G"]:
    """How many examples each group has; examples of unknown group are not counted."""
    group = np.asarray(split.group)
    return np.bincount(group[group >= 0], minlength=num_groups)


def _leaves(x):
    return jax.tree_util.tree_leaves_with_path(x)
