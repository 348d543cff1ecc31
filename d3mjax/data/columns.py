"""What each column of a table is, by one law for all formats: number, category, date, text, or dropped and why.

    table = columns.infer({"--train": train, "--validation": held}, dropped={"income": "label"})
    typed = columns.typed(train, table)
    print("\\n".join(columns.lines(table)))

The law (`cells` holds the spellings). Kinds are decided on the first frame and checked on the others.

- Numbers, if every text is one, by one spelling for the whole column; yes and no are 1 and 0. Stray texts (below
  1 %, or one placeholder without digits) and infinite numbers are taken as missing. Digits with leading zeros are
  codes, and codes are text.
- Dates, if every text has one format. Where day and month may be swapped, the other frames decide, then the separator.
- Categories, if few texts repeat: up to 40, or up to 200 that cover 80 % of the rows. Rare ones become one level;
  what is missing is a level of its own.
- Free text, otherwise.
- Dropped: the row index, ids (another value in each row, and the look of one), constant and empty columns.
"""

# pandas and scikit-learn come without stubs: pyright infers unions of all that they may return.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import difflib
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from d3mjax.data import cells
from d3mjax.data.cells import MISSING

NUMBER, CATEGORY, DATE, TEXT, DROPPED = "number", "category", "date", "text", "dropped"
KINDS = (NUMBER, CATEGORY, DATE, TEXT, DROPPED)
STRAY = 0.01  # share of texts among numbers or dates below which they are taken as missing
FEW_LEVELS, MOST_LEVELS, COVERED = 40, 200, 0.8
RARE = 10  # rows; below 1,000 rows of training a hundredth of them
OTHER = "other"  # the level of rare ones
LEAST_ROWS = 20  # fewer rows do not show that a column is an index or id
_ID_NAME = re.compile(
    r"(?:.*[\W_])?(?:id|ids|index|idx|row|rowid|uuid|guid|key|nr|no|number)|.*[a-z]I[dD]", re.IGNORECASE
)
_ID_TEXT = (
    r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}|[0-9a-fA-F]{16,64}|[A-Za-z]{0,8}[-_#]?\d+(?:[-_]\d+)*"
)
_UNNAMED = re.compile(r"(?:Unnamed: \d+|__index_level_\d+__|)")


class Column(NamedTuple):
    """One column of the first frame, as it is taken."""

    name: str
    kind: str  # of `KINDS`
    missing: Mapping[str, int] = MappingProxyType(
        {}
    )  # rows without a value, by frame; spellings, stray texts and infinities included
    levels: tuple[str, ...] = ()  # of a category, sorted
    note: str = ""  # why it was dropped; else what a user should know
    merged: tuple[str, ...] = ()  # texts of a category that became `OTHER`
    strays: tuple[str, ...] = ()  # texts among numbers or dates that are taken as missing
    style: Any = None  # cells.Style of numbers and codes as text, format of dates as text


def infer(
    frames: Mapping[str, pd.DataFrame],
    *,
    categorical: Sequence[str] = (),
    text: Sequence[str] = (),
    dropped: Mapping[str, str] = {},
) -> tuple[Column, ...]:
    """The kind of each column of the first frame, with what was missing, merged and dropped.

    ``frames``: tables of str cells, or typed ones, by the option that names them, training first. ``categorical`` and
    ``text`` name columns whose kind is given; ``dropped`` maps columns to leave out to the reason. Columns of
    other frames alone are dropped.

    Raises:
      ValueError: naming option and column, if names repeat, a column is absent from another frame or of another kind
        there, or holds lists, structures or bytes.
    """
    frames = {flag: _named(flag, frame) for flag, frame in frames.items()}
    (first, train), *others = frames.items()
    for option, names in (("--categorical", categorical), ("--text", text)):
        for name in names:
            _check_known(option, name, first, train)
    columns = []
    for position, name in enumerate(train.columns):
        if name in dropped:
            columns.append(Column(name, DROPPED, note=dropped[name]))
            continue
        values = {first: _plain(first, train[name])}
        forced = CATEGORY if name in categorical else TEXT if name in text else ""
        column = _dropped(values[first], position, forced)
        if not column:
            absent = [flag for flag, frame in others if name not in frame]
            if absent:
                close = _close(name, frames[absent[0]].columns)
                raise ValueError(
                    f"{absent[0]}: found no column {name!r}, which {first} has; expected it, or --drop{close}"
                )
            values |= {flag: _plain(flag, frame[name]) for flag, frame in others}
            column = _checked(_judged(values, forced), values)
        columns.append(column)
    extra = {name: flag for flag, frame in others for name in frame if name not in train and name not in dropped}
    return (*columns, *(Column(name, DROPPED, note=f"only in {flag}") for name, flag in extra.items()))


