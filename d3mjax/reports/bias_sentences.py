"""What the rows of one task on counterfactual bias say: which method to use for which goal, computed from the numbers.

The model as it was trained is the row "no edit". A row is level with another where their means differ by no more than
the joint spread, as in `reading`.
"""

from collections.abc import Iterator, Sequence

from d3mjax.reports.rows import Row
from d3mjax.reports.sentences import WGA, percent, verdict

BASE = "no edit"
COST = 0.005
"""Of accuracy, that taking away bias may cost."""
PLAIN = ("head fine-tuned on the pairs", "DFR on the pairs")
EDITS = ("FMD", "Newton", *PLAIN)
TEMPERATURE = "temperature of FMD's bias"
NEEDS = {"validation groups": " (needs groups of validation rows)", "training groups": " (needs training groups)"}


def by_goal(rows: Sequence[Row]) -> list[str]:
    """A sentence for each goal; none where no row is the model as it was trained."""
    base = next((row for row in rows if row["method"] == BASE), None)
    if base is None:
        return []
    others = [row for row in rows if row is not base and row["method"] != TEMPERATURE]
    fair = [row for row in others if row["information"] != "training groups"]
    said = [*_most(fair, base, WGA, "the worst group"), *_most(fair, base, "accuracy", "accuracy")]
    return [*said, *_least_bias(fair, base), *_fmd(rows), *_temperature(rows)]


def _has(rows: Sequence[Row], metric: str) -> list[Row]:
    return [row for row in rows if row["metrics"].get(metric, {}).get("mean") is not None]


def _most(rows: Sequence[Row], base: Row, metric: str, goal: str) -> Iterator[str]:
    rows = _has(rows, metric)
    if not rows or not _has([base], metric):
        return
    best = max(rows, key=lambda row: row["metrics"][metric]["mean"])
    before = f"{percent(base['metrics'][metric])} %"
    if verdict(best, base, metric) != "above":
        yield f"For {goal} nothing is better than the model as it was trained ({before}) by more than the spread."
        return
    level = [row["method"] for row in rows if row is not best and verdict(row, best, metric) == "level"]
    names = f"; level with it: {', '.join(level)}" if level else ""
    yield (
        f"For {goal}: {best['method']}{NEEDS.get(best['information'], '')}, {percent(best['metrics'][metric])} %, "
        f"{before} as it was trained{names}."
    )


def _least_bias(rows: Sequence[Row], base: Row) -> Iterator[str]:
    least = base["metrics"]["accuracy"]["mean"] - COST
    cheap = [row for row in _has(rows, "bias") if row["metrics"]["accuracy"]["mean"] >= least]
    edits = [row for row in cheap if row["method"].startswith(EDITS)]
    for among, goal in ((cheap, "The least bias"), (edits, "The same for a model that is given, with its attribute")):
        if among:
            best = min(among, key=lambda row: row["metrics"]["bias"]["mean"])
            bias, before = (row["metrics"]["bias"]["mean"] for row in (best, base))
            yield f"{goal}, at {100 * COST:g} points of accuracy at most: {best['method']}, {bias:.3f} of {before:.3f}."


def _fmd(rows: Sequence[Row]) -> Iterator[str]:
    for metric, what in ((WGA, "the worst group"), ("accuracy", "accuracy")):
        ours, plain = (
            [row for row in _has(rows, metric) if row["method"].startswith(names) and "flipped" not in row["method"]]
            for names in (("FMD",), PLAIN)
        )
        if ours and plain:
            a, b = (max(some, key=lambda row: row["metrics"][metric]["mean"]) for some in (ours, plain))
            place = {"unknown": "(one seed) to be compared with", "level": "level with"}
            result = verdict(a, b, metric)
            yield f"On {what} FMD at its best ({a['method']}) is {place.get(result, result)} {b['method']}."


def _temperature(rows: Sequence[Row]) -> Iterator[str]:
    if any(row["method"] == TEMPERATURE for row in rows):
        yield "A temperature reaches FMD's bias and changes no prediction: bias alone says little."
