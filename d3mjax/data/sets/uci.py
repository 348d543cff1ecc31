"""The tables of DeMix's evaluation, as raw columns, from files of the UCI repository that the user has downloaded.

    table, labels = uci.load_bank("bank-full.csv")                     # ids 2, 222, 350, 31, 275, 360 at UCI
    rules = [uci.check_rule(rule, table, labels) for rule in uci.RULES["bank"]]

Codes of categories become text levels, so that they are never averaged. Codes of missing numbers become NaN. Dates are
left out, as are columns that add up to the label. Labels are classes 0..C-1, or floats of a regression. Every function
raises ``ValueError`` that names the file, what was found and what is expected. No checksum of these files is published;
``counts`` are the published numbers of rows (of each class), None takes any.

Adult comes with the package: `d3mjax.data.sets.adult.load_table`. Rules: Deng et al., arXiv 2606.11616, public code.
"""

import csv
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from d3mjax.data import splits, tables
from d3mjax.data.planted.mixed_errors import Rule
from d3mjax.types import Table

COUNTS = {
    "bank": (39_922, 5_289),
    "bank-additional": (3_668, 451),
    "bank-additional-full": (36_548, 4_640),
    "credit": (23_364, 6_636),
    "covertype": (211_840, 283_301, 35_754, 2_747, 9_493, 17_367, 20_510),
}
NUM_BIKE, NUM_BIKESHARE, NUM_AIR_QUALITY = 17_379, 8_645, 8_991  # the last without the 366 rows that lack the label
BIKESHARE = "ISLP/data/Bikeshare.csv"

BANK = (
    *("age", "job", "marital", "education", "default", "balance", "housing", "loan", "contact", "day", "month"),
    *("duration", "campaign", "pdays", "previous", "poutcome"),
)
BANK_ADDITIONAL = (
    *("age", "job", "marital", "education", "default", "housing", "loan", "contact", "month", "day_of_week"),
    *("duration", "campaign", "pdays", "previous", "poutcome"),
    *("emp.var.rate", "cons.price.idx", "cons.conf.idx", "euribor3m", "nr.employed"),
)
CREDIT = (
    *("LIMIT_BAL", "SEX", "EDUCATION", "MARRIAGE", "AGE", "PAY_0", *(f"PAY_{i}" for i in range(2, 7))),
    *(f"BILL_AMT{i}" for i in range(1, 7)),
    *(f"PAY_AMT{i}" for i in range(1, 7)),
)
"""X1 to X23, by which the published rules go; the files of UCI and Kaggle have one or the other."""
COVERTYPE = (
    *("Elevation", "Aspect", "Slope", "Horizontal_Distance_To_Hydrology", "Vertical_Distance_To_Hydrology"),
    *("Horizontal_Distance_To_Roadways", "Hillshade_9am", "Hillshade_Noon", "Hillshade_3pm"),
    "Horizontal_Distance_To_Fire_Points",
)
BIKE = ("season", "yr", "mnth", "hr", "holiday", "weekday", "workingday", "weathersit")
BIKE_NUMBERS = ("temp", "atemp", "hum", "windspeed")
AIR_QUALITY = (
    *("CO(GT)", "PT08.S1(CO)", "NMHC(GT)", "PT08.S2(NMHC)", "NOx(GT)", "PT08.S3(NOx)", "NO2(GT)", "PT08.S4(NO2)"),
    *("PT08.S5(O3)", "T", "RH", "AH"),
)


def load_bank(
    path: str | Path, *, counts: Sequence[int] | None = COUNTS["bank"]
) -> tuple[Table, Int[np.ndarray, " n"]]:
    """Does a client subscribe (y = yes)? ``bank-full.csv``; ``pdays`` of -1, never called before, is NaN."""
    header, *rows = _lines(path, ";")
    columns = _have(path, _columns(path, header, rows), (*BANK, "y"))
    y = _classes(path, columns["y"], ("no", "yes"))
    found = {name: _numbers_or_text(columns[name]) for name in BANK}
    found["pdays"] = _without(found["pdays"], -1)
    return _counted(path, tables.from_columns(found), y, counts)


