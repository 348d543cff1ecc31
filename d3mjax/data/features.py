"""Columns as features: fitted on training rows alone, float64 until scaled, float32 and bounded memory after.

    encoder = features.fit(table, columns.typed(train, table))
    x, x_held = (features.encode(encoder, columns.typed(frame, table)) for frame in (train, held))

scikit-learn imputes, scales and encodes, skrub takes dates apart and embeds free text. `skrub.TableVectorizer`, which
would do all of it, rounds to float32 before scaling (of 1,200 Unix times 29 remain) and reads "00501" as a number.
"""

# pandas and scikit-learn come without stubs: pyright infers unions of all that they may return.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float32, Float64

from d3mjax.data.columns import CATEGORY, DATE, DROPPED, NUMBER, Column

if TYPE_CHECKING:
    from sklearn.impute import SimpleImputer

CHUNK = 65_536  # rows encoded at once
TEXT_WIDTH = 30  # components of free text
TEXT_ROWS = 20_000  # rows that free text is fitted on
LEAST_SCALE = 0.1  # of indicators: an example with a rare level is at most 10 deviations off
FARTHEST = 1e4  # deviations; what is farther off is taken to there


class Part(NamedTuple):
    """A column, fitted."""

    name: str
    features: tuple[str, ...]  # names of what it becomes
    expand: Callable[[pd.Series], np.ndarray]  # rows of the column -> Float[b, k]
    centre: np.ndarray  # Float64[k]
    scale: np.ndarray  # Float64[k], infinite for what is constant in training, which becomes zero


Encoder = tuple[Part, ...]
Texts = Callable[[Sequence[str]], np.ndarray]  # k texts -> Float[k d]
Fitted = tuple[tuple[str, ...], Callable[[pd.Series], np.ndarray], list[bool]]  # names, expand, which are indicators


def fit(
    columns: Sequence[Column], train: pd.DataFrame, *, standardise: bool = True, texts: Texts | None = None
) -> Encoder:
    """The encoder of the columns that are not dropped, fitted on the typed training rows.

    A number becomes itself and, if any are missing in training, an indicator; a category one-hot levels; a date its
    days and cyclic parts; free text 30 components of its n-grams. ``standardise``: centred and scaled to deviation 1
    over the training rows, indicators by at least `LEAST_SCALE`; otherwise only constant features become zero.
    ``texts``: makes numbers of free text in place of n-grams.
    """
    return tuple(_fit(c, train[c.name], standardise, texts) for c in columns if c.kind != DROPPED)


def encode(encoder: Encoder, frame: pd.DataFrame) -> Float32[np.ndarray, "n d"]:
    """Features of typed rows. Unknown levels are zero in all levels before scaling; missing numbers the median.

    Raises:
      ValueError: if a column is absent.
    """
    absent = [part.name for part in encoder if part.name not in frame]
    if absent:
        raise ValueError(f"frame: found no columns {absent}, expected {[part.name for part in encoder]}")
    spans = slices(encoder)
    x = np.empty((len(frame), sum(len(part.features) for part in encoder)), np.float32)
    for part in encoder:
        for begin in range(0, len(frame), CHUNK):
            rows = slice(begin, begin + CHUNK)
            values = part.expand(frame[part.name].iloc[rows])
            x[rows, spans[part.name]] = np.clip((values - part.centre) / part.scale, -FARTHEST, FARTHEST)
    return x


def slices(encoder: Encoder) -> dict[str, slice]:
    """Which features each column fills in what `encode` returns."""
    stops = np.cumsum([len(part.features) for part in encoder]).tolist()
    return {part.name: slice(stop - len(part.features), stop) for part, stop in zip(encoder, stops, strict=True)}


def names(encoder: Encoder) -> tuple[str, ...]:
    """The name of each feature, as "age", "age missing", "job=cook", "day month 0"."""
    return tuple(name for part in encoder for name in part.features)


def date_parts(train: pd.Series) -> Callable[[pd.Series], dict[str, Float64[np.ndarray, " n"]]]:
    """``dates -> parts``, numbers by name, NaN where missing: days since the first training row, and cyclic parts.

    `skrub.DatetimeEncoder` gives month, day, hour and weekday as cosine and sine, minute and second where dates of the
    training rows have a time. Its own seconds are float32, and wrong by a minute: days are float64.
    """
    from skrub import DatetimeEncoder  # takes 1.5 s

    encoder = DatetimeEncoder(
        resolution="second", add_weekday=True, add_total_seconds=False, periodic_encoding="circular"
    )
    encoder.fit(train.dropna().rename(""))
    origin = train.min()

    def parts(values: pd.Series) -> dict[str, np.ndarray]:
        days = ((values - origin) / pd.Timedelta(days=1)).to_numpy(np.float64)
        cyclic = encoder.transform(values.rename(""))
        names = {str(c): re.sub("_circular_|_", " ", str(c)).strip() for c in cyclic if c != "_year"}  # days have it
        return {"days": days} | {name: cyclic[c].to_numpy(np.float64) for c, name in names.items()}

    return parts


