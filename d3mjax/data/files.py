"""The user's files as frames, as arrays, and as a `Split`: tables of all usual formats, .npz, any data set of TFDS.

One law for all formats. `read` gives columns as they are: numbers, or text. `parsed` makes a feature of a column:
float64 with NaN where a number is missing, or text with the level `MISSING`. Labels, groups and ids may not be missing;
an unknown group is -1, and ids default to row numbers.

Every function raises ``ValueError`` that names path and column, what was found, and what is expected.
"""

import csv
import functools
import glob
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from d3mjax.data import file_kinds, file_parts, text_files, typed_files
from d3mjax.data.arrays import did_you_mean, read_npz
from d3mjax.data.arrays import read as read_arrays
from d3mjax.data.splits import check_split
from d3mjax.data.text_files import RawTable
from d3mjax.types import Split

Columns = Mapping[str, np.ndarray]  # by name, one entry a row
Levels = Mapping[str, Sequence[str]]
MISSING = "missing"  # the level of text that is not there
_BLANKS = ("", "na", "nan", "null")  # what stands for missing in text, in lower case
TABLES = (".csv", ".parquet")
FORMATS = (*TABLES, ".npz")
_READERS = {
    file_kinds.PARQUET: typed_files.read_parquet,
    file_kinds.ARROW: typed_files.read_arrow,
    file_kinds.SHEET: typed_files.read_sheet,
    file_kinds.JSON: typed_files.read_json,
}


def read_table(source: str | Path) -> RawTable:
    """One table, as a frame with notes, of one file or of several: ``a.csv,b.csv`` or ``part-*.parquet``, end to end.

    Delimited text (.csv, .tsv, .txt) gives every cell as text, as it stands in the file, and missing where it is empty.
    .parquet, .feather, .arrow, .xlsx, .xls, .ods, .json and .jsonl keep their types. All may be packed (.gz, .bz2, .xz,
    .zst, .zip). Where content and suffix disagree, the content counts.

    Raises:
      ValueError: naming the file, what was found and what is expected, for whatever is no table.
    """
    paths = _paths(str(source))
    tables = [_read_file(path) for path in paths]
    return tables[0] if len(tables) == 1 else file_parts.joined(dict(zip(paths, tables, strict=True)))


def read(source: str | Path, *, data_dir: str | Path | None = None) -> dict[str, np.ndarray]:
    """The columns of a .csv, .parquet or .npz file, or the features of a split ``tfds:NAME:SPLIT`` of TFDS."""
    suffix = Path(source).suffix.lower()
    if str(source).startswith("tfds:"):
        return read_arrays(source, data_dir=data_dir)
    if suffix not in FORMATS:
        raise ValueError(f"found {str(source)!r}, expected a {', '.join(FORMATS)} file, or tfds:NAME:SPLIT")
    return {".csv": read_csv, ".parquet": read_parquet, ".npz": read_npz}[suffix](source)


def is_table(source: str | Path) -> bool:
    """Whether all columns of this source are features by themselves, and not one array of it."""
    return not str(source).startswith("tfds:") and Path(source).suffix.lower() != ".npz"


