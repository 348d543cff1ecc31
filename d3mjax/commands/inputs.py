"""The sources of a command as frames by option, and the data card of what became of their columns.

A source is a table, in which every column is a feature unless an option names it, or arrays by name, of which one holds
the features. Notebooks pass frames instead of paths. Errors are ``ValueError`` that name the option.
"""

# pandas comes without stubs: pyright infers unions of all that it may return.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Num

from d3mjax.data import columns, files, images, labels, number_labels, traps
from d3mjax.data.columns import Column
from d3mjax.runtime import store

Frames = dict[str, pd.DataFrame]  # by the option that names the source, --train first


class Sources(NamedTuple):
    """What was read. ``arrays``: features of array sources, whose frames hold all other arrays; None for tables."""

    frames: Frames
    arrays: dict[str, np.ndarray] | None
    notes: tuple[str, ...]


def read(sources: Mapping[str, str], feature: str, *, tables: Mapping[str, pd.DataFrame] | None = None) -> Sources:
    """All sources by option; ``tables``: frames instead of files, by the name of the option without dashes.

    Where all sources are one and the same table, its column ``split`` divides it, as in the layout of WILDS.
    """
    if tables is not None:
        names = {option: option.removeprefix("--") for option in sources}
        if missing := [name for name in names.values() if name not in tables]:
            raise ValueError(f"tables: found {sorted(tables)}, expected also {missing}")
        if extra := sorted(set(tables) - set(names.values())):
            raise ValueError(f"tables: found also {extra}, expected {sorted(names.values())}: name them in Files, too")
        return Sources({option: tables[name].reset_index(drop=True) for option, name in names.items()}, None, ())
    kinds = {option: files.is_table(source) for option, source in sources.items()}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"--train: found tables and arrays together ({dict(sources)}), expected all of one kind")
    if all(kinds.values()) and len(set(sources.values())) == 1:
        return _divided(*next(iter(sources.items())), list(sources))
    read_one = _table if all(kinds.values()) else _arrays
    parts = {option: read_one(option, source, feature) for option, source in sources.items()}
    frames = {option: part[0] for option, part in parts.items()}
    arrays = None if all(kinds.values()) else {option: part[1] for option, part in parts.items()}
    notes = [f"{option}: {note}" for option, part in parts.items() for note in part[2]]
    if arrays is not None:
        _check_arrays(arrays, feature)
    return Sources(frames, arrays, tuple(notes))


def check_named(frames: Frames, needed: Mapping[str, Mapping[str, Sequence[str | None]]]) -> None:
    """Every named column is there; ``needed``: source option -> naming option -> names."""
    for option, names in needed.items():
        if option in frames:
            named = {flag: [name for name in values if name] for flag, values in names.items()}
            files.check_named(frames[option].columns, option, named)


def read_labels(
    columns: Mapping[str, pd.Series], name: str, *, regression: bool, categorical: bool = False
) -> labels.Labels:
    """Classes of the label of every source by option, or with ``regression`` numbers, which have no names."""
    if regression:
        return labels.Labels(number_labels.read(columns, name), (), ())
    return labels.encode(columns, name, categorical=categorical)


def names_of(frame: pd.DataFrame, id: str | None, option: str) -> np.ndarray:
    """The user's names of the rows as they are in the file; row numbers from 0 without an id column.

    Raises:
      ValueError: names that are missing or repeat.
    """
    if id is None or id not in frame:
        return np.arange(len(frame))
    column = frame[id]
    labels.check_present(option, id, column, hint=": expected a name for every row")
    if (twice := column.duplicated()).any():
        name = column[twice].iloc[0]
        raise ValueError(
            f"--id: found {(column == name).sum()} rows called {name} in {option}, expected another for each"
        )
    return column.to_numpy() if column.dtype.kind in "iu" else column.astype(str).to_numpy(dtype=str)


def ranks(names: np.ndarray) -> Int[np.ndarray, "n"]:
    """Positions of the names in sorted order, which do not depend on the order of rows."""
    return np.unique(names, return_inverse=True)[1].astype(np.int32)


def without_copies(
    kinds: Sequence[Column], typed: Frames, y: Mapping[str, Num[np.ndarray, "n"]], label: str
) -> tuple[Column, ...]:
    """The columns, with copies of the label dropped; ``typed``: all sources.

    A column that equals the label in --train alone is a shortcut, which is what the command is for: it stays, with a
    note.
    """
    train = next(iter(typed))
    in_train = traps.copies(typed[train], y[train])
    whole = pd.concat([frame[in_train] for frame in typed.values()])
    everywhere = traps.copies(whole, np.concatenate([y[option] for option in typed]))

    def judged(column: Column) -> Column:
        if column.name in everywhere:
            return column._replace(kind="dropped", note=f"equals the label {label}, one to one")
        if column.name in in_train:
            notes = (column.note, f"equals the label {label} in {train} alone: a shortcut")
            return column._replace(note="; ".join(filter(None, notes)))
        return column

    return tuple(map(judged, kinds))


