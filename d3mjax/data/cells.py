"""Cells of one column, whatever wrote them: typed values, numbers and dates as text, spellings of a missing value.

    values = cells.plain(frame["price"])                 # float64, datetime64 or str, NA where nothing is recorded
    style, matched = cells.number_style(values.dropna()) # how its texts spell numbers
    numbers = cells.numbers(values, style)               # float64, NaN where a text is not a number

pandas and pyarrow parse; this module decides between spellings over the whole column, which neither of them does.
"""

# pandas and scikit-learn come without stubs: pyright infers unions of all that they may return.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import datetime
import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float64

MISSING = "missing"  # the level of a category where nothing is recorded
SPELLINGS = (  # of a missing value, in lower case
    *("", "na", "n/a", "<na>", "#na", "#n/a", "#n/a n/a", "nan", "-nan", "nat", "null", "none", "nil", "\\n", MISSING),
    *("-", "--", "---", "?", "??", ".", "..", "...", "#null!", "#value!", "#ref!", "#div/0!", "#name?", "#num!"),
)
TRUTHS = (("false", "true"), ("no", "yes"), ("n", "y"), ("f", "t"), ("off", "on"))  # 0, 1; in lower case
LARGEST = 1e100  # beyond it squares overflow: taken as infinite
_SIGNS = r"[$€£¥₹%]"
_EXPONENT = r"(?:[eE][-+]?\d+)?"
_SPACES = "[\u00a0\u202f '\u2019]"
_DATES = (
    *("%Y/%m/%d", "%Y.%m.%d", "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%y", "%d/%m/%y", "%d.%m.%Y", "%d.%m.%y", "%m.%d.%Y"),
    *("%d-%m-%Y", "%m-%d-%Y", "%d-%m-%y", "%m-%d-%y", "%d %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d/%b/%Y", "%d %B %Y"),
    *("%b %d, %Y", "%b %d %Y", "%B %d, %Y", "%B %d %Y"),
)
_TIMES = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
ISO = "ISO8601"


class Style(NamedTuple):
    """How texts spell numbers."""

    pattern: str  # of a number without currency and percent signs
    thousands: str  # pattern of what is removed
    decimal: str
    note: str
    signs: bool = False  # whether currency or percent signs are removed
    truths: tuple[str, ...] = ()  # the texts of 0 and 1, in lower case, instead of all of the above


PLAIN = Style(rf"[-+]?(?:(?:\d+\.?\d*|\.\d+){_EXPONENT}|(?i:inf(?:inity)?))", "", ".", "")
STYLES = (  # the first of those that take most texts
    PLAIN,
    Style(r"[-+]?(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)(?:\.\d*)?", ",", ".", "commas taken as thousands separators"),
    Style(rf"[-+]?\d+(?:,\d+)?{_EXPONENT}", "", ",", "decimal commas"),
    Style(r"[-+]?(?:[1-9]\d{0,2}(?:\.\d{3})+|\d+)(?:,\d+)?", r"\.", ",", "decimal commas, points between thousands"),
    Style(rf"[-+]?(?:[1-9]\d{{0,2}}(?:{_SPACES}\d{{3}})+|\d+)(?:\.\d+)?", _SPACES, ".", "spaces between thousands"),
    Style(
        rf"[-+]?(?:[1-9]\d{{0,2}}(?:{_SPACES}\d{{3}})+|\d+)(?:,\d+)?",
        *(_SPACES, ",", "decimal commas, spaces between thousands"),
    ),
)


