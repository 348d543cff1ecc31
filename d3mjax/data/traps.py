"""Traps in a user's tables: rows of the training set among the targets, repeated rows, copies of the label.

Pure functions of frames of the same columns. Rows are compared by a hash of 64 bits of all their cells.
"""

# pandas comes without stubs: pyright infers unions of all that it may return.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Num

from d3mjax.types import AnyArray, is_regression

COMMON = 0.1  # share of repeated training rows above which equal rows are expected


def repeated(frame: pd.DataFrame) -> Bool[np.ndarray, "n"]:
    """Whether each row equals an earlier one."""
    return pd.Series(_hashes(frame)).duplicated().to_numpy()


def shared(train: pd.DataFrame, target: pd.DataFrame) -> Bool[np.ndarray, "t"]:
    """Whether each target row equals a training row in all columns of ``train``."""
    return np.isin(_hashes(target[list(train)]), _hashes(train))


def copies(frame: pd.DataFrame, y: Num[AnyArray, "n"]) -> list[str]:
    """The columns whose values and the labels determine each other one to one: the label under another name.

    Labels of a regression may all be different, and so determine any column of different values. Where most are, only
    columns of numbers that rise or fall with the label all along are copies.
    """
    y, names = np.asarray(y), []
    num_labels, order = len(np.unique(y)), np.argsort(y, kind="stable")
    distinct = is_regression(y) and 2 * num_labels > len(y)
    for name in frame:
        codes, values = pd.factorize(frame[name], use_na_sentinel=False)
        one_to_one = len(values) == num_labels == len(np.unique(np.stack([codes, y]), axis=1).T)
        if one_to_one and (not distinct or _monotone(frame[name].iloc[order])):
            names.append(str(name))
    return names


def _monotone(column: pd.Series) -> bool:
    numeric = pd.api.types.is_numeric_dtype(column)
    return bool(numeric and (column.is_monotonic_increasing or column.is_monotonic_decreasing))


def overlap_note(
    option: str, shared: Bool[np.ndarray, "t"], repeated: Bool[np.ndarray, "n"], *, against: str = "--train"
) -> tuple[bool, Sequence[str]]:
    """Whether the shared rows are to be left out of scoring, and a note; none where there are none.

    Where more than a tenth of the training rows repeat each other, equal rows are expected, and stay.
    """
    if not shared.any():
        return False, ()
    expected = repeated.mean() > COMMON
    outcome = "kept, as the rows of --train repeat each other, too" if expected else "left out of scoring and reporting"
    return not expected, (f"{option}: {shared.sum():,} of {len(shared):,} rows equal rows of {against}; {outcome}.",)


def _hashes(frame: pd.DataFrame) -> np.ndarray:
    return pd.util.hash_pandas_object(frame, index=False).to_numpy()
