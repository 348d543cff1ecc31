"""The user's own data as a ``Split``: npz, csv and parquet files, and any data set of TFDS.

Everywhere, an unknown group is -1 and ids default to row numbers. Every function raises ``ValueError`` that names the
path or the argument, what was found and what is expected. Those called ``read_`` give columns by name as they are;
those called ``from_`` hand their result through ``splits.check_split``.
"""

import csv
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from d3mjax.data.sets import builders
from d3mjax.data.splits import check_split
from d3mjax.types import Split

Levels = Mapping[str, Sequence[str]]
MISSING = ("", "na", "nan", "null")  # in lower case, among text


def from_npz(path: str | Path, *, x: str = "x", y: str = "y", group: str | None = None, id: str | None = None) -> Split:
    """Arrays of an ``.npz`` file by name: features, integer labels, and optionally groups and ids."""
    columns = read_npz(path)
    return _split(columns, str(path), columns.get(x), x=x, y=y, group=group, id=id)


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file by name."""
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # a damaged zip raises nearly anything
        raise ValueError(f"path: {path} is missing or damaged, expected an .npz file ({error})") from error


def from_csv(
    path: str | Path,
    *,
    label: str,
    group: str | None = None,
    id: str | None = None,
    drop: Sequence[str] = (),
    levels: Levels | None = None,
    delimiter: str = ",",
) -> Split:
    """A table with a header line: x is float32 [n, k], numbers as they are and text columns one-hot.

    ``levels`` fixes the values of text columns and their order; the others use their own sorted values. Give the
    training file's ``csv_levels(path)`` when reading its test file, so that both have the same columns. Text labels
    and groups are numbered in the order of their levels in the same way.
    """
    return _from_table(read_csv(path, delimiter=delimiter), str(path), label, group, id, drop, levels)


def csv_levels(path: str | Path, *, delimiter: str = ",") -> dict[str, tuple[str, ...]]:
    """The sorted values of every text column."""
    columns = read_csv(path, delimiter=delimiter)
    return {name: _own_levels(a) for name, a in columns.items() if a.dtype.kind == "U"}


def from_parquet(
    path: str | Path,
    *,
    label: str,
    group: str | None = None,
    id: str | None = None,
    drop: Sequence[str] = (),
    levels: Levels | None = None,
) -> Split:
    """As ``from_csv``, for a Parquet file. Raises ``ImportError`` without pyarrow."""
    return _from_table(read_parquet(path), str(path), label, group, id, drop, levels)


def read_parquet(path: str | Path, *, nulls: bool = False) -> dict[str, np.ndarray]:
    """The columns of a Parquet file: numbers as they are, everything else as text.

    Nulls are refused, or with ``nulls`` become NaN among numbers and empty text.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("read_parquet needs pyarrow: pip install 'd3mjax[experiments]'") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"path: {path} is missing or damaged, expected a Parquet file ({error})") from error
    columns = {}
    for name in table.column_names:
        values = table.column(name)
        if values.null_count and not nulls:
            raise ValueError(f"{path}, column {name!r}: found {values.null_count} nulls, expected none")
        if values.null_count and (pa.types.is_boolean(values.type) or pa.types.is_null(values.type)):
            values = values.cast(pa.float32())  # a missing truth value is no text
        a = values.to_numpy()
        columns[name] = a if a.dtype.kind in "biuf" else np.array(["" if v is None else str(v) for v in a])
    return columns


def from_tfds(
    name: str,
    *,
    split: str,
    feature: str = "image",
    label: str = "label",
    group: str | None = None,
    id: str | None = None,
    data_dir: str | Path | None = None,
) -> Split:
    """One split of any TFDS data set, read through ``as_data_source`` without TensorFlow.

    uint8 features become float32 in 0..1. The data set must be on disk as ``array_record``; if it is not prepared
    yet, it is built here where its builder works without TensorFlow. Ids are row numbers in the split unless ``id``
    names a feature.
    """
    rows = read_tfds(name, split=split, data_dir=data_dir)
    wanted = {key for key in (feature, label, group, id) if key is not None}
    if missing := sorted(wanted - set(rows[0])):
        raise ValueError(f"{name}: found features {sorted(rows[0])}, expected {missing} among them")
    columns = {key: np.array([row[key] for row in rows]) for key in wanted}
    x = columns[feature]
    x = x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32)
    return _split(columns, name, x, x=feature, y=label, group=group, id=id)


def read_tfds(name: str, *, split: str, data_dir: str | Path | None = None) -> list[dict[str, Any]]:
    """The examples of one split as they are, by name of feature; see ``from_tfds``."""
    try:
        with builders.quiet():
            builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        known = tfds.list_builders(with_community_datasets=False)
        close = difflib.get_close_matches(name.split("/")[0].split(":")[0], known, n=3)
        hint = f"Did you mean {', '.join(close)}?" if close else "See tfds.list_builders()."
        raise ValueError(f"name: TFDS knows no data set {name!r}. {hint}") from error
    try:
        with builders.quiet():
            builder.download_and_prepare(file_format="array_record")
            return builders.read_rows(builder, split)
    except Exception as error:
        found = f"splits {list(builder.info.splits)}" if builder.is_prepared() else "nothing prepared"
        raise ValueError(
            f"{name}, split {split!r}: cannot be read from {builder.data_dir}, found {found} ({error}). Expected an "
            "existing split, prepared as array_record; where its builder needs TensorFlow, prepare it elsewhere with "
            "download_and_prepare(file_format='array_record') and give its data_dir."
        ) from error