def plain(values: pd.Series) -> pd.Series:
    """A column as float64, datetime64 (UTC without zone) or str, NA where nothing is recorded.

    Truth values become "false" and "true", durations seconds, categories of pandas what they stand for, a mixture of
    types text. Text is stripped of blanks, and every entry of `SPELLINGS`, in any case, is NA.

    Raises:
      ValueError: for lists, structures, bytes and complex numbers; the caller names the column.
    """
    kind = pd.api.types.infer_dtype(values, skipna=True)
    if isinstance(values.dtype, pd.CategoricalDtype | pd.ArrowDtype) or kind in ("period", "decimal"):
        if kind == "period":
            return plain(values.dt.to_timestamp())
        loose = pd.Series(values.to_list(), values.index, object, name=values.name)
        return _of_objects(loose, pd.api.types.infer_dtype(loose, skipna=True))
    if values.dtype == object:
        return _of_objects(values, kind)
    if kind == "boolean":
        return _truths(values)
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_complex_dtype(values.dtype):
        return pd.Series(values.to_numpy(np.float64, na_value=np.nan), values.index, name=values.name)
    if kind.startswith("datetime"):
        return values.dt.tz_convert("UTC").dt.tz_localize(None) if values.dt.tz is not None else values
    if kind.startswith("timedelta"):
        return values.dt.total_seconds()
    if kind in ("string", "empty"):
        return present(values.astype("str"))
    raise ValueError(f"{values.dtype}, expected numbers, text or dates, one for each row")


def present(texts: pd.Series) -> pd.Series:
    """Texts stripped of blanks, NA for every spelling of a missing value."""
    stripped = texts.str.strip()
    return stripped.where(~stripped.str.lower().isin(SPELLINGS).astype(bool))


def spelled(value: Any) -> str:
    """One value as text; whole numbers without a point, dates as ISO 8601."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, int | np.integer):
        return str(value)
    if isinstance(value, float | np.floating):
        return (
            str(int(value)) if np.isfinite(value) and value == int(value) and abs(value) < 2**53 else repr(float(value))
        )
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)


def short(value: Any, *, length: int = 40) -> str:
    """A cell for messages, in one line and cut off where it is long."""
    text = " ".join(str(value).split())
    return text if len(text) <= length else f"{text[: length - 3]}..."


def is_code(texts: pd.Series) -> bool:
    """Whether any text is digits with a leading zero, as in "00501": no number, though it can be read as one."""
    return bool(texts.str.match(r"0\d+$").any())


def number_style(texts: pd.Series) -> tuple[Style, np.ndarray]:
    """The `Style` that takes most of the distinct texts, and which of them it takes, Bool[k]."""
    lower = set(texts.str.lower())
    for pair in TRUTHS:
        if lower == set(pair):
            return PLAIN._replace(truths=pair, note=f"{pair[0]} = 0, {pair[1]} = 1"), np.ones(len(texts), bool)
    best, most = PLAIN, _matches(texts, PLAIN)
    signs = bool(texts.str.contains(_SIGNS).any())
    for style in [s._replace(signs=sign) for s in STYLES for sign in {False, signs}]:
        if most.all():
            break
        matches = _matches(texts, style)
        if matches.sum() > most.sum():
            best, most = style, matches
    if best.signs:
        symbols = sorted(set("".join(texts[most])) & set("$€£¥₹%"))
        best = best._replace(note=f"{best.note}{', ' * bool(best.note)}{' '.join(symbols)} removed")
    return best, most


def numbers(values: pd.Series, style: Style) -> Float64[np.ndarray, " n"]:
    """Numbers as float64, NaN where missing, infinite, or where a text is not a number of this style."""
    if values.dtype == np.float64:
        return _finite(values.to_numpy())
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return np.full(len(values), np.nan)
    if style.truths:
        texts = values.str.lower()
        return np.where(texts == style.truths[0], 0.0, np.where(texts == style.truths[1], 1.0, _cast(values, PLAIN)))
    return _finite(_cast(values, style))


def is_infinite(values: pd.Series) -> np.ndarray:
    """Bool[n], where numbers or texts stand for numbers that are infinite or beyond `LARGEST`."""
    read = values.to_numpy() if values.dtype == np.float64 else _cast(values, PLAIN)
    return np.abs(read) > LARGEST


def date_formats(texts: pd.Series, *, least: float) -> list[str]:
    """Formats that read at least the share ``least`` of distinct texts: several where day and month may be swapped."""
    sample = texts.head(50)
    if not sample.str.contains(r"\d[-/. ,]|\d{4}").mean() >= least:
        return []
    formats = [ISO, *(f"{date}{time}" for date in _DATES for time in _TIMES)]
    likely = [f for f in formats if dates(sample, f).notna().mean() >= min(least, 0.9)]
    return [f for f in likely if dates(texts, f).notna().mean() >= least]


def dates(values: pd.Series, format: str) -> pd.Series:
    """datetime64 in UTC, NaT where missing or where a text does not have the format."""
    if values.dtype == np.float64:
        return pd.Series(pd.NaT, values.index, "datetime64[us]", name=values.name)
    read = pd.to_datetime(values, format=format, errors="coerce", utc=True)
    return read.dt.tz_localize(None).astype("datetime64[us]")


def written(value: float, style: Style | None) -> str:
    """A number as text of the column's style, without separators of thousands and signs."""
    if style is not None and style.truths:
        return style.truths[int(value >= 0.5)]
    text = spelled(float(f"{value:.6g}"))
    return text if style is None else text.replace(".", style.decimal)


