"""The user's own files as splits: what is read, how groups are crossed, how targets are divided, and what may not be.

Everything that can be wrong is a ``ValueError`` that names the option of the command, what was found and what is
expected, raised before any training.
"""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from d3mjax.data import files as readers
from d3mjax.data import splits
from d3mjax.types import AnyArray, Data, Split

TABLES = {".csv": readers.read_csv, ".parquet": readers.read_parquet}
FILES = {**TABLES, ".npz": readers.read_npz}
MAX_TEXTS = 200  # different values of one text column, each of which becomes a feature
PARTS = (0, 1, 2, 0)  # scoring, selection, report, scoring: dealt out to the targets of each group over and over
PARTS_BESIDE_TEST = (0, 1, 0)

Columns = Mapping[str, np.ndarray]
Tables = Mapping[str, Columns]  # by the option that names the source, --train first


@dataclass(frozen=True)
class Files:
    """What is read. A source is a .csv, .parquet or .npz file, or tfds:NAME:SPLIT."""

    # Training examples. Their groups are not needed; if they are there, one plot shows them.
    train: str
    # Examples that nothing is trained on, as in a validation set, with known groups unless --auto. Every seed divides
    # them anew, evenly in groups and classes: half is scored on, a quarter selects how many examples go, and a quarter
    # reports.
    target: str
    # Column (of a table), array (of an .npz file) or feature (of TFDS) that holds the class.
    label: str
    # Column that holds the group in which the classifier must not fail. Several, as in sex,race, are crossed; the
    # label may be one of them.
    group: str | None = None
    # Instead of --group, where nobody knows the groups: every class of the targets is split in two by what the trained
    # models get wrong, and the two sides are the groups (AUTO-D3M). Where no split can be relied on, nothing is
    # removed, and the advice says why. Selection and report then go by the worst class, because the true groups stay
    # unknown. Group labels for a few dozen targets of each group are better. Takes memory for a number for every
    # pair of target and training example.
    auto: bool = False
    # Examples for the report alone, with groups as in --target; two thirds of the targets then score and a third
    # selects.
    test: str | None = None
    # Column that names the training examples; row numbers from 0 if not given.
    id: str | None = None
    # Columns of tables that are no features, as in name,date. Label, groups and id never are.
    drop: str = ""
    # Array of an .npz file, or feature of TFDS, with the features: [n, d], or images [n, h, w] or [n, h, w, c]. Of
    # tables, all other columns are features, text as one-hot.
    feature: str = "x"
    # Leave features as they are, instead of standardising them by mean and deviation of the training examples.
    raw: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        """The columns to be crossed."""
        return _names(self.group or "")


class Own(NamedTuple):
    """The user's data, checked. Ids are row numbers over training examples, then targets, then test examples.

    With ``--auto`` the groups are the classes.
    """

    train: Split
    target: Split
    test: Split | None
    names: np.ndarray  # [n], what the user calls the training examples
    target_names: np.ndarray  # [t], and the targets
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]


def read(files: Files) -> Own:
    """All sources, checked, features standardised."""
    _check_asked(files)
    sources = {"--train": files.train, "--target": files.target} | ({"--test": files.test} if files.test else {})
    tables = {flag: _columns(flag, source, files) for flag, source in sources.items()}
    sizes = [len(columns[files.label]) for columns in tables.values()]
    x = _table_features(tables, files) if _is_table(files.train) else _array_features(tables, files)
    y, class_names = classes(tables, files.label, sizes[0])
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
    return Own(train, target, rest[0] if rest else None, ids[0], ids[1], class_names, group_names)


def divide(own: Own, seed: int) -> Data:
    """The targets dealt out for one seed: every group, and as far as it goes every class in it, is in every part."""
    pattern = PARTS if own.test is None else PARTS_BESIDE_TEST
    part = deal(own.target.group, own.target.y, seed, pattern)
    pieces = [splits.take(own.target, np.flatnonzero(part == i)) for i in range(max(pattern) + 1)]
    return Data(own.train, pieces[0], pieces[1], own.test or pieces[2])


def deal(group: AnyArray, y: AnyArray, seed: int, pattern: Sequence[int]) -> Int[np.ndarray, " t"]:
    """The part of each example, Int[t], given its group and its class, both Int[t].

    Parts follow ``pattern`` over and over along each group, class by class, in random order within a class.
    """
    order = np.lexsort((np.random.default_rng(seed).random(len(y)), y, group))
    place = np.arange(len(y)) - np.searchsorted(group[order], group[order])
    part = np.zeros(len(y), int)
    part[order] = np.asarray(pattern)[place % len(pattern)]
    return part