def read_csv(path: str | Path, *, delimiter: str = ",") -> dict[str, np.ndarray]:
    """The columns of a table with a header line: whole numbers, else floats, else text."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise ValueError(f"path: {path} is missing, empty or not text, expected a csv file ({error})") from error
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, line {line}: found {len(row)} fields, expected {len(header)}")
    if len(set(header)) != len(header) or not rows:
        raise ValueError(f"{path}: found header {header} and {len(rows)} rows, expected distinct names and rows")
    return {name: _numbers_or_text(values) for name, values in zip(header, zip(*rows, strict=True), strict=True)}


def read_parquet(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of a Parquet file: numbers, with NaN for nulls, and all else as text. Needs pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("read_parquet needs pyarrow: pip install 'd3mjax[commands]'") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"path: {path} is missing or damaged, expected a Parquet file ({error})") from error
    columns = {}
    for name in table.column_names:
        values = table.column(name)
        if values.null_count and (pa.types.is_boolean(values.type) or pa.types.is_null(values.type)):
            values = values.cast(pa.float32())  # a missing truth value is not text
        a = values.to_numpy()
        columns[name] = a if a.dtype.kind in "biuf" else np.array(["" if v is None else str(v) for v in a])
    return columns


def parsed(
    values: np.ndarray, name: str, source: str, *, categorical: bool = False, advice: str = "leave it out"
) -> np.ndarray:
    """A column as a feature: float64 with NaN for what is missing, or text with the level `MISSING`.

    Text whose entries are numbers, but for missing ones, is numbers. With ``categorical`` numbers become text.
    ``advice``: what to do with a column that is neither.
    """
    unknown = f"in {name!r}, a column of unknown kind, expected"
    if values.ndim != 1 or values.dtype.kind not in "biufU":
        found = f"{values.dtype}{list(values.shape)}"
        raise ValueError(f"{source}: found {found} {unknown} numbers or text, one for each row: change it, or {advice}")
    if values.dtype.kind != "U":
        numbers = values.astype(np.float64)
        if np.isinf(numbers).any():
            row = np.isinf(numbers).argmax()
            raise ValueError(f"{source}: found infinite numbers in {name!r}, in row {row}; expected finite ones")
        return np.array([MISSING if v != v else f"{v:g}" for v in numbers.tolist()]) if categorical else numbers
    text = np.char.strip(values)
    missing = _missing_of(text)
    if not categorical:
        present = text[~missing].tolist()
        number, other = (next((v for v in present if is_number(v) == kind), None) for kind in (True, False))
        if number is not None and other is not None:  # a stray '?' among ages must not make a category of every age
            found = f"both numbers ({number}) and text ({other!r})"
            raise ValueError(f"{source}: found {found} {unknown} one of them: clean it, or {advice}")
        if other is None:
            return parsed(np.where(missing, "nan", text).astype(np.float64), name, source)
    return np.where(missing, MISSING, text)


def features(columns: Columns, source: str, *, levels: Levels | None = None) -> Float32[np.ndarray, "n k"]:
    """Columns side by side: numbers, NaN where missing, and text one-hot over its sorted values or ``levels``."""
    levels, parts = levels or {}, []
    for name, values in columns.items():
        column = parsed(values, name, source, categorical=name in levels)
        if column.dtype.kind == "U":
            codes, num_levels = _codes(column, name, source, levels.get(name))
            parts.append(np.eye(num_levels, dtype=np.float32)[codes])
        else:
            parts.append(_float32(column[:, None]))
    return np.concatenate(parts, axis=1)


def text_levels(source: str | Path) -> dict[str, tuple[str, ...]]:
    """The sorted values of every text column of a table: ``levels`` that make the features of another file agree."""
    columns = {name: parsed(a, name, str(source)) for name, a in read(source).items()}
    return {name: tuple(np.unique(a).tolist()) for name, a in columns.items() if a.dtype.kind == "U"}


def read_split(
    source: str | Path,
    *,
    label: str = "y",
    group: str | None = None,
    id: str | None = None,
    feature: str | None = None,
    drop: Sequence[str] = (),
    levels: Levels | None = None,
    data_dir: str | Path | None = None,
) -> Split:
    """One source as a checked split. ``feature``: the array of features; None for a table: all its other columns.

    Text labels and groups are numbered in the order of their levels. ``levels`` fixes the values of text columns and
    their order: give `text_levels` of the training file when reading its test file.
    """
    columns, levels = read(source, data_dir=data_dir), levels or {}
    special = [name for name in (label, group, id) if name is not None]
    check_named(
        columns, str(source), {"label": [label], "group, id, feature": [*special[1:], *filter(None, [feature])]}
    )
    check_named(columns, str(source), {"drop": drop, "levels": levels})
    if feature is None:
        rest = {name: a for name, a in columns.items() if name not in {*special, *drop}}
        if not rest:
            raise ValueError(f"{source}: found columns {list(columns)}, expected features beside label, group and id")
        x = features(rest, str(source), levels=levels)
    else:
        x = _float32(_check_numeric(columns[feature], f"{source}, {feature}"))
    integers = [_integers(columns[name], name, str(source), levels.get(name)) for name in special]
    named = dict(zip(special, integers, strict=True))
    unknown, rows = np.full(len(x), -1, np.int32), np.arange(len(x), dtype=np.int32)
    split = Split(x, named[label], named.get(group or "", unknown), named.get(id or "", rows))
    check_split(split, name=str(source))
    return split


def _paths(source: str) -> list[str]:
    """The files that a source names: one, several with commas between them, or those that match a pattern."""
    parts = [source] if os.path.exists(source) else [part.strip() for part in source.split(",") if part.strip()]
    matches = {part: sorted(glob.glob(part, recursive=True)) if glob.has_magic(part) else [part] for part in parts}
    if absent := [part for part, paths in matches.items() if not paths]:
        raise ValueError(f"{absent[0]}: found no file that matches, expected one at least")
    unique = list(dict.fromkeys(path for paths in matches.values() for path in paths))
    if not unique:
        raise ValueError(f"found {source!r}, expected the name of a file")
    for path in unique:
        if os.path.isdir(path):
            raise ValueError(f"{path}: found a directory, expected a file, or several, as in {path.rstrip('/')}/*.csv")
        if not os.path.exists(path):
            folder = os.path.dirname(path) or "."
            names = os.listdir(folder) if os.path.isdir(folder) else []
            raise ValueError(f"{path}: found no such file.{did_you_mean(os.path.basename(path), names)}")
    return unique


def _read_file(path: str) -> RawTable:
    """One file, by its content."""
    open_file = functools.partial(file_kinds.unpacked, path)
    try:
        with open_file() as file:
            kind = file_kinds.kind(file.read(4096), path)
        if kind == file_kinds.TEXT:
            table = text_files.read(open_file, path)
        else:
            with open_file() as file:
                plain = file if file.seekable() else io.BytesIO(file.read())
                table = _READERS[kind](plain, path)
    except Exception as error:  # a damaged file raises nearly anything
        if type(error) is ValueError:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: is damaged, cut off or cannot be read ({reason})") from error
    suffix = file_kinds.suffix(path)
    if file_kinds.SUFFIXES.get(suffix, kind) != kind:
        table = table._replace(notes=(f"the file is named {suffix} and holds {kind}", *table.notes))
    return table


def _check_numeric(values: np.ndarray, source: str) -> np.ndarray:
    """An array of features ``[n, ...]``, itself, unless it holds no numbers."""
    if values.dtype.kind not in "biuf" or not values.ndim:
        raise ValueError(f"{source}: found {values.dtype}{list(values.shape)}, expected numbers, one row an example")
    return values


def check_named(columns: Iterable[str], source: str, needed: Mapping[str, Iterable[str]]) -> None:
    """Every column that an option names is there; ``needed``: option -> names."""
    for option, name in ((option, name) for option, names in needed.items() for name in names):
        if name not in columns:
            known = sorted(columns)
            raise ValueError(f"{option}: found no {name!r} in {source}, which has {known}.{did_you_mean(name, known)}")


def check_present(
    source: str, name: str, values: np.ndarray, *, hint: str = "; an unknown training group is -1"
) -> None:
    """Missing labels, groups and ids must not pass for a level of their own, as they may in features."""
    missing = _missing_of(values)
    if missing.any():
        row = int(np.argmax(missing))
        raise ValueError(
            f"{source}, column {name!r}: found {missing.sum()} missing values, first in row {row}, expected none{hint}"
        )


def _missing_of(values: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Which entries of a column are missing: NaN, or blank text."""
    return np.isnan(values) if values.dtype.kind == "f" else np.isin(np.char.lower(values.astype(str)), _BLANKS)