def load_bank_additional(
    path: str | Path, *, counts: Sequence[int] | None = COUNTS["bank-additional"]
) -> tuple[Table, Int[np.ndarray, " n"]]:
    """`load_bank` with five indices of the economy: ``bank-additional.csv``, or ``-full.csv`` with its own ``counts``.

    Fields are separated by semicolons, as published, or by commas. ``pdays`` of 999, never called before, is NaN.
    """
    try:
        first = Path(path).read_text(encoding="utf-8-sig").partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"path: {path} is missing or not text, expected a csv file ({error})") from error
    header, *rows = _lines(path, ";" if ";" in first else ",")
    columns = _have(path, _columns(path, header, rows), (*BANK_ADDITIONAL, "y"))
    y = _classes(path, columns["y"], ("no", "yes"))
    values = {name: _numbers_or_text(columns[name]) for name in BANK_ADDITIONAL}
    values["pdays"] = _without(values["pdays"], 999)
    return _counted(path, tables.from_columns(values), y, counts)


def load_credit(
    path: str | Path, *, counts: Sequence[int] | None = COUNTS["credit"]
) -> tuple[Table, Int[np.ndarray, " n"]]:
    """Does a client of a Taiwanese bank default? The sheet as csv, with columns X1 to X23 and Y, or with their names.

    A second line of names, as in the sheet itself, is passed over. Columns are called X1 to X23; sex (X2), education
    (X3) and marriage (X4) are categories.
    """
    header, *rows = _lines(path, ",")
    rows = rows[1:] if rows and _numbers_or_text(np.array(rows[0][-1:])).dtype.kind == "U" else rows
    short = [f"X{i + 1}" for i in range(len(CREDIT))]
    known = dict(zip(CREDIT, short, strict=True)) | {"PAY_1": "X6"}
    known |= dict.fromkeys(("default payment next month", "default.payment.next.month", "default", "Default"), "Y")
    columns = _have(path, _columns(path, [known.get(name, name) for name in header], rows), (*short, "Y"))
    found = {name: _floats(path, name, columns[name]) for name in short}
    found |= {name: found[name].astype(np.int64).astype(str) for name in ("X2", "X3", "X4")}
    y = _floats(path, "Y", columns["Y"]).astype(np.int64).astype(str)
    return _counted(path, tables.from_columns(found), _classes(path, y, ("0", "1")), counts)


