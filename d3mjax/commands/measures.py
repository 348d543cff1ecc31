"""What verdicts and reports go by, accuracies or errors, and their words.

Accuracies are shares, shown in per cent, and differ by points. Errors are in the unit of the label, shown as they are;
what they lose is relative to plain training, so that one limit fits every unit.
"""

from collections.abc import Iterable
from typing import NamedTuple

from d3mjax.reports.rows import WGA, Row, difference, has

SINGLE = 0.05  # difference that counts where a single seed has no spread: a share, or of errors a part of the other one
WORST_ERROR, ERROR = "worst_group_rms_error", "rms_error"


class Measure(NamedTuple):
    """Metrics of rows."""

    worst: str  # of the worst group
    average: str  # of all examples
    errors: bool  # whether smaller is better


ACCURACIES = Measure(WGA, "average_accuracy", errors=False)
ERRORS = Measure(WORST_ERROR, ERROR, errors=True)


def measure_of(rows: Iterable[Row]) -> Measure:
    """Errors where any row has them for the worst group, else accuracies."""
    return ERRORS if any(has(row, WORST_ERROR) for row in rows) else ACCURACIES


def gain(row: Row, other: Row, *, metric: str) -> tuple[float, float]:
    """How much better ``row`` is, and the joint spread; of a single seed `SINGLE`, of errors that part of the other."""
    gap, spread = difference(row, other, metric=metric)
    error = metric.endswith("_error")
    single = SINGLE * (other["metrics"][metric]["mean"] if error else 1)
    return -gap if error else gap, single if spread is None else spread


def loss(row: Row, plain: Row) -> float:
    """Average accuracy lost against plain training, a share, or the relative growth of the error; 0 if not known."""
    measure = measure_of([plain])
    if not has(row, measure.average) or not has(plain, measure.average):
        return 0.0
    gap = gain(plain, row, metric=measure.average)[0]
    return gap / plain["metrics"][measure.average]["mean"] if measure.errors else gap


def shown(row: Row) -> str:
    """The number of the worst group: ``52.6 %``, or an error with four digits."""
    measure = measure_of([row])
    mean = row["metrics"][measure.worst]["mean"]
    return f"{mean:.4g}" if measure.errors else f"{100 * mean:.1f} %"


def lift(row: Row, plain: Row, kind: str) -> str:
    """The change of the worst group: `D3M lifts the worst group from 52.6 % to 75.5 %`; ``kind``: group or class."""
    change = f"from {shown(plain)} to {shown(row)}"
    if measure_of([plain]).errors:
        return f"{row['method']} lowers the error of the worst {kind} {change}"
    return f"{row['method']} lifts the worst {kind} {change}"


def amount(size: float, measure: Measure) -> str:
    """A difference of the worst group, without sign."""
    return f"{size:.3g}" if measure.errors else f"{100 * size:.1f} points"


def limit(share: float, measure: Measure) -> str:
    """A loss over all examples, as `loss` measures it."""
    return f"{100 * share:.3g} {'% more error' if measure.errors else 'points of average accuracy'}"


def against(row: Row, other: Row, judged: str) -> str:
    """Difference of the worst group with the joint spread, and the outcome ``judged``."""
    measure = measure_of([other])
    gap, spread = difference(row, other, metric=measure.worst)
    scale, unit = (1, "") if measure.errors else (100, " points")
    digits = ".3g" if measure.errors else ".1f"
    of_spread = "" if spread is None else f" ± {scale * spread:{digits}}"
    words = {"above": "smaller", "below": "larger"} if measure.errors else {}
    return f"{scale * gap:+{digits}}{of_spread}{unit}, {words.get(judged, judged)}"