def _fit(column: Column, values: pd.Series, standardise: bool, texts: Texts | None) -> Part:
    fitters = {NUMBER: _fit_number, CATEGORY: _fit_category, DATE: _fit_date}
    of_text = _fit_text if texts is None else partial(_fit_given, texts)
    features, expand, indicator = fitters.get(column.kind, of_text)(column, values)
    mean, deviation, constant = _moments(expand, values, len(features))
    if column.kind not in fitters:
        deviation = np.full(len(features), np.sqrt(np.mean(deviation**2)))  # components keep their proportions
    least = np.where(indicator, LEAST_SCALE, 0.0)
    scale = np.maximum(deviation, least) if standardise else np.ones(len(features))
    centre = mean if standardise else np.where(constant, mean, 0.0)
    return Part(column.name, features, expand, centre, np.where(constant, np.inf, scale))


def _moments(expand: Callable, values: pd.Series, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means, deviations and constancy of features, in float64, chunk by chunk."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    for begin in range(0, len(values), CHUNK):
        chunk = np.asarray(expand(values.iloc[begin : begin + CHUNK]), np.float64)
        scaler.partial_fit(chunk)
        low, high = np.minimum(low, chunk.min(0)), np.maximum(high, chunk.max(0))
    variance = np.asarray(scaler.var_)
    tiny = variance < np.finfo(np.float64).tiny  # squares underflow
    return scaler.mean_, np.sqrt(variance), (low == high) | tiny


def _fit_number(column: Column, values: pd.Series) -> Fitted:
    imputer = _imputer(values.to_numpy(np.float64)[:, None])
    has_indicator = bool(len(imputer.indicator_.features_))
    features = (column.name, *[f"{column.name} missing"] * has_indicator)
    return features, lambda v: imputer.transform(v.to_numpy(np.float64)[:, None]), [False, True][: len(features)]


def _fit_category(column: Column, values: pd.Series) -> Fitted:
    from sklearn.preprocessing import OneHotEncoder

    levels = np.array(column.levels, object)
    encoder = OneHotEncoder(categories=[levels], handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    encoder.fit(values.to_numpy(object)[:1, None])
    features = tuple(f"{column.name}={level}" for level in column.levels)
    return features, lambda v: encoder.transform(v.to_numpy(object)[:, None]), [True] * len(features)


def _fit_date(column: Column, values: pd.Series) -> Fitted:
    parts = date_parts(values)
    table = np.column_stack(list(parts(values).values()))
    imputer = _imputer(table)
    names = [f"{column.name} {name}" for name in parts(values)]
    indicators = [f"{names[i]} missing" for i in imputer.indicator_.features_[:1]]
    width = len(names) + len(indicators)  # all parts are missing at once: one indicator

    def expand(v: pd.Series) -> np.ndarray:
        return imputer.transform(np.column_stack(list(parts(v).values())))[:, :width]

    return (*names, *indicators), expand, [False] * len(names) + [True] * len(indicators)


def _fit_text(column: Column, values: pd.Series) -> Fitted:
    from skrub import StringEncoder

    rows = values.iloc[:: -(-len(values) // TEXT_ROWS)]
    encoder = StringEncoder(n_components=TEXT_WIDTH, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fewer n-grams than components: they are taken as they are
        width = encoder.fit_transform(rows).shape[1]
    features = tuple(f"{column.name} {i}" for i in range(width))
    return features, lambda v: encoder.transform(v).to_numpy(), [False] * width


def _fit_given(texts: Texts, column: Column, values: pd.Series) -> Fitted:
    width = texts(values.iloc[:1].tolist()).shape[1]
    return tuple(f"{column.name} {i}" for i in range(width)), lambda v: texts(v.tolist()), [False] * width


def _imputer(x: np.ndarray) -> "SimpleImputer":
    """Medians, and an indicator of each column that has missing values."""
    from sklearn.impute import SimpleImputer

    return SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True).fit(x)
