"""The user's files as splits: what is read, how groups are crossed, how targets are divided, and what is refused.

Everything that can be wrong is a ``ValueError`` that names the option of the command, what was found and what is
expected, raised before any training.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import tyro
from jaxtyping import Int

from d3mjax.commands import command
from d3mjax.commands.command import MAX_TEXTS, Drop, Id, Label, Tables
from d3mjax.data import files as readers
from d3mjax.data import splits
from d3mjax.types import AnyArray, Data, Split

PARTS = (0, 1, 2, 0)  # scoring, selection, report, scoring: dealt out to the targets of each group over and over
PARTS_BESIDE_TEST = (0, 1, 0)


@dataclass(frozen=True)
class Files:
    """What is read. A source is a .csv, .parquet or .npz file, or tfds:NAME:SPLIT."""

    # Training examples. Their groups are not needed; if they are there, one plot shows them.
    train: str
    # Examples that nothing is trained on, as in a validation set, with known groups unless --auto. Every seed divides
    # them anew, evenly in groups and classes: half is scored on, a quarter selects how many examples go, and a quarter
    # reports.
    target: Annotated[str, tyro.conf.arg(name="validation", aliases=["--target"])]
    label: Label
    # Column that holds the group in which the classifier must not fail. Several, as in sex,race, are crossed; the
    # label may be one of them.
    group: str | None = None
    # Instead of --group, where the groups are unknown: every class of the targets is split in two by what the trained
    # models get wrong, and the two sides are the groups (AUTO-D3M). Where no split can be relied on, nothing is
    # removed, and the advice says why. Selection and report then go by the worst class, because the true groups stay
    # unknown. Group labels for a few dozen targets of each group are better. Takes memory for a number for every
    # pair of target and training example.
    auto: bool = False
    # Examples for the report alone, with groups as in --validation; two thirds of the targets then score and a third
    # selects.
    test: str | None = None
    id: Id = None
    drop: Drop = ""
    # Array of an .npz file, or feature of TFDS, with the features: [n, d], or images [n, h, w] or [n, h, w, c]. Of
    # tables, all other columns are features, text as one-hot.
    feature: str = "x"
    # Leave features as they are, instead of standardising them by mean and deviation of the training examples.
    raw: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        """The columns to be crossed."""
        return command.names(self.group or "")


class UserData(NamedTuple):
    """The user's data, checked. Ids are row numbers over training examples, then targets, then test examples.

    With ``--auto`` the groups are the classes.
    """

    train: Split
    target: Split
    test: Split | None
    names: np.ndarray  # [n], ids of the training examples in the user's file
    target_names: np.ndarray  # [t], and of the targets
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]


def read(files: Files) -> UserData:
    """All sources, checked, features standardised. Missing numbers become the mean of the training examples."""
    _check_groups_asked(files)
    sources = {"--train": files.train, "--validation": files.target} | ({"--test": files.test} if files.test else {})
    tables = {flag: _columns(flag, source, files) for flag, source in sources.items()}
    sizes = [len(columns[files.label]) for columns in tables.values()]
    x = _table_features(tables, files) if readers.is_table(files.train) else _array_features(tables, files)
    y, class_names = command.classes(tables, files.label, sizes[0])
    group, group_names = (y, class_names) if files.auto else _groups(tables, files.groups, sizes[0])
    whole = Split(x, y, group, np.arange(len(y), dtype=np.int32))
    bounds = itertools.pairwise([0, *np.cumsum(sizes).tolist()])
    parts = [splits.take(whole, np.arange(*bound)) for bound in bounds]
    for flag, part in zip(tables, parts, strict=True):
        splits.check_split(part, name=flag)
    train, target, *rest = parts
    _check_groups(target, rest, group_names, "classes" if files.auto else "groups")
    _check_unseen(train, target)
    train, target, *rest = parts if files.raw else [_standardised(part, train) for part in parts]
    # Targets may have no ids of their own.
    ids = [tables[flag].get(files.id or "", np.arange(len(tables[flag][files.label]))) for flag in list(tables)[:2]]
    return UserData(train, target, rest[0] if rest else None, ids[0], ids[1], class_names, group_names)


def flat(data: UserData) -> UserData:
    """Features as ``[n, d]``, of which an MLP can be made."""
    return data._replace(**{k: part._replace(x=part.x.reshape(len(part.y), -1)) for k, part in _parts(data).items()})


def arrays(data: UserData) -> dict[str, np.ndarray]:
    """All arrays of the splits by name, for their digest."""
    return {f"{k}.{name}": a for k, part in _parts(data).items() for name, a in part._asdict().items()}


def divide(data: UserData, seed: int) -> Data:
    """The targets divided for one seed: every group, and as far as possible every class in it, is in every part."""
    pattern = PARTS if data.test is None else PARTS_BESIDE_TEST
    part = deal(data.target.group, data.target.y, seed, pattern)
    pieces = [splits.take(data.target, np.flatnonzero(part == i)) for i in range(max(pattern) + 1)]
    return Data(data.train, pieces[0], pieces[1], data.test or pieces[2])


def deal(group: AnyArray, y: AnyArray, seed: int, pattern: Sequence[int]) -> Int[np.ndarray, " t"]:
    """The part of each example, Int[t], given its group and its class, both Int[t].

    Parts follow ``pattern`` over and over along each group, class by class, in random order within a class.
    """
    order = np.lexsort((np.random.default_rng(seed).random(len(y)), y, group))
    rank = np.arange(len(y)) - np.searchsorted(group[order], group[order])
    part = np.zeros(len(y), int)
    part[order] = np.asarray(pattern)[rank % len(pattern)]
    return part


def _parts(data: UserData) -> dict[str, Split]:
    parts = {"train": data.train, "target": data.target, "test": data.test}
    return {name: part for name, part in parts.items() if part is not None}


def _check_groups_asked(files: Files) -> None:
    """Groups are given, or are to be found, and not both."""
    if files.auto and files.groups:
        raise ValueError(f"--group, --auto: found both, expected --group {files.group}, or --auto if it is unknown")
    if not files.auto and not files.groups:
        raise ValueError(
            "--group: found none, expected the column of --validation that holds the group of an example, as in "
            "--group sex, or several to be crossed, as in --group sex,race; or --auto, if the groups are unknown"
        )


def _columns(flag: str, source: str, files: Files) -> readers.Columns:
    """The columns of one source, those that matter checked."""
    columns = command.read(flag, source)
    needed = {"--label": [files.label]}
    needed |= {"--id": [files.id] if files.id else []} if flag == "--train" else {"--group": list(files.groups)}
    needed |= {} if readers.is_table(files.train) else {"--feature": [files.feature]}
    readers.check_named(columns, f"{flag} {source}", needed)
    for name in {files.label, *files.groups} & set(columns):
        readers.check_present(f"{flag} {source}", name, columns[name])
    named = {name for names in needed.values() for name in names} | ({files.id} & set(columns))
    lengths = {name: len(columns[name]) for name in sorted(filter(None, named))}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{flag}: found lengths {lengths} in {source}, expected the same")
    return columns


def _table_features(tables: Tables, files: Files) -> np.ndarray:
    """float32 [n + t, k]; the tables are put together first, so that all have the same one-hot columns."""
    drop, first = command.names(files.drop), tables["--train"]
    readers.check_named(first, "--train", {"--drop": drop})
    names = [name for name in first if name not in {files.label, files.id, *files.groups, *drop}]
    for flag, columns in tables.items():
        if missing := [name for name in names if name not in columns]:
            raise ValueError(f"{flag}: found no columns {missing}, which --train has: expected the same, or --drop")
        for name in names:  # each by itself: errors name its rows
            readers.parsed(columns[name], name, flag, advice=f"--drop {name}")
    if not names:
        raise ValueError(f"--train: found columns {sorted(first)}, expected features beside label, groups and id")
    whole = {name: np.concatenate([columns[name] for columns in tables.values()]) for name in names}
    for name, values in whole.items():
        column = readers.parsed(values, name, ", ".join(tables), advice=f"--drop {name}")
        if column.dtype.kind == "U" and (count := len(np.unique(column))) > MAX_TEXTS:
            raise ValueError(
                f"--train: found {count} different texts in {name!r}, expected {MAX_TEXTS} or --drop {name}"
            )
    x = readers.features(whole, ", ".join(tables))
    train = x[: len(first[names[0]])]
    if (missing := np.isnan(x)).any():
        counts = (~np.isnan(train)).sum(0)
        mean = np.nansum(train, 0, np.float64) / np.maximum(counts, 1)
        x = np.where(missing, mean, x).astype(np.float32)
    return x


def _array_features(tables: Tables, files: Files) -> np.ndarray:
    """float32 [n + t, ...]."""
    arrays = {flag: columns[files.feature] for flag, columns in tables.items()}
    for flag, x in arrays.items():
        if x.dtype.kind not in "biuf" or x.ndim < 2 or x.shape[1:] != arrays["--train"].shape[1:]:
            expected = f"numbers of shape [n, ...], the same in --train, which has {list(arrays['--train'].shape)}"
            raise ValueError(f"{flag}: found {files.feature} of {x.dtype}{list(x.shape)}, expected {expected}")
    return np.concatenate([x.astype(np.float32) for x in arrays.values()])


def _groups(tables: Tables, names: Sequence[str], num_train: int) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Groups 0..G-1: the crossings that occur in targets or test; -1 for others, and where --train has no groups."""
    having = {flag: columns for flag, columns in tables.items() if set(names) <= set(columns)}
    crossings = list(zip(*(command.levels(having, "--group", name).tolist() for name in names), strict=True))
    crossings = crossings if "--train" in having else [()] * num_train + crossings
    known = sorted(set(crossings[num_train:]))
    at = {crossing: i for i, crossing in enumerate(known)}
    group = np.array([at.get(crossing, -1) for crossing in crossings], np.int32)
    return group, tuple(", ".join(f"{n}={v}" for n, v in zip(names, values, strict=True)) for values in known)