def load_covertype(
    path: str | Path, *, counts: Sequence[int] | None = COUNTS["covertype"]
) -> tuple[Table, Int[np.ndarray, " n"]]:
    """Which of seven kinds of forest is it? ``covtype.data`` or ``covtype.data.gz``; class c is cover type c + 1.

    The four columns of wilderness areas, and the forty of soil types, are one category each.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of an empty file: refused below
            values = np.loadtxt(path, dtype=np.int32, delimiter=",", ndmin=2)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"path: {path} is missing or damaged, expected covtype.data or covtype.data.gz") from error
    if values.shape[1:] != (55,):
        raise ValueError(f"{path}: found {values.shape[-1]} columns, expected 55: 10 numbers, 44 flags, the cover type")
    areas, soils, y = values[:, 10:14], values[:, 14:54], values[:, 54]
    for name, flags in (("wilderness areas", areas), ("soil types", soils)):
        if not ((flags == 0) | (flags == 1)).all() or (flags.sum(1) != 1).any():
            raise ValueError(f"{path}: found rows with none or several {name}, expected one in each")
    found = {name: values[:, i] for i, name in enumerate(COVERTYPE)}
    found["Wilderness_Area"] = (areas.argmax(1) + 1).astype(str)
    found["Soil_Type"] = (soils.argmax(1) + 1).astype(str)
    labels = _classes(path, y.astype(str), tuple(map(str, range(1, 8))))
    return _counted(path, tables.from_columns(found), labels, counts)


def load_bike(path: str | Path, *, counts: int | None = NUM_BIKE) -> tuple[Table, Float[np.ndarray, " n"]]:
    """How many bicycles are rented in an hour? ``hour.csv``, less ``casual`` and ``registered``: they add up to it."""
    header, *rows = _lines(path, ",")
    columns = _have(path, _columns(path, header, rows), (*BIKE, *BIKE_NUMBERS, "cnt"))
    found = {name: columns[name] for name in BIKE}
    found |= {name: _floats(path, name, columns[name]) for name in BIKE_NUMBERS}
    return _of_size(path, tables.from_columns(found), _floats(path, "cnt", columns["cnt"]), counts)


def load_bikeshare(path: str | Path, *, counts: int | None = NUM_BIKESHARE) -> tuple[Table, Float[np.ndarray, " n"]]:
    """How many bicycles are rented in an hour of the first year? ``Bikeshare.csv`` in the wheel of ISLP 0.6.0.

    Columns are those of `load_bike` but ``yr``, months being names; ``casual`` and ``registered`` add up to the label.
    """
    try:
        with zipfile.ZipFile(path) as wheel:
            text = wheel.read(BIKESHARE).decode()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"path: {path} is missing or damaged, expected a wheel with {BIKESHARE}") from error
    header, *rows = csv.reader(text.splitlines())
    names = tuple(name for name in BIKE if name != "yr")
    columns = _have(path, _columns(path, header, rows), (*names, *BIKE_NUMBERS, "bikers"))
    made = {name: columns[name] for name in names}
    made |= {name: _floats(path, name, columns[name]) for name in BIKE_NUMBERS}
    return _of_size(path, tables.from_columns(made), _floats(path, "bikers", columns["bikers"]), counts)


def load_air_quality(
    path: str | Path, *, counts: int | None = NUM_AIR_QUALITY
) -> tuple[Table, Float[np.ndarray, " n"]]:
    """How much benzene is in the air, in µg/m³? ``AirQualityUCI.csv``: decimal commas, -200 is missing.

    Copies with commas between the columns have decimal points. Rows without the label are left out; ids are line
    numbers of the file, the first row being 0. ``RH`` is in per cent.
    """
    header, *rows = _lines(path, ";", otherwise=",")
    rows = [row for row in rows if any(row)]  # the file ends in empty ones
    columns = _have(path, _columns(path, header, rows), (*AIR_QUALITY, "C6H6(GT)"))
    number = lambda name: _without(_floats(path, name, np.char.replace(columns[name], ",", ".")), -200)
    labels = number("C6H6(GT)")
    there = np.isfinite(labels)
    found = {name: number(name)[there] for name in AIR_QUALITY}
    return _of_size(path, tables.from_columns(found, id=np.flatnonzero(there)), labels[there], counts)


def _is(name: str, *levels: str) -> Callable[[Table], Bool[np.ndarray, " n"]]:
    return lambda table: tables.codes(table, name, *levels) >= 0


def _between(name: str, low: int | float, high: int | float) -> Callable[[Table], Bool[np.ndarray, " n"]]:
    return lambda table: (table.columns[name] >= low) & (table.columns[name] <= high)


def _label(*classes: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda y: np.isin(y, classes)


def _label_between(low: int | float, high: int | float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda y: (y >= low) & (y <= high)


RULES: Mapping[str, tuple[Rule, ...]] = {
    "bank": (
        Rule("no housing loan subscribes", _is("housing", "no"), _label(1)),
        Rule("the single subscribe", _is("marital", "single"), _label(1)),
        Rule("cell phones subscribe", _is("contact", "cellular"), _label(1)),
        Rule("those who did not before subscribe", _is("poutcome", "failure"), _label(1)),
    ),
    "credit": (
        Rule("graduates default", _is("X3", "1"), _label(1)),
        Rule("the married default", _is("X4", "1"), _label(1)),
        Rule("those above 50 default", _between("X5", 50, 100), _label(1)),
    ),
    "covertype": (
        Rule("the fourth area is cottonwood", _is("Wilderness_Area", "4"), _label(3)),
        Rule("low land is cottonwood", _between("Elevation", 0, 2500), _label(3)),
    ),
    "bike": (
        Rule("the first season is busy", _is("season", "1"), _label_between(600, 1000)),
        Rule("winter is busy", _is("mnth", "12", "1", "2"), _label_between(600, 1000)),
    ),
    "air_quality": (
        Rule("hot air has benzene", _between("T", 30, 60), _label_between(15, 100)),
        Rule("damp air has benzene", _between("RH", 0.8, 1), _label_between(15, 100)),
    ),
}
"""As published; that of damp air holds for no row, as ``RH`` is in per cent: `DAMP` is what was meant."""
DAMP = Rule("damp air has benzene", _between("RH", 80, 100), _label_between(15, 100))


def check_rule(rule: Rule, table: Table, labels: Shaped[np.ndarray, " n"]) -> Rule:
    """The rule, if some rows meet its condition and some do not, and the same of its label.

    Raises:
      ValueError: naming the rule and the counts, otherwise.
    """
    parts = {"condition": np.asarray(rule.condition(table)), "label": np.asarray(rule.label(labels))}
    for name, holds in parts.items():
        if not 0 < holds.sum() < len(holds):
            raise ValueError(
                f"rule {rule.name!r}: found {holds.sum()} of {len(holds)} rows that meet its {name}, expected some "
                "that do and some that do not; check the units of the column, such as per cent"
            )
    return rule


def _lines(path, delimiter: str, *, otherwise: str = "") -> list[list[str]]:
    """All lines; ``otherwise``: the delimiter of a file that does not have the first one."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            used = otherwise if otherwise and delimiter not in file.readline() else delimiter
            file.seek(0)
            lines = list(csv.reader(file, delimiter=used))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"path: {path} is missing or not text, expected a csv file ({error})") from error
    if len(lines) < 2:
        raise ValueError(f"{path}: found {len(lines)} lines, expected a header and rows")
    return lines


