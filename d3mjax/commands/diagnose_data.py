"""The user's tables for `d3mjax-diagnose`: columns read, checked and cleaned, with notes on what was left out.

Everything that can be wrong is a ``ValueError`` that names the option of the command, what was found and what is
expected. `UserTable.notes` holds what a user should know besides.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from d3mjax.commands import command
from d3mjax.commands.command import MAX_TEXTS, Drop, Id, Label
from d3mjax.data import files as readers
from d3mjax.data import tables
from d3mjax.data.files import MISSING, Columns
from d3mjax.data.planted import corruptions
from d3mjax.types import Table

LEAST_TRAIN = 100
LEAST, FEW = 64, 256  # validation rows: fewer are refused, or warned of
LOOKED_AT = 512  # validation rows that vectors are made with
MOST_CLASSES = 50
_DATE = re.compile(r"\d{4}-\d\d?-\d\d?|\d\d?[./]\d\d?[./]\d{2,4}")


@dataclass(frozen=True)
class Files:
    """The files of the user: .csv, .parquet or .npz, one row an example. Entries of features may be missing."""

    # Rows to look for errors in.
    train: str
    # Rows of the same kind that nothing is trained on. They may have errors of their own; 64 at least, better 512.
    validation: str
    label: Label
    id: Id = None
    drop: Drop = ""
    # Columns of numbers that are codes of categories, as in zip,district. Text always is a category.
    categorical: str = ""

    @property
    def dropped(self) -> tuple[str, ...]:
        """The names of ``drop``."""
        return command.names(self.drop)

    @property
    def coded(self) -> tuple[str, ...]:
        """The names of ``categorical``."""
        return command.names(self.categorical)


class UserTable(NamedTuple):
    """The user's data, checked."""

    train: Table  # ids are ranks of the names, so the order of rows changes nothing
    y: np.ndarray  # Int[n]
    validation: Table
    validation_y: np.ndarray  # Int[v]
    names: np.ndarray  # [n], the user's names of the rows
    class_names: tuple[str, ...]
    raw: Columns  # all of --train, as read
    notes: tuple[str, ...]  # dropped columns and warnings


def read(files: Files) -> UserTable:
    """Both files, checked."""
    sources = {"--train": files.train, "--validation": files.validation}
    raw = {flag: _columns(flag, source, files) for flag, source in sources.items()}
    sizes = [len(columns[files.label]) for columns in raw.values()]
    for flag, size, least in zip(raw, sizes, (LEAST_TRAIN, LEAST), strict=True):
        if size < least:
            raise ValueError(f"{flag}: found {size} rows, expected at least {least}")
    y, class_names = command.classes(raw, files.label, sizes[0])
    if len(class_names) > MOST_CLASSES:
        raise ValueError(
            f"--label: found {len(class_names)} different values in {files.label!r}, expected at most {MOST_CLASSES} "
            "classes; numbers to be predicted have to be cut into classes first"
        )
    notes = [_few(sizes[1])] if sizes[1] < FEW else []
    train, validation = _features(raw, files, notes)
    names = raw["--train"].get(files.id or "", np.arange(sizes[0]))
    ids = [_ids(flag, columns.get(files.id or ""), len(columns[files.label])) for flag, columns in raw.items()]
    table = tables.from_columns(train, id=ids[0])
    held = tables.from_columns(validation, id=ids[1], levels=table.levels)
    notes += _unseen(held, validation)
    data = UserTable(table, y[: sizes[0]], held, y[sizes[0] :], names, class_names, raw["--train"], tuple(notes))
    _check_unlike(data)
    return data


def looked_at(data: UserTable) -> Bool[np.ndarray, "v"]:
    """The validation rows that vectors are made with: up to `LOOKED_AT`, drawn by id."""
    return corruptions.choose(jax.random.key(0), data.validation.id, min(LOOKED_AT, len(data.validation_y)))


def _columns(flag: str, source: str, files: Files) -> Columns:
    columns = command.read(flag, source)
    needed = {"--label": (files.label,)}
    if flag == "--train":
        needed |= {"--id": (files.id,) if files.id else (), "--drop": files.dropped, "--categorical": files.coded}
    readers.check_named(columns, f"{flag} {source}", needed)
    if files.label in {files.id, *files.dropped, *files.coded}:
        raise ValueError(f"--label: found {files.label!r} in --id, --drop or --categorical, too, expected it in none")
    readers.check_present(f"{flag} {source}", files.label, columns[files.label], hint=": leave these rows out")
    if len(lengths := {len(a) for a in columns.values()}) > 1:
        raise ValueError(f"{flag}: found lengths {sorted(lengths)} in {source}, expected one row an example")
    return columns


