"""One table in several files: their rows end to end, where their columns and types agree."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from pandas.api import types

from d3mjax.data.text_files import TEXT, RawTable


def joined(tables: Mapping[str, RawTable]) -> RawTable:
    """The tables, by path, end to end, with the columns of the first in its order.

    Raises:
      ValueError: naming file and columns, where columns, or types of a column, differ.
    """
    (first, whole), *others = tables.items()
    for path, _ in others:
        for lesser, reference in ((path, first), (first, path)):
            if lacking := [name for name in tables[reference].frame if name not in tables[lesser].frame]:
                raise ValueError(
                    f"{lesser}: found no columns {lacking[:3]}, which {reference} has, expected the same columns"
                )
    columns = {name: _column({path: pd.Series(t.frame[name]) for path, t in tables.items()}) for name in whole.frame}
    notes = [f"{path}: {note}" for path, table in tables.items() for note in table.notes]
    return RawTable(pd.DataFrame(columns, copy=False), (f"read {len(tables)} files", *notes))


def _column(parts: Mapping[str, pd.Series]) -> pd.Series:
    """The parts of one column, by path, end to end. A part without any entry agrees with every type."""
    parts = {path: _without_levels(part) if part.dtype == "category" else part for path, part in parts.items()}
    filled = {path: part for path, part in parts.items() if part.notna().any()}
    kinds = {path: _kind(part) for path, part in filled.items()}
    (first, expected), *others = kinds.items() or [("", "")]
    for path, kind in others:
        if kind != expected:
            name = parts[path].name
            raise ValueError(f"{path}: found {kind} in {name!r}, expected {expected}, as in {first}")
    if len(filled) < len(parts) and filled:
        sample = filled[first]
        integral = isinstance(sample.dtype, np.dtype) and sample.dtype.kind in "biu"
        dtype = pd.array(sample.to_numpy()[:1]).dtype if integral else sample.dtype  # one that has missing entries
        parts = {
            path: part if path in filled else pd.Series([None] * len(part), dtype=dtype) for path, part in parts.items()
        }
    return pd.concat(list(parts.values()), ignore_index=True)


def _without_levels(part: pd.Series) -> pd.Series:
    """Categories as the text or numbers that they are; those of several files differ."""
    levels = part.cat.categories.dtype
    return part.astype(TEXT if _kind(pd.Series(dtype=levels)) == "text" else levels)


def _kind(part: pd.Series) -> str:
    if types.is_bool_dtype(part.dtype):
        return "truth values"
    if types.is_numeric_dtype(part.dtype):
        return "numbers"
    if types.is_datetime64_any_dtype(part.dtype):
        return f"dates of zone {part.dt.tz}"
    return "text" if types.is_string_dtype(part.dtype) else "objects"
