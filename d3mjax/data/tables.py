"""Tables of raw columns, and how they become features: numbers standardised, categories one-hot.

    fitted = tables.fit_encoder(train)
    x, x_test = (tables.encode(fitted, table) for table in (train, test))

An encoder is fitted on all rows, those with errors included: who looks for errors has no clean rows.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Integer, Shaped

from d3mjax.types import AnyArray, Table


class Encoder(NamedTuple):
    """Means and deviations of numbers, and the levels of categories."""

    mean: dict[str, float]
    std: dict[str, float]  # infinite for a constant column, which becomes zero
    levels: dict[str, tuple[str, ...]]


def take(table: Table, index: Integer[AnyArray, " k"] | Bool[AnyArray, " n"]) -> Table:
    """The rows at ``index`` (positions, in that order, or a mask), ids kept."""
    index = np.asarray(index)
    return table._replace(columns={name: a[index] for name, a in table.columns.items()}, id=table.id[index])


def from_columns(
    columns: Mapping[str, Shaped[np.ndarray, " n"]],
    *,
    id: Integer[AnyArray, " n"] | None = None,
    levels: Mapping[str, tuple[str, ...]] | None = None,
) -> Table:
    """A table of numbers and text by name; text gets its own sorted values as levels, where none are given.

    Text that is not among given ``levels`` becomes -1. Ids are row numbers if not given.

    Raises:
      ValueError: if there is no column, lengths differ, ids repeat, or a column is neither numbers nor text.
    """
    lengths = {name: len(a) for name, a in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"columns: found lengths {lengths}, expected one common length")
    n = next(iter(lengths.values()))
    ids = np.arange(n) if id is None else np.asarray(id)
    if ids.shape != (n,) or len(np.unique(ids)) != n:
        raise ValueError(f"id: found {len(np.unique(ids))} different ids for {n} rows, expected one for each")
    known, made = dict(levels or {}), {}
    for name, a in columns.items():
        if a.dtype.kind in "biuf" and name not in known:
            made[name] = a.astype(np.float64)
            continue
        if a.dtype.kind not in "biufUS" or a.ndim != 1:
            raise ValueError(f"columns: found {name!r} of {a.dtype}{list(a.shape)}, expected numbers or text of [n]")
        text = a.astype(str)
        known.setdefault(name, tuple(np.unique(text).tolist()))
        at = {level: i for i, level in enumerate(known[name])}
        made[name] = np.array([at.get(value, -1) for value in text.tolist()], np.int32)
    return Table(made, {name: known[name] for name in made if name in known}, ids.astype(np.int32))


def fit_encoder(table: Table) -> Encoder:
    """Mean and standard deviation of each numeric column over its present entries; levels of the others."""
    numbers = {name: a for name, a in table.columns.items() if name not in table.levels}
    present = {name: a[np.isfinite(a)] for name, a in numbers.items()}
    varies = {name: len(a) > 0 and a.min() < a.max() for name, a in present.items()}
    mean = {name: float(a.mean()) if len(a) else 0.0 for name, a in present.items()}
    # The deviation of numbers around 1e-310 is 0 or has lost its digits.
    deviation = {name: float(a.std()) if varies[name] else 0.0 for name, a in present.items()}
    std = {name: value if value > np.finfo(np.float64).tiny else np.inf for name, value in deviation.items()}
    return Encoder(mean, std, dict(table.levels))


def encode(encoder: Encoder, table: Table) -> Float32[np.ndarray, "n d"]:
    """Features in the order of the columns; a missing number or an unknown level is zero in all its features.

    Raises:
      ValueError: if the columns are not those that the encoder was fitted on.
    """
    if set(table.columns) != set(encoder.mean) | set(encoder.levels) or table.levels != encoder.levels:
        raise ValueError(
            f"table: found columns {sorted(table.columns)}, expected {sorted({*encoder.mean, *encoder.levels})} with "
            "the same levels"
        )
    features = []
    for name, a in table.columns.items():
        if name in encoder.levels:
            features.append((a[:, None] == np.arange(len(encoder.levels[name]))).astype(np.float32))
        else:
            standard = (a[:, None] - encoder.mean[name]) / encoder.std[name]
            features.append(np.where(np.isfinite(standard), standard, 0).astype(np.float32))
    return np.concatenate(features, axis=1)


def slices(table: Table) -> dict[str, slice]:
    """Which features each column fills in what `encode` returns."""
    widths = [len(table.levels.get(name, "1")) for name in table.columns]
    stops = np.cumsum(widths)
    spans = zip(table.columns, stops, widths, strict=True)
    return {name: slice(int(stop) - width, int(stop)) for name, stop, width in spans}


def codes(table: Table, name: str, *levels: str) -> Int[np.ndarray, " n"]:
    """Position of each row's level among ``levels``, -1 for any other. Raises ValueError for unknown names."""
    known = table.levels.get(name)
    if known is None or not set(levels) <= set(known):
        expected = sorted(table.levels) if known is None else known
        raise ValueError(f"name, levels: found {name!r} and {levels}, expected among {expected}")
    at = np.full(len(known) + 1, -1)
    at[[known.index(level) for level in levels]] = np.arange(len(levels))
    return at[table.columns[name]]