def _check_groups(target: Split, tests: Sequence[Split], names: Sequence[str], kind: str) -> None:
    """Every group is in every part that scores, selects or reports; ``tests``: the test set, if there is one."""
    sizes = dict(zip(names, splits.group_sizes(target, len(names)).tolist(), strict=True))
    if len(names) < 2:
        raise ValueError(f"--group: found one group in --validation ({', '.join(names)}), expected at least 2")
    for test in tests:
        tested = dict(zip(names, splits.group_sizes(test, len(names)).tolist(), strict=True))
        for flag, other, counts in (("--validation", "--test", sizes), ("--test", "--validation", tested)):
            if absent := [name for name in names if not counts[name]]:
                raise ValueError(f"{flag}: found no example of {kind} {absent}, which {other} has, expected the same")
    parts = "score and select" if tests else "score, select and report"
    least = 2 if tests else 3
    if few := {name: size for name, size in sizes.items() if size < least}:
        raise ValueError(f"--validation: found so few examples of {kind}: {few}; expected at least {least}, to {parts}")


def _check_unseen(train: Split, target: Split) -> None:
    """The targets are not simply the training examples again."""
    seen = {row.tobytes() for row in train.x}
    if all(row.tobytes() in seen for row in target.x):
        raise ValueError(
            "--validation: found every example among --train, expected examples that nothing is trained on"
        )


def _standardised(part: Split, train: Split) -> Split:
    """Features less their training mean, over their training deviation: per column, or over all pixels of images.

    Columns that are constant in training become zero, whatever they are elsewhere.
    """
    axes = tuple(range(train.x.ndim)) if train.x.ndim > 2 else (0,)
    mean, std = train.x.mean(axes, np.float64), train.x.std(axes, np.float64)
    scale = np.where(train.x.min(axes) < train.x.max(axes), std, np.inf)
    return part._replace(x=((part.x - mean) / scale).astype(np.float32))