def written_date(value: pd.Timestamp, format: str) -> str:
    """A date as text of the column's format; a whole day in ISO 8601 without its time."""
    if format != ISO:
        return value.strftime(format)
    return value.isoformat() if value != value.normalize() else value.date().isoformat()


def _of_objects(values: pd.Series, kind: str) -> pd.Series:
    """A column of Python objects."""
    if kind == "boolean":
        return _truths(values)
    if kind in ("integer", "floating", "mixed-integer-float", "decimal"):
        return pd.Series([_float(v) for v in values], values.index, float, name=values.name)
    if kind in ("date", "datetime", "datetime64"):
        read = pd.to_datetime(values, errors="coerce", utc=True)
        return read.dt.tz_localize(None).astype("datetime64[us]")
    if kind.startswith("timedelta"):
        return pd.to_timedelta(values).dt.total_seconds()
    for value in values:
        if isinstance(value, bytes | list | tuple | dict | set | np.ndarray | complex):
            raise ValueError(f"{type(value).__name__}, expected one number, text or date for each row")
    texts = [np.nan if pd.isna(v) else spelled(v) for v in values]
    return present(pd.Series(texts, values.index, "str", name=values.name))


def _float(value: Any) -> float:
    try:
        return np.nan if pd.isna(value) else float(value)
    except OverflowError:  # a whole number of more than 308 digits
        return np.inf


def _truths(values: pd.Series) -> pd.Series:
    return values.astype(object).map({True: "true", False: "false"}, na_action="ignore").astype("str")


def _finite(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return np.where(np.abs(values) <= LARGEST, values, np.nan)


def _bare(texts: pd.Series, style: Style) -> pd.Series:
    """Texts without currency and percent signs."""
    return texts.str.replace(rf"\s*{_SIGNS}\s*", "", regex=True) if style.signs else texts


def _matches(texts: pd.Series, style: Style) -> np.ndarray:
    return _bare(texts, style).str.fullmatch(style.pattern).fillna(False).to_numpy(bool)


def _cast(values: pd.Series, style: Style) -> Float64[np.ndarray, " n"]:
    """Numbers of texts, NaN where one is missing or does not match."""
    if style == PLAIN:
        try:
            cast = pa.array(values, pa.large_string(), from_pandas=True).cast(pa.float64())
            return cast.to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:  # some text is not a number: look at each
            pass
    texts = _bare(values, style).where(pd.Series(_matches(values, style), values.index))
    texts = texts.str.replace(style.thousands, "", regex=True) if style.thousands else texts
    texts = texts.str.replace(style.decimal, ".", regex=False) if style.decimal != "." else texts
    return pd.to_numeric(texts, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def months_first(format: str) -> bool:
    """Whether a format names the month before the day, in digits."""
    return re.search(r"%m[-/.]%d", format) is not None
