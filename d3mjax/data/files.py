"""The user's files: tables of all usual formats as frames, .npz files and data sets of TFDS as arrays.

    if files.is_table(source):
        frame, notes = files.read_table(source)  # text files: str in every cell; other formats: their types
    else:
        arrays = files.read_arrays(source)

Every function raises ``ValueError`` that names the file, what was found, and what is expected.
"""

import functools
import glob
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from d3mjax.data import file_kinds, file_parts, text_files, typed_files
from d3mjax.data.arrays import did_you_mean
from d3mjax.data.arrays import read as read_arrays
from d3mjax.data.text_files import RawTable

__all__ = ["check_named", "did_you_mean", "is_table", "read_arrays", "read_table"]

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
      ValueError: the source cannot be read as a table; names the file, what was found and what is expected.
    """
    paths = _paths(str(source))
    tables = [_read_file(path) for path in paths]
    return tables[0] if len(tables) == 1 else file_parts.joined(dict(zip(paths, tables, strict=True)))


def is_table(source: str | Path) -> bool:
    """Whether all columns of this source are features by themselves, and not one array of it."""
    return not str(source).startswith("tfds:") and Path(source).suffix.lower() != ".npz"


def check_named(columns: Iterable[str], source: str, needed: Mapping[str, Iterable[str]]) -> None:
    """Every column that an option names is there; ``needed``: option -> names."""
    for option, name in ((option, name) for option, names in needed.items() for name in names):
        if name not in columns:
            known = sorted(columns)
            raise ValueError(f"{option}: found no {name!r} in {source}, which has {known}.{did_you_mean(name, known)}")


def _paths(source: str) -> list[str]:
    """The files that a source names: one, several with commas between them, or those that match a pattern."""
    parts = [source] if os.path.exists(source) else [part.strip() for part in source.split(",") if part.strip()]
    is_pattern = lambda part: glob.has_magic(part) and not os.path.exists(part)
    matches = {part: sorted(glob.glob(part, recursive=True)) if is_pattern(part) else [part] for part in parts}
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