def is_number(text: str) -> bool:
    """Whether ``float`` takes the text."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _float32(a: np.ndarray) -> np.ndarray:
    """What does not fit becomes infinite, and `splits.check_split` names its row."""
    with np.errstate(over="ignore"):
        return a.astype(np.float32)


def _numbers_or_text(values: Sequence[str]) -> np.ndarray:
    for dtype in (np.int64, np.float64):
        try:
            return np.array(values).astype(dtype)
        except (ValueError, OverflowError):
            pass
    return np.array(values)


def _codes(values: np.ndarray, name: str, source: str, levels: Sequence[str] | None) -> tuple[np.ndarray, int]:
    """Position of each value among the levels, and their number."""
    known = np.unique(values).tolist() if levels is None else list(levels)
    at = {level: i for i, level in enumerate(known)}
    if unknown := sorted(set(values.tolist()) - set(known)):
        raise ValueError(f"{source}, column {name!r}: found {unknown[:3]}, expected levels {known}")
    return np.array([at[value] for value in values.tolist()]), len(known)


def _integers(values: np.ndarray, name: str, source: str, levels: Sequence[str] | None) -> np.ndarray:
    """Labels, groups or ids as int32."""
    check_present(source, name, values)
    if values.dtype.kind == "U" or levels is not None:
        return _codes(values.astype(str), name, source, levels)[0].astype(np.int32)
    if values.dtype.kind in "biu" or (values.dtype.kind == "f" and np.array_equal(values, np.round(values))):
        return values.astype(np.int32)
    raise ValueError(f"{source}, {name}: found {values.dtype}, expected whole numbers or text")