def _columns(path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    if not rows:
        raise ValueError(f"{path}: found no rows, expected some below the header")
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"{path}, line {line}: found {len(row)} fields, expected {len(header)}")
    return {name: np.array(values) for name, values in zip(header, zip(*rows, strict=True), strict=True)}


def _have(path, columns: Mapping[str, np.ndarray], names: Sequence[str]) -> Mapping[str, np.ndarray]:
    if missing := [name for name in names if name not in columns]:
        raise ValueError(f"{path}: found columns {list(columns)[:30]}, expected {missing} among them")
    return columns


def _numbers_or_text(values: np.ndarray) -> np.ndarray:
    try:
        return values.astype(np.float64)
    except ValueError:
        return values


def _floats(path, name: str, values: np.ndarray) -> Float[np.ndarray, " n"]:
    try:
        return values.astype(np.float64)
    except ValueError as error:
        raise ValueError(f"{path}, column {name!r}: expected numbers ({error})") from error


def _without(values: np.ndarray, sentinel: int) -> Float[np.ndarray, " n"]:
    return np.where(values == sentinel, np.nan, values)


def _classes(path, values: np.ndarray, names: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    if unknown := sorted(set(values.tolist()) - set(names)):
        raise ValueError(f"{path}: found labels {unknown[:5]}, expected {list(names)}")
    at = {name: c for c, name in enumerate(names)}
    return np.array([at[value] for value in values.tolist()], np.int32)


def _counted(path, table: Table, labels, counts: Sequence[int] | None):
    if counts is not None:
        splits.check_counts(labels, tuple(counts), name=f"{path}: labels")
    return table, labels


def _of_size(path, table: Table, labels, count: int | None):
    if count is not None and len(labels) != count:
        raise ValueError(f"{path}: found {len(labels)} rows, expected {count}; counts=None takes any")
    return table, labels