def typed(frame: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """The columns that are not dropped: float64 with NaN, categories as str with the level `MISSING`, datetime64, str.

    Texts of a category that the first frame does not have stay as they are.
    """
    frame = frame.rename(columns=str)
    used = [c for c in columns if c.kind != DROPPED]
    made = {c.name: _typed(cells.plain(frame[c.name]), c) for c in used}
    return pd.DataFrame(made, index=frame.index, copy=False)


def card(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """A dictionary for each column, for JSON: name, kind, missing rows by frame, levels, note."""
    return [
        {"name": c.name, "kind": c.kind, "missing": dict(c.missing), "levels": list(c.levels), "note": c.note}
        for c in columns
    ]


def lines(columns: Sequence[Column]) -> list[str]:
    """A line for each column, for the terminal: name, kind, missing rows, note."""
    width = max((len(c.name) for c in columns), default=0)
    return [f"{c.name or '(unnamed)':{width}}  {c.kind:8}  {_facts(c)}".rstrip() for c in columns]


def _facts(column: Column) -> str:
    missing = [f"{count:,} missing in {flag}" for flag, count in column.missing.items() if count]
    return "; ".join([*[f"{len(column.levels)} levels"] * bool(column.levels), *missing, *filter(None, [column.note])])


def _named(flag: str, frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.rename(columns=str)
    repeated = frame.columns[frame.columns.duplicated()].tolist()
    if repeated:
        raise ValueError(f"{flag}: found several columns named {repeated[0]!r}, expected one of each name")
    return frame


def _check_known(option: str, name: str, flag: str, frame: pd.DataFrame) -> None:
    if name not in frame:
        close = _close(name, frame.columns)
        raise ValueError(f"{option}: found no {name!r} in {flag}, which has {list(frame.columns)}{close}")


def _close(name: str, known: Sequence[str] | pd.Index) -> str:
    close = difflib.get_close_matches(name, list(known), n=2, cutoff=0.5)
    return f". Did you mean {' or '.join(close)}?" if close else ""


def _plain(flag: str, values: pd.Series) -> pd.Series:
    try:
        return cells.plain(values)
    except ValueError as error:
        raise ValueError(
            f"{flag}: column {values.name!r}: found {error}; --drop {values.name} leaves it out"
        ) from error


def _dropped(values: pd.Series, position: int, forced: str) -> Column | None:
    """The column, if it is constant, empty, an index or an id."""
    known = values.dropna()
    reason = ""
    if not len(known):
        reason = "all missing"
    elif len(known) == len(values) and (known == known.iloc[0]).all():
        reason = "constant"
    elif not forced and len(known) == len(values) and known.is_unique:
        reason = _identity(known, position)
    return Column(str(values.name), DROPPED, note=reason) if reason else None


def _identity(values: pd.Series, position: int) -> str:
    """What a column of distinct values is, if it only names rows."""
    name, enough = str(values.name), len(values) >= LEAST_ROWS
    if values.dtype == np.float64 or not enough:
        numbers = values.to_numpy() if values.dtype == np.float64 else cells.numbers(values, cells.PLAIN)
    elif values.dtype == "str":
        numbers = cells.numbers(values, cells.PLAIN)
        coded = np.isnan(numbers).any() or cells.is_code(values)
        if enough and coded and values.str.fullmatch(_ID_TEXT).all() and not cells.date_formats(values, least=0.5):
            return "id: another value in each row"
    else:
        return ""
    if not (numbers == np.round(numbers)).all():
        return ""
    if _UNNAMED.fullmatch(name) and position == 0:
        return "row index"
    first = numbers.min()
    if enough and first in (0, 1) and np.array_equal(np.sort(numbers), first + np.arange(len(numbers))):
        return "row index"
    return "id: another value in each row" if enough and _ID_NAME.fullmatch(name) else ""


def _judged(values: Mapping[str, pd.Series], forced: str) -> Column:
    """The kind of a column, by its values in the first frame; ``missing`` is not filled in yet."""
    train = next(iter(values.values()))
    name, known = str(train.name), train.dropna()
    if forced:
        return Column(name, TEXT) if forced == TEXT else _category(known, len(train), forced=True)
    if (known == known.iloc[0]).all():  # what it tells is where it is missing
        return _category(known, len(train), forced=True)
    if train.dtype == np.float64:
        return Column(name, NUMBER)
    if pd.api.types.is_datetime64_any_dtype(train.dtype):
        return Column(name, DATE)
    code = cells.is_code(known)
    if not code and not np.isnan(cells.numbers(known, cells.PLAIN)).any():
        return Column(name, NUMBER, style=cells.PLAIN)
    counts = known.value_counts()
    texts = pd.Series(counts.index, dtype="str", name=name)
    if not code:
        style, matches = cells.number_style(texts)
        matches = matches | cells.is_infinite(texts)
        strays = counts[~matches]
        if _are_strays(strays, len(known), placeholder=True):
            return Column(name, NUMBER, note=style.note, style=style, strays=tuple(sorted(strays.index)))
        if matches.any() and counts[matches].sum() >= 0.5 * len(known):
            mixed = f"numbers and text ({', '.join(repr(cells.short(t)) for t in strays.index[:2])}) mixed"
            return _category(known, len(train))._replace(note=mixed)
        date = _date(name, counts, values)
        if date:
            return date
    return _category(known, len(train))


def _are_strays(strays: pd.Series, num_known: int, *, placeholder: bool) -> bool:
    """Whether texts that do not fit, counted, are few, or one placeholder without digits in up to half of the rows."""
    if strays.sum() < STRAY * num_known:
        return True
    single = placeholder and len(strays) == 1 and not re.search(r"\d", strays.index[0])
    return single and bool(strays.iloc[0] <= 0.5 * num_known)


def _date(name: str, counts: pd.Series, values: Mapping[str, pd.Series]) -> Column | None:
    """A column of dates, if one format reads its texts."""
    texts = pd.Series(counts.index, dtype="str")
    formats = cells.date_formats(texts, least=0.5)
    rest = {f: counts[cells.dates(texts, f).isna().to_numpy()] for f in formats}
    formats = [f for f in formats if _are_strays(rest[f], int(counts.sum()), placeholder=True)]
    if not formats:
        return None
    least = min(rest[f].sum() for f in formats)
    formats = [f for f in formats if rest[f].sum() == least]
    formats = [cells.ISO] if cells.ISO in formats else formats
    for other in list(values.values())[1:]:
        if len(formats) > 1 and other.dtype == "str":
            unread = {f: int((cells.dates(other, f).isna() & other.notna()).sum()) for f in formats}
            formats = [f for f in formats if unread[f] == min(unread.values())]
    note = ""
    if len(formats) > 1:  # months before days with slashes, as in the United States; days first with points and dashes
        slash = "/" in formats[0]
        formats = sorted(formats, key=lambda f: cells.months_first(f) != slash)
        note = f"day and month may be swapped: read as {formats[0]}"
    elif formats[0] != cells.ISO:
        note = f"read as {formats[0]}"
    return Column(name, DATE, note=note, style=formats[0], strays=tuple(sorted(rest[formats[0]].index)))


def _category(known: pd.Series, num_rows: int, *, forced: bool = False) -> Column:
    """A category, or free text where too few texts repeat."""
    style = _code_style(known) if forced else None
    counts = _spelled(known, style).value_counts()
    name, least = str(known.name), max(2, min(RARE, num_rows // 100))
    kept = counts[counts >= least].sort_index().sort_values(ascending=False, kind="stable").index[:MOST_LEVELS]
    if not len(kept) or len(counts) - len(kept) < 2:
        kept = counts.index
    covered = counts[kept].sum() / len(known)
    if (
        not forced
        and len(counts) > FEW_LEVELS
        and (covered < COVERED or len(kept) > MOST_LEVELS or len(kept) == len(known))
    ):
        return Column(name, TEXT, note=f"{len(counts):,} different texts")
    merged = tuple(sorted(set(counts.index) - set(kept)))
    levels = set(kept) | ({OTHER} if merged else set()) | ({MISSING} if len(known) < num_rows else set())
    note = f"{len(merged)} levels below {least} rows merged into {OTHER!r}" if merged else ""
    return Column(name, CATEGORY, levels=tuple(sorted(levels)), note=note, merged=merged, style=style)


def _code_style(known: pd.Series) -> cells.Style | None:
    """Codes that are numbers are spelled in one way: 1, 1.0 and "1" are one level."""
    if known.dtype == np.float64:
        return cells.PLAIN
    if known.dtype != "str" or cells.is_code(known) or np.isnan(cells.numbers(known, cells.PLAIN)).any():
        return None
    return cells.PLAIN


def _spelled(values: pd.Series, style: cells.Style | None) -> pd.Series:
    """Values as text, NA where missing."""
    if values.dtype == "str" and style is None:
        return values
    codes, known = pd.factorize(values)
    texts = [_respelled(v, style) for v in known]
    return pd.Series(pd.array([*texts, None], dtype="str")[codes], values.index, name=values.name)


def _respelled(value: Any, style: cells.Style | None) -> str:
    try:
        return cells.spelled(float(value)) if style is not None else cells.spelled(value)
    except (TypeError, ValueError):
        return cells.spelled(value)


def _typed(values: pd.Series, column: Column) -> pd.Series:
    """Plain values as those of the column; what cannot be read is missing."""
    if column.kind == NUMBER:
        return pd.Series(cells.numbers(values, column.style or cells.PLAIN), values.index, name=column.name)
    if column.kind == DATE:
        if values.dtype == "str" or values.dtype == np.float64:
            return cells.dates(values, column.style or cells.ISO)
        return values.astype("datetime64[us]")
    texts = _spelled(values, column.style)
    if column.kind == TEXT:
        return texts.fillna("")
    return (
        texts.where(~texts.isin(column.merged).astype(bool), OTHER).fillna(MISSING)
        if column.merged
        else texts.fillna(MISSING)
    )


def _checked(column: Column, values: Mapping[str, pd.Series]) -> Column:
    """The column with its missing rows counted, and notes on what the other frames hold."""
    missing, notes = {}, [column.note] if column.note else []
    first = next(iter(values))
    for flag, frame_values in values.items():
        read = _typed(frame_values, column)
        absent = read == MISSING if column.kind == CATEGORY else read == "" if column.kind == TEXT else read.isna()
        missing[flag] = int(absent.sum())
        if column.kind in (NUMBER, DATE):
            notes += _check_read(column, flag, frame_values, absent & frame_values.notna(), first)
        elif column.kind == CATEGORY and flag != first:
            notes += _check_levels(column, flag, read, first)
    return column._replace(missing=missing, note="; ".join(notes))


def _check_read(column: Column, flag: str, values: pd.Series, unread: pd.Series, first: str) -> list[str]:
    """Notes on present values that cannot be read as the kind of the column; raises ValueError for too many."""
    if not unread.any():
        return []
    bad = values[unread]
    infinite = (
        cells.is_infinite(bad)
        if column.kind == NUMBER and (bad.dtype == "str" or bad.dtype == np.float64)
        else np.zeros(len(bad), bool)
    )
    notes = [f"{infinite.sum()} infinite in {flag} taken as missing"] if infinite.any() else []
    strays = _spelled(bad[~infinite], None)
    counts = strays[~strays.isin(column.strays).astype(bool)].value_counts()
    if len(counts) and not _are_strays(counts, int(values.notna().sum()), placeholder=False):
        examples = ", ".join(repr(cells.short(t)) for t in counts.index[:3])
        raise ValueError(
            f"{flag}: column {column.name!r}: found {counts.sum()} of {len(values)} rows that are not {column.kind}s "
            f"({examples}), expected {column.kind}s as in {first}; --drop {column.name} "
            "leaves the column out"
        )
    if len(strays):
        examples = ", ".join(repr(cells.short(t)) for t in strays.value_counts().index[:3])
        notes.append(f"{len(strays)} texts in {flag} taken as missing ({examples})")
    return notes


def _check_levels(column: Column, flag: str, texts: pd.Series, first: str) -> list[str]:
    """A note on levels that the first frame does not have; a column that has none of its levels is refused."""
    unknown = ~texts.isin(column.levels).astype(bool)
    if not unknown.any():
        return []
    counts = texts[unknown].value_counts().sort_index()
    examples = ", ".join(map(cells.short, counts.index[:3]))
    present = texts != MISSING
    if len(texts) >= LEAST_ROWS and present.any() and unknown[present].all():
        raise ValueError(
            f"{flag}: column {column.name!r}: found no value of {first} ({examples}), expected levels such as "
            f"{', '.join(map(cells.short, column.levels[:3]))}; --drop {column.name} leaves the column out"
        )
    rows = "row has a value" if unknown.sum() == 1 else "rows have values"
    return [f"{unknown.sum()} {rows} in {flag} that {first} does not have ({examples}): taken as no level"]