def unseen(train: Any, others: Mapping[str, Any]) -> tuple[dict[str, Bool[np.ndarray, "t"]], list[str]]:
    """The rows of the other sources that score and report, and notes on rows that are shared or repeated.

    Targets are compared with --train, and --test also with --validation.

    Raises:
      ValueError: every row of a source is among those that it is compared with.
    """
    repeated = traps.repeated(train)
    notes = [
        f"{option}: {again.sum():,} of {len(again):,} rows repeat an earlier row."
        for option, again in {"--train": repeated, **{o: traps.repeated(frame) for o, frame in others.items()}}.items()
        if again.any()
    ]
    used = {option: np.ones(len(frame), bool) for option, frame in others.items()}
    pairs = [(option, "--train", train) for option in others]
    pairs += [("--test", "--validation", others["--validation"])] if "--test" in others else []
    for option, against, rows in pairs:
        shared = traps.shared(rows, others[option])
        if shared.all():
            raise ValueError(f"{option}: found every example among {against}, expected rows that it does not have")
        out, more = traps.overlap_note(option, shared, repeated, against=against)
        used[option] &= ~shared if out else True
        notes += more
    return used, notes


def card(sizes: Mapping[str, int], kinds: Sequence[Column], facts: Mapping[str, Any], notes: Sequence[str]) -> dict:
    """The document of ``data.json``: rows of every source, columns, labels and groups, and notes."""
    return {"rows": dict(sizes), "columns": columns.card(kinds), **facts, "notes": list(notes)}


def show(card: Mapping[str, Any]) -> str:
    """The data card for the terminal."""
    rows = ", ".join(f"{count:,} rows of {option}" for option, count in card["rows"].items())
    lines = [f"Data: {rows}.", *columns.lines([Column(**column) for column in card["columns"]])]
    for kind in ("classes", "groups"):
        counts = "; ".join(f"{name} ({count:,})" for name, count in card.get(kind, {}).items())
        lines += [f"{kind.capitalize()} of --validation: {counts}."] if counts else []
    return "\n".join([*lines, *(f"Note: {note}" for note in card["notes"])])


def write_card(directory: Path, card: Mapping[str, Any]) -> None:
    """Write ``data.json``, whole or not at all."""
    store.write_bytes(directory / "data.json", json.dumps(card, indent=1, ensure_ascii=False).encode())


def _divided(option: str, source: str, options: Sequence[str]) -> Sources:
    """The parts of one table, divided by its column ``split``. That column is left out."""
    frame, _, notes = _table(option, source, "")
    if "split" not in frame:
        raise ValueError(
            f"{options[1]}: found the file of --train, expected another one, or a column 'split' in it, which holds 0 "
            "(train), 1 (val) and 2 (test)"
        )
    parts = {}
    for each in options:
        name = {"--train": "train", "--validation": "val", "--test": "test"}[each]
        try:
            parts[each] = images.part(frame, name).drop(columns="split")
        except ValueError as error:
            raise ValueError(f"{each}: {source}: {error}") from error
    return Sources(parts, None, tuple(f"{option}: {note}" for note in notes))


def _table(option: str, source: str, feature: str) -> tuple[pd.DataFrame, None, Sequence[str]]:
    del feature
    try:
        table = files.read_table(source)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    return table.frame, None, table.notes


def _arrays(option: str, source: str, feature: str) -> tuple[pd.DataFrame, np.ndarray, Sequence[str]]:
    """One-dimensional arrays as a frame, and the features."""
    try:
        arrays = files.read_arrays(source)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error
    files.check_named(arrays, f"{option} {source}", {"--feature": [feature]})
    if not arrays[feature].ndim:
        raise ValueError(f"{option}: found a single number in {feature!r} of {source}, expected [n, d] or images")
    flat = {name: a for name, a in arrays.items() if a.ndim == 1 and name != feature}
    lengths = {name: len(a) for name, a in {**flat, feature: arrays[feature]}.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{option}: found lengths {lengths} in {source}, expected the same")
    return pd.DataFrame(flat), arrays[feature], ()


def _check_arrays(arrays: Mapping[str, np.ndarray], feature: str) -> None:
    first = next(iter(arrays.values()))
    for option, x in arrays.items():
        if x.dtype.kind not in "biuf" or x.ndim < 2 or x.shape[1:] != first.shape[1:]:
            expected = f"numbers of shape [n, ...], the same in --train, which has {list(first.shape)}"
            raise ValueError(f"{option}: found {feature} of {x.dtype}{list(x.shape)}, expected {expected}")
