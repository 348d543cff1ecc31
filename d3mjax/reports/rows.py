"""Rows of ``metrics.json``: one method on one task, its role in the comparison, and its metrics over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np

from d3mjax.runtime import runs
from d3mjax.types import AnyArray

Row = Mapping[str, Any]
"""One row of ``metrics.json``: task, method, role, information, settings, metrics."""

WGA = "worst_group_accuracy"

VERDICTS = ("above", "level", "below", "unknown")
"""Outcomes of a comparison of two rows; unknown where a single seed has no spread."""


class Kind(NamedTuple):
    """The place of a method in a comparison: its role, the group labels it needs, and what a control controls for."""

    role: str
    information: str = "none"
    controls: str = ""  # "number", "class balance", "group balance", "targets alone", "sign", ...

    def settings(self) -> dict[str, str]:
        """The settings of a row of this kind."""
        return {"controls": self.controls} if self.controls else {}


class Summary(TypedDict):
    """One metric over seeds, as ``metrics.json`` stores it."""

    mean: float | None
    std: float | None
    per_seed: list[float | None]


def row(
    task: str,
    method: str,
    per_seed: Mapping[str, AnyArray | Sequence[Any]],
    *,
    role: str,
    information: str = "none",
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One row of ``metrics.json``; a metric that some seed lacks (None) is left out.

    Args:
      task: the data set and its split.
      method: name of the method, shown in tables.
      per_seed: values of each metric, one a seed.
      role: one of `runs.ROLES`. ``plain`` is plain training, with which all other rows are compared; a ``control``
        names in ``settings["controls"]`` what it controls for.
      information: the group labels that the method needs, one of `runs.INFORMATION`.
      settings: what else determines the numbers.

    Raises:
      ValueError: an unknown role or information, or a control that does not name what it controls for.
    """
    measured = {name: summary([float(v) for v in vs]) for name, vs in per_seed.items() if None not in vs}
    facts = {"role": role, "information": information, "settings": dict(settings or {}), "metrics": measured}
    made = {"task": task, "method": method, **facts}
    runs.check_kind(made, f"row ({task}, {method})")
    return made


def summary(per_seed: AnyArray | Iterable[float]) -> Summary:
    """Mean, standard deviation (ddof=1) and values over seeds, as plain numbers.

    JSON has no NaN: a seed without a finite value is None and makes the mean None; the std of one seed is None.
    Raises ValueError without seeds, or for more than one axis.
    """
    values = np.asarray(per_seed if isinstance(per_seed, AnyArray) else list(per_seed), np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"per_seed: found shape {values.shape}, expected one value a seed in one axis")
    finite = np.isfinite(values)
    return {
        "mean": float(values.mean()) if finite.all() else None,
        "std": float(values.std(ddof=1)) if finite.all() and values.size > 1 else None,
        "per_seed": [float(v) if ok else None for v, ok in zip(values, finite, strict=True)],
    }


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of each task, in order."""
    tasks: dict[str, list[Row]] = {}
    for each in rows:
        tasks.setdefault(each["task"], []).append(each)
    return tasks


def num_seeds(row: Row) -> int:
    """Seeds behind a row: those of the metric with the most."""
    return max((len(value["per_seed"]) for value in row["metrics"].values()), default=0)


def has(row: Row, metric: str) -> bool:
    """Whether a row has a finite mean of a metric."""
    return row["metrics"].get(metric, {}).get("mean") is not None


def difference(row: Row, other: Row, *, metric: str = WGA) -> tuple[float, float | None]:
    """Difference of the means, and the joint spread: the root of the sum of squared standard deviations over seeds."""
    a, b = row["metrics"][metric], other["metrics"][metric]
    spread = None if None in (a["std"], b["std"]) else (a["std"] ** 2 + b["std"] ** 2) ** 0.5
    return a["mean"] - b["mean"], spread


def verdict(row: Row, other: Row, *, metric: str = WGA) -> str:
    """One of `VERDICTS`: two rows are level if their means differ by at most the joint spread."""
    gap, spread = difference(row, other, metric=metric)
    if spread is None:
        return "unknown"
    return "level" if abs(gap) <= spread else "above" if gap > 0 else "below"


def best(rows: Iterable[Row], *, metric: str = WGA) -> Row | None:
    """The row of the largest mean; None where no row has the metric."""
    return max((row for row in rows if has(row, metric)), key=lambda row: row["metrics"][metric]["mean"], default=None)
