"""Groups as users have them: columns crossed, numbers cut into quantiles, and any of several yes/no columns.

    terms = columns_of("income,age:4", list(frames["--validation"]))
    groups = cross([factor(frames, name, bins) for name, bins in terms.items()], sizes, min_group=10)

Pure functions of pandas frames by option. Every function raises ``ValueError`` that names the option, what was found
and what is expected.
"""

# pandas comes without stubs: pyright infers unions of all that it may return.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int

from d3mjax.data import cells, labels
from d3mjax.data.files import check_named

OTHER = "other"
MISSING = "missing"  # the level of a target whose group is not known
MOST_LEVELS = 20  # of numbers that are not cut
_YES = ("1", "1.0", "true", "yes", "y", "t")
_NO = ("0", "0.0", "false", "no", "n", "f", "none", *labels.MISSING)

Frames = Mapping[str, pd.DataFrame]


class Factor(NamedTuple):
    """One criterion: the level of every example of each source that has it, -1 where it is unknown."""

    levels: tuple[str, ...]  # such as "sex=F" or "28<age<=37"
    codes: dict[str, Int[np.ndarray, "n"]]


class Groups(NamedTuple):
    """Groups 0..G-1 of the examples of every source, -1 where unknown, and their names."""

    group: dict[str, Int[np.ndarray, "n"]]
    names: tuple[str, ...]
    notes: tuple[str, ...]


def columns_of(spec: str, known: Sequence[str]) -> dict[str, int | None]:
    """The columns of ``--group a,b:4``, and the number of quantiles of each, or None.

    A column of that very name, colon and all, comes first.
    """
    terms: dict[str, int | None] = {}
    for term in filter(None, (part.strip() for part in spec.split(","))):
        name, colon, bins = term.rpartition(":")
        if term in known or not colon:
            terms[term] = None
        elif not bins.isdigit() or int(bins) < 2:
            raise ValueError(f"--group: found {term!r}, expected a column, or one with its number of quantiles: age:4")
        else:
            terms[name.strip()] = int(bins)
    return terms


def factor(frames: Frames, name: str, bins: int | None, *, reference: str = "--validation") -> Factor:
    """Levels of one column: its values, or ``bins`` quantiles of the numbers in the ``reference`` source.

    Values that are missing in ``reference`` or another source of targets are a level of their own.

    Raises:
      ValueError: numbers with more than 20 values that are not cut, and quantiles of text.
    """
    check_named(frames[reference].columns, reference, {"--group": [name]})
    having = {option: frame[name] for option, frame in frames.items() if name in frame}
    numbers = {option: _numbers(column) for option, column in having.items()}
    numeric = all(a is not None for a in numbers.values())
    if bins is not None:
        if not numeric:
            raise ValueError(f"--group: found text in {name!r}, expected numbers, to be cut into {bins} quantiles")
        edges = np.unique(np.nanquantile(numbers[reference], np.arange(1, bins) / bins))
        return _cut(name, numbers, edges)
    distinct = having[reference].nunique()
    if numeric and distinct > MOST_LEVELS:
        raise ValueError(
            f"--group: found {distinct} different numbers in {name!r}, expected at most {MOST_LEVELS} values, or "
            f"quantiles, as in --group '{name}:4'"
        )
    return _by_value(name, numbers if numeric else {option: _texts(column) for option, column in having.items()})


def any_of(frames: Frames, names: Sequence[str], *, reference: str = "--validation") -> Factor:
    """Two levels: whether at least one of several yes/no columns, which may overlap, is yes; missing counts as no.

    Raises:
      ValueError: a column that holds anything else.
    """
    check_named(frames[reference].columns, reference, {"--any-of": names})
    codes = {}
    for option, frame in frames.items():
        if not set(names) <= set(frame):
            continue
        texts = frame[list(names)].astype("string").fillna("").apply(lambda column: column.str.strip().str.lower())
        known = texts.isin(_YES + _NO)
        if not known.all(axis=None):
            name = known.columns[~known.all()][0]
            values = sorted(set(texts[name][~known[name]]))[:3]
            raise ValueError(
                f"--any-of: found {values} in {name!r} of {option}, expected yes or no, true or false, 1 or 0"
            )
        codes[option] = texts.isin(_YES).any(axis=1).to_numpy().astype(np.int32)
    either = " or ".join(names)
    return Factor((f"not ({either})", either), codes)


