"""DeMix on every task in one table, in the layout of its publication: F1 by kind, and the task metric after repair.

The numbers are those of the published runs (`published`), which write the table into ``docs/results/diagnosis.md``.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

TREES, SCORES = "trees", "best single scores"
ACCURACY, AUC, ERROR = "accuracy", "AUC", "RMS error, its unit"
KINDS = ("label", "feature", "minority")


class Entry(NamedTuple):
    """One task: where its numbers are published, under which names."""

    task: str
    data: str
    diagnosis: tuple[str, str]  # document and task of the rows of F1
    methods: tuple[str, str] = (TREES, SCORES)  # the diagnoser, and the rival that needs no flags
    repair: tuple[str, str] | None = None  # document and task of the rows of the task metric
    metric: tuple[str, str] = (ACCURACY, "accuracy")  # its name, and that in the rows
    repairs: tuple[str, ...] = ()  # methods of the last five columns; "" for none


OF_TABLES = ("numbers of rows, relative to the table", "best single scores, thresholds of other tables")
_SIDES = ("dirty", "drop as many at random", "predicted, sides exchanged, cautious", "oracle, sides exchanged", "clean")
_LABELS = ("dirty", "drop as many at random", "predicted, labels, cautious", "oracle, labels", "clean")
_DROPPED = ("dirty", "as many dropped at random", "predicted, dropped", "oracle, dropped", "clean")
_ADULT = ("dirty", "drop as many at random", "predicted, labels alone, cautious", "oracle, as published", "")


def _table(task: str, **fields: Any) -> Entry:
    return Entry(task, "table", ("demix_tables", task), OF_TABLES, **fields)


def _numbers(task: str) -> Entry:
    names = (f"{task}, unseen table, clean ratio 0.5", f"{task}, repair, clean ratio 0.5")
    of = [("demix_regression", name) for name in names]
    return Entry(task, "table, regression", of[0], repair=of[1], metric=(ERROR, "rms_error"), repairs=_DROPPED)


def _study(study: str, task: str, data: str, metric: tuple[str, str], repairs: tuple[str, ...]) -> Entry:
    of = [(study, f"{task}, {part}, clean ratio 0.5") for part in ("diagnosis", "repair")]
    return Entry(task, data, of[0], repair=of[1], metric=metric, repairs=repairs)


ENTRIES = (
    _table(
        "adult",
        repair=("demix_repair", "adult, published rules, clean ratio 0.5"),
        metric=(ACCURACY, "average_accuracy"),
        repairs=_ADULT,
    ),
    *map(_table, ("bank", "credit", "credit card", "diamonds", "digits")),
    *map(_numbers, ("bike", "air_quality")),
    *(_study("demix_recommendation", task, "ratings", (AUC, "auc"), _LABELS) for task in ("movielens", "lectures")),
    *(_study("demix_alignment", task, "pairs", (ACCURACY, "accuracy"), _SIDES) for task in ("kindness", "commonsense")),
)
HEADER = (
    *("task", "data", *(f"{kind} F1" for kind in KINDS), "metric"),
    *("dirty", "random drop", "repaired", "oracle", "clean"),
)


def markdown(read: Callable[[str], Mapping[str, Any]]) -> str:
    """The table; ``read(name)`` gives a published document. F1 of the diagnoser, and of single scores in brackets.

    Raises:
      ValueError: a document lacks a row that the table needs, naming both.
    """
    lines = [HEADER, ("---", "---", *["---:"] * 3, "---", *["---:"] * 5)]
    for entry in ENTRIES:
        ours, rival = (_metrics(read, entry.diagnosis, method) for method in entry.methods)
        cells = [f"{_mean(ours, kind)} ({_mean(rival, kind)})" for kind in KINDS]
        values, name = [""] * 5, ""
        if place := entry.repair:
            name, key = entry.metric
            value = lambda method, place=place, key=key: _metrics(read, place, method)[key]["mean"]
            values = [_shown(value(method)) if method else "" for method in entry.repairs]
        lines.append((entry.task, entry.data, *cells, name, *values))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _metrics(read: Callable, place: tuple[str, str], method: str) -> Mapping[str, Any]:
    document, task = place
    for row in read(document)["rows"]:
        if (row["task"], row["method"]) == (task, method):
            return row["metrics"]
    raise ValueError(f"{document}: found no row {task!r}, {method!r}, expected one")


def _mean(metrics: Mapping[str, Any], kind: str) -> str:
    key = next(name for name in (f"{kind}_f1", f"{kind}_f1_published") if name in metrics)
    return f"{metrics[key]['mean']:.2f}"


def _shown(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
