"""The user's table with the proposed repair: what is unchanged stays byte for byte, what is new is spelled alike."""

# pandas comes without stubs: pyright infers unions of all that it may return.
# pyright: reportArgumentType=false

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from d3mjax.commands.diagnose_data import UserTable
from d3mjax.data import cells
from d3mjax.data.columns import CATEGORY, DATE, DROPPED, OTHER, TEXT, Column
from d3mjax.diagnosis.repair import Repaired
from d3mjax.runtime import store
from d3mjax.types import Table, is_regression

TYPED = (".parquet", ".feather", ".arrow")  # answered by .parquet, all other formats by .csv


def write(directory: Path, data: UserTable, repaired: Repaired, source: str, label: str) -> Path:
    """Write ``repaired.parquet`` or ``repaired.csv``: all columns of ``source``, and ``weight``."""
    frame = repaired_frame(data, repaired, label)
    if not source.lower().endswith(TYPED):
        store.write_bytes(directory / "repaired.csv", frame.to_csv(index=False, lineterminator="\n").encode())
        return directory / "repaired.csv"
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    store.write_bytes(directory / "repaired.parquet", buffer.getvalue())
    return directory / "repaired.parquet"


def repaired_frame(data: UserTable, repaired: Repaired, label: str) -> pd.DataFrame:
    """The user's frame with changed cells, changed labels, and a column ``weight``."""
    frame = data.raw.copy()
    for column in _writable(data):
        rows = np.flatnonzero(changed(data.train, repaired.table, column.name))
        if len(rows):
            new = [value(data, column, repaired.table, i) for i in rows.tolist()]
            frame[column.name] = _replaced(frame[column.name], rows, new)
    rows = np.flatnonzero(repaired.labels != data.y)
    frame[label] = _replaced(frame[label], rows, spelled_labels(data, repaired.labels[rows], label))
    return frame.assign(**{"weight" if "weight" not in frame else "d3mjax_weight": repaired.weights})


def spelled_labels(data: UserTable, labels: np.ndarray, label: str) -> list[Any]:
    """Labels as the user writes them: as another row of the class does, or numbers, whole where all of them are."""
    if is_regression(data.y):
        return [spelled_number(data, y) for y in labels]
    _, firsts = np.unique(data.y, return_index=True)
    return [data.raw[label].iloc[firsts[c]] for c in labels]


def spelled_number(data: UserTable, y: float) -> int | float:
    """A number whole where all labels are, else to six digits."""
    return round(float(y)) if (data.y == np.round(data.y)).all() else float(f"{y:.6g}")


def changes(data: UserTable, table: Table, i: int) -> list[str]:
    """``name: old -> new`` of every cell of a row that the repaired ``table`` changes."""
    columns = [c for c in _writable(data) if changed(data.train, table, c.name)[i]]
    return [f"{c.name}: {data.raw[c.name].iloc[i]} -> {value(data, c, table, i)}" for c in columns]


def changed(before: Table, after: Table, name: str) -> Bool[np.ndarray, "n"]:
    """Which entries of a column differ; missing ones are equal."""
    a, b = before.columns[name], after.columns[name]
    return (a != b) & ~((a != a) & (b != b))


def value(data: UserTable, column: Column, table: Table, i: int) -> Any:
    """An entry of a table as a cell of the user's column; "" where it is missing or one of several rare levels."""
    raw, entry = data.raw[column.name], table.columns[column.name][i]
    if column.kind == CATEGORY:
        level = table.levels[column.name][entry] if entry >= 0 else cells.MISSING
        return "" if level in (cells.MISSING, OTHER) else level
    if column.kind == DATE:
        moment = (data.origins[column.name] + pd.Timedelta(days=float(entry))).round("s")
        if raw.dtype == "str":
            return cells.written_date(moment, column.style)
        zone = getattr(raw.dtype, "tz", None)
        return moment.tz_localize("UTC").tz_convert(zone) if zone else moment
    if pd.api.types.is_integer_dtype(raw.dtype) or pd.api.types.is_bool_dtype(raw.dtype):
        return round(float(entry))
    return cells.written(float(entry), column.style) if raw.dtype == "str" else float(entry)


def _writable(data: UserTable) -> list[Column]:
    """The columns whose entries in the table stand for one cell."""
    return [c for c in data.columns if c.kind not in (DROPPED, TEXT) and c.name in data.train.columns]


def _replaced(values: pd.Series, rows: np.ndarray, new: list[Any]) -> pd.Series:
    """The column with other entries in some rows, of the same type where it holds them."""
    made = values.astype(object)
    made.iloc[rows] = [None if v == "" else v for v in new]
    try:
        return made.astype(values.dtype)
    except (TypeError, ValueError):
        return made.map(cells.spelled, na_action="ignore").astype("str")