def _check_asked(files: Files) -> None:
    """Groups are given, or are to be found, and not both."""
    if files.auto and files.groups:
        raise ValueError(f"--group, --auto: found both, expected --group {files.group}, or --auto if nobody knows it")
    if not files.auto and not files.groups:
        raise ValueError(
            "--group: found none, expected the column of --target that tells the group of an example, as in --group "
            "sex, or several to be crossed, as in --group sex,race; or --auto, if nobody knows the groups"
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _is_table(source: str) -> bool:
    return Path(source).suffix.lower() in TABLES


def _columns(flag: str, source: str, files: Files) -> Columns:
    """The columns of one source, those that matter checked."""
    suffix = Path(source).suffix.lower()
    try:
        if source.startswith("tfds:"):
            columns = _tfds(source)
        elif suffix in FILES:
            columns = FILES[suffix](source)
        else:
            raise ValueError(f"found {source!r}, expected a {', '.join(FILES)} file, or tfds:NAME:SPLIT")
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error
    needed = {"--label": (files.label,), "--group": files.groups, "--id": (files.id,) if files.id else ()}
    needed["--id" if flag != "--train" else "--group"] = ()
    needed |= {} if _is_table(files.train) else {"--feature": (files.feature,)}
    check_named(columns, f"{flag} {source}", needed)
    for name in {files.label, *files.groups} & set(columns):
        readers.check_present(f"{flag} {source}", name, columns[name])
    lengths = {name: len(columns[name]) for names in needed.values() for name in names}
    if (name := files.id or "") in columns:
        lengths[name] = len(columns[name])
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{flag}: found lengths {lengths} in {source}, expected the same")
    return columns


def check_named(columns: Columns, source: str, needed: Mapping[str, Sequence[str]]) -> None:
    """Every column that an option names is in the ``source``; ``needed``: option -> names."""
    for option, name in ((option, name) for option, names in needed.items() for name in names):
        if name not in columns:
            close = difflib.get_close_matches(name, columns, n=2, cutoff=0.5)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"{option}: found no {name!r} in {source}, which has {sorted(columns)}.{hint}")


def _tfds(source: str) -> Columns:
    """The features of a TFDS split that have one shape in all its rows."""
    parts = re.fullmatch(r"tfds:(.+?):([A-Za-z].*)", source)  # a version, too, comes after a colon, as do slices
    if not parts:
        raise ValueError(f"found {source!r}, expected tfds:NAME:SPLIT, as in tfds:mnist:train")
    rows = readers.read_tfds(parts[1], split=parts[2])
    even = (key for key in rows[0] if len({np.shape(row[key]) for row in rows}) == 1)
    columns = {key: np.array([row[key] for row in rows]) for key in even}
    return {key: a.astype(str) if a.dtype.kind == "S" else a for key, a in columns.items()}


def _table_features(tables: Tables, files: Files) -> np.ndarray:
    """float32 [n + t, k]; the tables are put together first, so that all have the same one-hot columns."""
    drop, first = set(_names(files.drop)), tables["--train"]
    if unknown := sorted(drop - set(first)):
        raise ValueError(f"--drop: found {unknown}, expected columns of --train: {sorted(first)}")
    names = [name for name in first if name not in {files.label, files.id, *files.groups} | drop]
    for flag, columns in tables.items():
        if missing := [name for name in names if name not in columns]:
            raise ValueError(f"{flag}: found no columns {missing}, which --train has: expected the same, or --drop")
    if not names:
        raise ValueError(f"--train: found columns {sorted(first)}, expected features beside label, groups and id")
    whole = {name: np.concatenate([columns[name] for columns in tables.values()]) for name in names}
    for name, values in whole.items():
        if values.dtype.kind == "U" and (found := len(set(values.tolist()))) > MAX_TEXTS:
            raise ValueError(
                f"--train: found {found} different texts in {name!r}, expected {MAX_TEXTS} or --drop {name}"
            )
    return readers.table_features(whole, ", ".join(tables), {})