def _features(raw: Mapping[str, Columns], files: Files, notes: list[str]) -> tuple[Columns, Columns]:
    """Numbers (NaN where missing) and text of both files, without constant columns, which get a note."""
    train, validation = raw.values()
    names = [name for name in train if name not in {files.label, files.id, *files.dropped}]
    if missing := [name for name in names if name not in validation]:
        raise ValueError(f"--validation: found no columns {missing}, which --train has: expected the same, or --drop")
    features: tuple[dict, dict] = ({}, {})
    out: dict[str, list[str]] = {}
    for name in names:
        column, held = (_parsed(flag, name, columns[name], files) for flag, columns in raw.items())
        if reason := _useless(column):
            out.setdefault(reason, []).append(name)
            continue
        if column.dtype.kind != held.dtype.kind:
            if held.dtype.kind == "f" and np.isnan(held).all():
                held = np.full(len(held), MISSING)
            else:
                kind = {"f": "numbers", "U": "text"}
                raise ValueError(
                    f"--validation: found {kind[held.dtype.kind]} in {name!r}, which holds {kind[column.dtype.kind]} "
                    f"in --train, expected the same; if they are codes, --categorical {name}"
                )
        if column.dtype.kind == "U" and (count := len(np.unique(column))) > MAX_TEXTS:
            raise ValueError(
                f"--train: found {count} texts in {name!r}, expected at most {MAX_TEXTS}, or --drop {name}"
            )
        features[0][name], features[1][name] = column, held
        if share := _share_missing(column):
            notes.append(
                f"Column {name!r}: {share:.1%} of the entries in --train are missing; that is not an error by itself."
            )
    notes += [f"Left out, as {reason} in --train: {', '.join(columns)}." for reason, columns in out.items()]
    if not features[0]:
        raise ValueError(f"--train: found columns {sorted(train)}, expected features that vary beside label and id")
    return features


def _parsed(flag: str, name: str, a: np.ndarray, files: Files) -> np.ndarray:
    """Float[n] or text [n]."""
    categorical, advice = name in files.coded, f"--categorical {name}, or --drop {name}"
    column = readers.parsed(a, name, flag, categorical=categorical, advice=advice)
    present = column[column != MISSING].tolist() if column.dtype.kind == "U" and not categorical else []
    if present and all(_DATE.match(v) for v in present):
        raise ValueError(f"{flag}: found dates ({present[0]}) in {name!r}, a column of unknown kind; --drop {name}")
    return column


def _useless(a: np.ndarray) -> str:
    """Why a column is left out; empty if it is not."""
    present = a[~np.isnan(a)] if a.dtype.kind == "f" else a[a != MISSING]
    return "all missing" if not len(present) else "constant" if (present == present[0]).all() else ""


def _share_missing(a: np.ndarray) -> float:
    return float((np.isnan(a) if a.dtype.kind == "f" else a == MISSING).mean())


def _ids(flag: str, names: np.ndarray | None, size: int) -> Int[np.ndarray, "n"]:
    """Ranks of the names."""
    if names is None:
        return np.arange(size)
    readers.check_present(flag, "--id", names, hint=": name every row")
    known, rank, counts = np.unique(names, return_inverse=True, return_counts=True)
    if len(known) < size:
        repeated = known[counts.argmax()]
        raise ValueError(f"--id: found {counts.max()} rows called {repeated} in {flag}, expected another name for each")
    return rank


def _few(size: int) -> str:
    return (
        f"--validation has {size} rows: few. More rows make the diagnosis better, up to {LOOKED_AT}; below {FEW} "
        "expect more missed errors and more false alarms than the figures below."
    )


def _unseen(held: Table, columns: Columns) -> list[str]:
    """Notes on levels of validation rows that no training row has."""
    notes = []
    for name in held.levels:
        unknown = held.columns[name] < 0
        if unknown.any():
            examples = ", ".join(np.unique(columns[name][unknown])[:3].tolist())
            notes.append(
                f"--validation: {int(unknown.sum())} rows have values of {name!r} that --train does not have "
                f"({examples}): they are taken as none of its levels."
            )
    return notes


def _check_unlike(data: UserTable) -> None:
    """Validation rows are not simply the training rows again."""
    encoder = tables.fit_encoder(data.train)
    both = ((data.train, data.y), (data.validation, data.validation_y))
    seen, held = (
        [(row.tobytes(), c) for row, c in zip(tables.encode(encoder, t), y.tolist(), strict=True)] for t, y in both
    )
    if set(held) <= set(seen):
        raise ValueError("--validation: found every row among --train, expected rows that nothing is trained on")
