"""Files whose cells have types, as frames: Parquet, Arrow and Feather, Excel and OpenDocument, JSON.

Integers and truth values with missing entries stay what they are (``Int64``, ``boolean``); decimals and dates with
zones, too. Lists and structures stay objects.
"""

import contextlib
import datetime
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as arrow_parquet

from d3mjax.data.text_files import TEXT, RawTable, check_header, counted, preamble, unique_names

_NULLABLE = {pa.bool_(): pd.BooleanDtype()} | {
    getattr(pa, name.lower())(): getattr(pd, f"{name}Dtype")()
    for name in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
}
_INT64 = np.iinfo(np.int64)


def read_parquet(file: Any, path: str) -> RawTable:
    """A Parquet file. Its index, if it has one, is a column like others."""
    return _of_arrow(arrow_parquet.read_table(file, pre_buffer=False), path)


def read_arrow(file: Any, path: str) -> RawTable:
    """An Arrow file or stream, or Feather."""
    try:
        return _of_arrow(pa.ipc.open_file(file).read_all(), path)
    except pa.ArrowInvalid:
        file.seek(0)
        return _of_arrow(pa.ipc.open_stream(file).read_all(), path)


def read_sheet(file: Any, path: str) -> RawTable:
    """The first sheet of an Excel or OpenDocument file that holds rows."""
    import python_calamine

    book = python_calamine.CalamineWorkbook.from_filelike(file)
    sheets = {name: book.get_sheet_by_name(name).to_python() for name in book.sheet_names}
    filled = {name: [row for row in rows if any(cell != "" for cell in row)] for name, rows in sheets.items()}
    filled = {name: rows for name, rows in filled.items() if rows}
    if not filled:
        raise ValueError(f"{path}: found no cells, expected a header line and rows")
    name, rows = next(iter(filled.items()))
    notes = [f"read sheet {name!r}, the first of {len(filled)}"] if len(filled) > 1 else []
    width = len(rows[0])
    if skipped := preamble(rows, width):
        notes.append(f"left out {counted(skipped, 'line')} above the header")
    header, data = [_plain(cell) for cell in rows[skipped]], rows[skipped + 1 :]
    if not data:
        raise ValueError(f"{path}: found a header and no rows, expected at least one row")
    check_header(header, path)
    columns = [[None if cell == "" else _plain(cell) for cell in column] for column in zip(*data, strict=True)]
    kept = [i for i in range(width) if str(header[i]).strip() or any(cell is not None for cell in columns[i])]
    names, unnamed = unique_names([header[i] for i in kept], path)
    frame = pd.DataFrame({name: typed(columns[i]) for name, i in zip(names, kept, strict=True)}, copy=False)
    return RawTable(frame, (*notes, *unnamed))


def read_json(file: Any, path: str) -> RawTable:
    """A list of records, one record a line, or columns by name, as pandas writes them."""
    with io.TextIOWrapper(file, "utf-8-sig") as text:
        return _json(text, path)


def _json(text: io.TextIOBase, path: str) -> RawTable:
    start = text.read(1 << 16).lstrip()[:1]
    text.seek(0)
    if start != "[":
        records = _json_lines(text, path)
        if len(records) == 1:
            columns = list(records[0].values())
            if columns and all(isinstance(column, dict) for column in columns):  # {name: {index: value}}
                return _of_columns({k: list(v.values()) for k, v in records[0].items()}, path)
            if columns and all(isinstance(column, list) for column in columns):
                return _of_columns(records[0], path)
        return _of_records(records, path)
    try:
        records = json.load(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: found no JSON ({error.msg}), expected a list of records"
        ) from error
    if not all(isinstance(record, dict) for record in records):
        raise ValueError(f'{path}: found a list of other things, expected records, as in [{{"age": 31}}, ...]')
    return _of_records(records, path)


def typed(values: Sequence[Any]) -> pd.Series:
    """A column of one type, by the Python values in it: text where they are of several kinds."""
    present = [value for value in values if value is not None]
    kinds = {type(value) for value in present}
    missing = len(present) < len(values)
    if kinds & {list, dict}:
        return pd.Series(values, dtype=object)
    if kinds == {bool}:
        return pd.Series(values, dtype="boolean" if missing else "bool")
    if kinds == {int} and all(_INT64.min <= value <= _INT64.max for value in present):
        return pd.Series(values, dtype="Int64" if missing else "int64")
    if not kinds or (kinds <= {int, float} and float in kinds):
        with contextlib.suppress(OverflowError):
            return pd.Series(values, dtype="float64")
    if kinds and kinds <= {datetime.date, datetime.datetime}:
        return pd.Series(pd.to_datetime(pd.Series(values, dtype=object)))
    return pd.Series([None if value is None else str(value) for value in values], dtype=TEXT)


def _plain(cell: Any) -> Any:
    """Whole numbers without a point: spreadsheets hold floats only."""
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell


def _json_lines(lines: Iterable[str], path: str) -> list[dict[str, Any]]:
    """One record a line, or one in all lines."""
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == 1:
                try:
                    return [json.loads(line + "".join(lines))]
                except json.JSONDecodeError:
                    pass
            raise ValueError(f"{path}, line {number}: found no JSON ({error.msg}), expected a record") from error
        if not isinstance(record, dict):
            raise ValueError(
                f'{path}, line {number}: found {line.strip()[:40]}, expected a record, as in {{"age": 31}}'
            )
        records.append(record)
    return records


def _of_records(records: Sequence[Mapping[str, Any]], path: str) -> RawTable:
    """Columns in the order in which they first occur; a key that a record lacks is missing."""
    names = dict.fromkeys(name for record in records for name in record)
    return _of_columns({name: [record.get(name) for record in records] for name in names}, path)


def _of_columns(columns: Mapping[str, Sequence[Any]], path: str) -> RawTable:
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"{path}: found columns of {sorted(lengths)} rows, expected one common number, at least 1")
    names, notes = unique_names(list(columns), path)
    series = [typed(values) for values in columns.values()]
    return RawTable(pd.DataFrame(dict(zip(names, series, strict=True)), copy=False), tuple(notes))


def _of_arrow(table: pa.Table, path: str) -> RawTable:
    """A frame, column by column, so that no two copies of the table are in memory."""
    if not table.num_rows or not table.num_columns:
        raise ValueError(f"{path}: found {table.num_rows} rows of {table.num_columns} columns, expected at least one")
    names, notes = unique_names(table.column_names, path)
    columns, frame = table.columns, {}
    del table
    for name in names:
        frame[name] = _series(columns.pop(0))
    return RawTable(pd.DataFrame(frame, copy=False), tuple(notes))


def _series(column: pa.ChunkedArray) -> pd.Series:
    if pa.types.is_null(column.type):
        column = column.cast(pa.float64())
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        with contextlib.suppress(pa.ArrowInvalid):
            column = column.cast(pa.large_string())  # text of writers that do not mark it
    missing = column.null_count > 0
    return column.to_pandas(types_mapper=lambda kind: _dtype(kind, missing), date_as_object=False)


def _dtype(kind: pa.DataType, missing: bool) -> Any:
    """The type of pandas that holds an Arrow type without loss, where the usual one does not."""
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return TEXT
    if pa.types.is_decimal(kind):
        return pd.ArrowDtype(kind)
    return _NULLABLE.get(kind) if missing else None