def _array_features(tables: Tables, files: Files) -> np.ndarray:
    """float32 [n + t, ...]."""
    found = {flag: columns[files.feature] for flag, columns in tables.items()}
    for flag, x in found.items():
        if x.dtype.kind not in "biuf" or x.ndim < 2 or x.shape[1:] != found["--train"].shape[1:]:
            expected = f"numbers of shape [n, ...], the same in --train, which has {list(found['--train'].shape)}"
            raise ValueError(f"{flag}: found {files.feature} of {x.dtype}{list(x.shape)}, expected {expected}")
    return np.concatenate([x.astype(np.float32) for x in found.values()])


def _levels(tables: Tables, option: str, name: str) -> np.ndarray:
    """A column of all tables as whole numbers, or as text where one of them holds text."""
    values = [columns[name] for columns in tables.values()]
    for flag, a in zip(tables, values, strict=True):
        fits = a.dtype.kind in "biuU" or (a.dtype.kind == "f" and np.array_equal(a, np.round(a)))
        if not fits or a.ndim != 1:
            raise ValueError(f"{option}: found {a.dtype}{list(a.shape)} in {flag}, expected whole numbers or text")
    return np.concatenate([a if a.dtype.kind == "U" else a.astype(np.int64) for a in values])


def classes(tables: Tables, label: str, num_train: int) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Classes 0..C-1 of all examples, and their names: those of the training examples, in order."""
    values = _levels(tables, "--label", label)
    known = np.unique(values[:num_train])
    if missing := sorted(set(values.tolist()) - set(known.tolist())):
        others = " or ".join(list(tables)[1:])
        raise ValueError(f"--train: found no example of class {missing} of {label!r}, which {others} has")
    if len(known) < 2:
        raise ValueError(f"--label: found {len(known)} class in {label!r} of --train, expected at least 2")
    return np.searchsorted(known, values).astype(np.int32), tuple(map(str, known))


def _groups(tables: Tables, names: Sequence[str], num_train: int) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    """Groups 0..G-1: the crossings that occur in targets or test; -1 for others, and where --train has no groups."""
    having = {flag: columns for flag, columns in tables.items() if set(names) <= set(columns)}
    crossings = list(zip(*(_levels(having, "--group", name).tolist() for name in names), strict=True))
    crossings = crossings if "--train" in having else [()] * num_train + crossings
    known = sorted(set(crossings[num_train:]))
    at = {crossing: i for i, crossing in enumerate(known)}
    group = np.array([at.get(crossing, -1) for crossing in crossings], np.int32)
    return group, tuple(", ".join(f"{n}={v}" for n, v in zip(names, values, strict=True)) for values in known)


def _check_groups(target: Split, tests: Sequence[Split], names: Sequence[str], kind: str) -> None:
    """Every group is in every part that scores, selects or reports; ``tests``: the test set, if there is one."""
    sizes = dict(zip(names, splits.group_sizes(target, len(names)).tolist(), strict=True))
    if len(names) < 2:
        raise ValueError(f"--group: found one group in --target ({', '.join(names)}), expected at least 2")
    for test in tests:
        tested = dict(zip(names, splits.group_sizes(test, len(names)).tolist(), strict=True))
        for flag, other, here in (("--target", "--test", sizes), ("--test", "--target", tested)):
            if absent := [name for name in names if not here[name]]:
                raise ValueError(f"{flag}: found no example of {kind} {absent}, which {other} has, expected the same")
    parts = "score and select" if tests else "score, select and report"
    least = 2 if tests else 3
    if few := {name: size for name, size in sizes.items() if size < least}:
        raise ValueError(f"--target: found so many examples of {kind}: {few}; expected at least {least}, to {parts}")


def _check_unseen(train: Split, target: Split) -> None:
    """The targets are not simply the training examples again."""
    seen = {row.tobytes() for row in train.x}
    if all(row.tobytes() in seen for row in target.x):
        raise ValueError("--target: found every example among --train, expected examples that nothing is trained on")


def _standardised(part: Split, train: Split) -> Split:
    """Features less their training mean, over their training deviation: per column, or over all pixels of images.

    Columns that are constant in training become zero, whatever they are elsewhere.
    """
    axes = tuple(range(train.x.ndim)) if train.x.ndim > 2 else (0,)
    mean, std = train.x.mean(axes, np.float64), train.x.std(axes, np.float64)
    scale = np.where(train.x.min(axes) < train.x.max(axes), std, np.inf)
    return part._replace(x=((part.x - mean) / scale).astype(np.float32))
