"""Class labels as users write them: text, truth values, whole numbers with gaps; anything else is refused.

    labels = encode({"--train": train["y"], "--validation": validation["y"]}, "y")
    labels.y["--train"], labels.names

Pure functions of pandas columns. Every function raises ``ValueError`` that names the option, what was found and what is
expected.
"""

# pandas comes without stubs: pyright infers unions of all that it may return.
# pyright: reportAttributeAccessIssue=false, reportAssignmentType=false, reportReturnType=false

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Num

from d3mjax.data.files import did_you_mean

MOST_CLASSES = 200  # of text
MOST_VALUES = 20  # of numbers, unless each has so many training examples:
MANY = 20
FEW = 10  # training examples or targets of a class, below which a note says so
MISSING = ("", "na", "n/a", "<na>", "#n/a", "nan", "nat", "null", "?")  # in lower case; "none" may be a class or group
_SEPARATORS = ("|", ";", ",")


class Labels(NamedTuple):
    """Classes 0..C-1 of the examples of every source, and their names: the values of the label, in order."""

    y: dict[str, Num[np.ndarray, "n"]]  # floats of `number_labels` have no names
    names: tuple[str, ...]
    notes: tuple[str, ...]


def encode(columns: Mapping[str, pd.Series], name: str, *, categorical: bool = False) -> Labels:
    """Classes of the label column ``name`` of every source; ``columns`` by option, that of the training set first.

    Whole numbers keep their order, and text is sorted. With ``categorical`` many different numbers are classes, too.

    Raises:
      ValueError: missing labels, one class alone, numbers to predict, several labels in a cell, names or free text, and
        classes that no training example has.
    """
    values = {option: _values(option, name, column) for option, column in columns.items()}
    numeric = {option: pd.api.types.is_numeric_dtype(a) for option, a in values.items()}
    first = next(iter(values))
    for option in values:
        if numeric[option] != numeric[first]:
            kind = {True: "numbers", False: "text"}
            raise ValueError(
                f"{option}: found {kind[numeric[option]]} in the label {name!r}, which holds {kind[numeric[first]]} in "
                f"{first}; expected the same"
            )
    train = values[first]
    levels, counts = np.unique(train.to_numpy(), return_counts=True)
    if numeric[first] and not categorical:
        _check_classes(first, name, levels, counts)
    elif not numeric[first]:
        _check_text(first, name, levels, len(train))
    if len(levels) < 2:
        raise ValueError(f"--label: found the one class {levels[0]} in {name!r} of {first}, expected at least 2")
    for option, a in list(values.items())[1:]:
        if unknown := sorted(set(a.unique()) - set(levels)):
            hint = did_you_mean(str(unknown[0]), map(str, levels))
            raise ValueError(
                f"{first}: found no example of class {_shown(unknown)} of {name!r}, which {option} has.{hint}"
            )
    names = tuple(str(level) for level in levels.tolist())
    y = {option: np.searchsorted(levels, a.to_numpy()).astype(np.int32) for option, a in values.items()}
    return Labels(y, names, tuple(_notes(y, names)))


def check_present(option: str, name: str, column: pd.Series, *, hint: str) -> None:
    """Raises ValueError if an entry is missing; ``hint``: what to do."""
    missing = column.isna() | column.astype(str).str.strip().str.lower().isin(MISSING)
    if missing.any():
        row = int(np.argmax(missing.to_numpy()))
        raise ValueError(f"{option}, column {name!r}: found {missing.sum()} missing values, first in row {row}{hint}")


def _values(option: str, name: str, column: pd.Series) -> pd.Series:
    """Whole or other numbers as they are, and everything else as text without spaces around it."""
    if column.map(lambda value: isinstance(value, list | tuple | set | dict | np.ndarray)).any():
        raise ValueError(
            f"{option}: found lists in the label {name!r}: several labels of one example are not supported"
        )
    check_present(option, name, column, hint=", expected none: leave these rows out")
    if pd.api.types.is_bool_dtype(column):
        return column.astype(bool).astype(str)
    if isinstance(column.dtype, pd.CategoricalDtype) or not pd.api.types.is_numeric_dtype(column):
        column = column.astype(str).str.strip()
        if column.str.match(r"^[+-]?0\d").any():  # "01" is a code
            return column.astype(object)
        numbers = pd.to_numeric(column, errors="coerce")
        if numbers.isna().any():
            return column.astype(object)
        column = numbers
    column = column.astype(np.float64) if column.dtype.kind not in "iu" else column
    whole = column.dtype.kind in "iu" or bool((column == column.round()).all())
    return column.astype(np.int64) if whole else column.astype(np.float64)


def _check_classes(option: str, name: str, levels: np.ndarray, counts: np.ndarray) -> None:
    """Numbers are classes where they are whole and few, or have many examples each."""
    whole = levels.dtype.kind == "i"
    if whole and (len(levels) <= MOST_VALUES or counts.min() >= MANY):
        return
    kind = f"{len(levels)} different numbers" if whole else f"numbers such as {levels[len(levels) // 2]:g}"
    raise ValueError(
        f"--label: found {kind} in {name!r} of {option}: it looks like a number to predict, not a class. Expected "
        f"classes; --regression predicts numbers; if they are codes of classes, --categorical {name}"
    )


def _check_text(option: str, name: str, levels: np.ndarray, size: int) -> None:
    for separator in _SEPARATORS:
        pieces = [level.split(separator) for level in levels]
        several = sum(len(parts) > 1 for parts in pieces)
        distinct = {part.strip() for parts in pieces for part in parts}
        if several > 1 and 2 * several >= len(levels) and len(distinct) < len(levels):
            example = next(level for level in levels if separator in level)
            raise ValueError(
                f"--label: found {example!r} in {name!r} of {option}, which looks like several labels of one example; "
                "they are not supported: expected one, such as a column of yes and no for one of them"
            )
    if len(levels) > MOST_CLASSES or (len(levels) > FEW and 2 * len(levels) > size):
        raise ValueError(
            f"--label: found {len(levels)} different texts in {name!r} of {option}: it looks like a name or free text, "
            f"not a class. Expected at most {MOST_CLASSES} classes"
        )


def _notes(y: Mapping[str, np.ndarray], names: Sequence[str]) -> list[str]:
    """Classes that are too rare for their accuracy to be known."""
    notes = []
    for option, codes in y.items():
        counts = np.bincount(codes, minlength=len(names))
        if few := [f"{name} ({count})" for name, count in zip(names, counts, strict=True) if count < FEW]:
            notes.append(f"{option} has fewer than {FEW} examples of class {_shown(few)}.")
    return notes


def _shown(values: Sequence) -> str:
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return ", ".join(map(str, values[:5])) + more