def read_csv(path: str | Path, *, delimiter: str = ",") -> dict[str, np.ndarray]:
    """The columns of a table with a header line: whole numbers, else floats, else text."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise ValueError(f"path: {path} is missing, empty or no text, expected a csv file ({error})") from error
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, line {line}: found {len(row)} fields, expected {len(header)}")
    if len(set(header)) != len(header) or not rows:
        raise ValueError(f"{path}: found header {header} and {len(rows)} rows, expected distinct names and rows")
    return {name: _numbers_or_text(values) for name, values in zip(header, zip(*rows, strict=True), strict=True)}


def _numbers_or_text(values: Sequence[str]) -> np.ndarray:
    for dtype in (np.int64, np.float64):
        try:
            return np.array(values).astype(dtype)
        except (ValueError, OverflowError):
            pass
    return np.array(values)


def _own_levels(values: np.ndarray) -> tuple[str, ...]:
    return tuple(sorted({str(v) for v in values}))


def is_number(text: str) -> bool:
    """Whether ``float`` takes it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _codes(path: str, name: str, values: np.ndarray, levels: Levels) -> tuple[np.ndarray, int]:
    """Position of each value among the column's levels, and their number."""
    text = [str(v) for v in values]
    given = levels.get(name)
    if given is None and (number := next((v for v in text if is_number(v)), None)) is not None:
        # A stray '?' among ages must not turn each age into a column of its own.
        other = next(v for v in text if not is_number(v))
        raise ValueError(
            f"{path}, column {name!r}: found both numbers ({number}) and text ({other!r}), expected one of them; "
            f"clean the column, drop it, or give levels={{{name!r}: [...]}}"
        )
    at = {level: i for i, level in enumerate(_own_levels(values) if given is None else given)}
    if unknown := sorted(set(text) - set(at)):
        raise ValueError(f"{path}, column {name!r}: found {unknown[:3]}, expected levels {list(at)}")
    return np.array([at[v] for v in text]), len(at)


def _from_table(
    columns: dict[str, np.ndarray],
    path: str,
    label: str,
    group: str | None,
    id: str | None,
    drop: Sequence[str],
    levels: Levels | None,
) -> Split:
    levels = levels or {}
    if unknown := sorted((set(drop) | set(levels)) - set(columns)):
        raise ValueError(f"drop, levels: found {unknown}, expected columns of {path}: {sorted(columns)}")
    special = {name for name in (label, group, id) if name is not None}
    for name in special & set(columns):
        check_present(path, name, columns[name])
    coded = {
        name: _codes(path, name, columns[name], levels)[0]
        for name in special & set(columns)
        if columns[name].dtype.kind == "U" or name in levels
    }
    rest = {name: a for name, a in columns.items() if name not in special | set(drop)}
    x = table_features(rest, path, levels) if rest else None
    return _split({**columns, **coded}, path, x, x="features", y=label, group=group, id=id)


def table_features(columns: Mapping[str, np.ndarray], source: str, levels: Levels) -> np.ndarray:
    """float32 [n, k]: numbers as they are, text columns and those of ``levels`` one-hot; ``source`` is for errors."""
    features = []
    for name, values in columns.items():
        if values.dtype.kind == "U" or name in levels:
            codes, num_levels = _codes(source, name, values, levels)
            features.append(np.eye(num_levels, dtype=np.float32)[codes])
        else:
            features.append(_float32(values[:, None]))
    return np.concatenate(features, axis=1)


def _split(
    columns: Mapping[str, np.ndarray],
    source: str,
    features: np.ndarray | None,
    *,
    x: str,
    y: str,
    group: str | None,
    id: str | None,
) -> Split:
    """Named columns as a checked split; ``features`` None means that there were none under the name ``x``."""
    named = {"y": y, "group": group, "id": id}
    if missing := [name for name in named.values() if name is not None and name not in columns]:
        raise ValueError(f"{source}: found {sorted(columns)}, expected {missing} among them")
    if features is None or features.dtype.kind not in "biuf" or not features.ndim:
        found = "none" if features is None else f"{features.dtype}{list(features.shape)}"
        raise ValueError(f"{source}, {x}: found {found}, expected numeric features with one row an example")
    num_examples = len(features)
    integers = {
        "y": _integers(source, y, columns[y]),
        "group": np.full(num_examples, -1) if group is None else _integers(source, group, columns[group]),
        "id": np.arange(num_examples) if id is None else _integers(source, id, columns[id]),
    }
    x32 = _float32(features)
    check_split(Split(x32, **integers), name=source)
    return Split(x32, **{key: a.astype(np.int32) for key, a in integers.items()})


def _float32(a: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and check_split names its row
        return a.astype(np.float32)


def check_present(
    source: str, name: str, values: np.ndarray, *, hint: str = "; an unknown training group is -1"
) -> None:
    """Missing labels, groups and ids must not pass for a level of their own, as they may in features."""
    missing = np.isnan(values) if values.dtype.kind == "f" else np.isin(np.char.lower(values.astype(str)), MISSING)
    if missing.any():
        row = int(np.argmax(missing))
        raise ValueError(
            f"{source}, column {name!r}: found {missing.sum()} missing values, first in row {row}, expected none{hint}"
        )


def _integers(source: str, name: str, values: np.ndarray) -> np.ndarray:
    check_present(source, name, values)
    if values.dtype.kind in "biu" or (values.dtype.kind == "f" and np.array_equal(values, np.round(values))):
        return values.astype(np.int64)
    raise ValueError(f"{source}, {name}: found {values.dtype}, expected whole numbers")