def cross(factors: Sequence[Factor], sizes: Mapping[str, int], *, min_group: int, train: str = "--train") -> Groups:
    """Groups: the combinations of levels that occur outside the training set; those below ``min_group`` are merged.

    ``sizes``: examples of each source. A training example of an unknown combination is -1, as all are where a factor is
    missing there. The smallest count over the sources of targets decides what is merged into the group `OTHER`.

    Raises:
      ValueError: one group alone, or a group of fewer than ``min_group`` targets that nothing is left to merge with.
    """
    codes = {option: _combined(factors, option, size) for option, size in sizes.items()}
    outside = [option for option in sizes if option != train]
    known = np.unique(np.concatenate([codes[option] for option in outside]))
    names = [", ".join(levels) for levels in (_names(factors, code) for code in known.tolist())]
    index = {option: np.where(np.isin(a, known), np.searchsorted(known, a), -1) for option, a in codes.items()}
    counts = np.array([np.bincount(index[option], minlength=len(known)) for option in outside])
    small = counts.min(0) < min_group
    notes, group = [], index
    if small.sum() > 1 and not small.all():
        merged = [f"{name} ({count})" for name, count, few in zip(names, counts[0], small, strict=True) if few]
        notes.append(f"Groups of fewer than {min_group} targets, merged into {OTHER!r}: {'; '.join(merged)}.")
        renamed = np.where(small, (~small).sum(), np.cumsum(~small) - 1)
        group = {option: np.where(a < 0, -1, renamed[a]) for option, a in index.items()}
        names = [name for name, few in zip(names, small, strict=True) if not few] + [OTHER]
    if len(names) < 2:
        raise ValueError(f"--group: found one group in --validation ({', '.join(names)}), expected at least 2")
    for option in outside:
        left = np.bincount(group[option], minlength=len(names))
        if few := {name: int(count) for name, count in zip(names, left, strict=True) if count < min_group}:
            raise ValueError(
                f"{option}: found so few examples of groups: {few}; expected at least {min_group} of each, to score, "
                "select and report: collect more, take fewer columns, or lower --min-group"
            )
    return Groups({option: a.astype(np.int32) for option, a in group.items()}, tuple(names), tuple(notes))


def _combined(factors: Sequence[Factor], option: str, size: int) -> np.ndarray:
    """One number for every combination of levels, -1 where a level is unknown."""
    code, known = np.zeros(size, np.int64), np.ones(size, bool)
    for levels, codes in factors:
        a = codes.get(option, np.full(size, -1))
        code, known = code * len(levels) + a, known & (a >= 0)
    return np.where(known, code, -1)


def _names(factors: Sequence[Factor], code: int) -> list[str]:
    names = []
    for levels, _ in reversed(factors):
        code, level = divmod(code, len(levels))
        names.append(levels[level])
    return names[::-1]


def _numbers(column: pd.Series) -> np.ndarray | None:
    """float64 with NaN for what is missing; None where an entry is text, or a code such as 01."""
    if pd.api.types.is_bool_dtype(column):
        return None
    if isinstance(column.dtype, pd.CategoricalDtype) or not pd.api.types.is_numeric_dtype(column):
        text = column.astype("string").str.strip()
        text = text.mask(text.str.lower().isin(labels.MISSING))
        if text.str.match(r"^[+-]?0\d").fillna(False).any():
            return None
        numbers = pd.to_numeric(text, errors="coerce")
        return None if (numbers.isna() & text.notna()).any() else numbers.to_numpy(np.float64, na_value=np.nan)
    return column.to_numpy(np.float64, na_value=np.nan)


def _texts(column: pd.Series) -> np.ndarray:
    text = column.astype("string").str.strip()
    missing = text.isna() | text.str.lower().isin(labels.MISSING)
    return text.mask(missing, MISSING).fillna(MISSING).to_numpy(object)


def _by_value(name: str, values: Mapping[str, np.ndarray]) -> Factor:
    """A level for each value, in order, and one for what is missing, at the end."""
    absent = {option: a == MISSING if a.dtype == object else np.isnan(a) for option, a in values.items()}
    levels = np.unique(np.concatenate([a[~absent[option]] for option, a in values.items()]))
    has_missing = any(a.any() for a in absent.values())
    shown = [cells.spelled(level) for level in levels.tolist()]
    codes = {}
    for option, a in values.items():
        codes[option] = np.full(len(a), len(levels))
        codes[option][~absent[option]] = np.searchsorted(levels, a[~absent[option]])
    return Factor((*(f"{name}={level}" for level in shown), *[f"{name}={MISSING}"] * has_missing), codes)


def _cut(name: str, numbers: Mapping[str, np.ndarray], edges: np.ndarray) -> Factor:
    """Intervals between ``edges``, each with its right end, and a level for what is missing."""
    ends = [cells.spelled(edge) for edge in edges.tolist()]
    between = [f"{low}<{name}<={high}" for low, high in itertools.pairwise(ends)]
    levels = [f"{name}<={ends[0]}", *between, f"{name}>{ends[-1]}"]
    codes = {o: np.where(np.isnan(a), len(levels), np.searchsorted(edges, a)) for o, a in numbers.items()}
    has_missing = any(np.isnan(a).any() for a in numbers.values())
    return Factor((*levels, *[f"{name}={MISSING}"] * has_missing), codes)
