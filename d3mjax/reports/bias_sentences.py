"""Conclusions from the rows of one task on counterfactual bias: the best method for each goal.

Plain training is the row that all others are compared with. Rows with ``settings["edits"]`` edit a trained network, the
others train one. Verdicts are those of `rows.verdict`.
"""

from collections.abc import Iterator, Sequence

from d3mjax.reports.rows import WGA, Row, best, has, verdict
from d3mjax.reports.sentences import MOST, UNCLEAR
from d3mjax.reports.tables import percent

COST = 0.005
"""Accuracy that less bias may cost."""
GOALS = {WGA: "the worst group", "accuracy": "accuracy"}
NEEDS = {"none": "", "validation groups": " (needs validation groups)", "training groups": " (needs training groups)"}


def conclusions(rows: Sequence[Row]) -> list[str]:
    """At most `sentences.MOST` sentences, one a goal; none where plain training has no bias."""
    plain = next((row for row in rows if row["role"] == "plain" and has(row, "bias")), None)
    if plain is None:
        return []
    methods = [row for row in rows if row["role"] in ("ours", "rival") and row["information"] != "training groups"]
    sentences = [sentence for metric in GOALS for sentence in _most(methods, plain, metric)]
    sentences += [*_least_bias(methods, plain), *_edits(methods), *_temperature(rows)]
    return sentences[:MOST]


def _most(rows: Sequence[Row], plain: Row, metric: str) -> Iterator[str]:
    top = best(rows, metric=metric)
    if top is None or not has(plain, metric):
        return
    goal, before = GOALS[metric], f"{percent(plain['metrics'][metric])} %"
    outcome = verdict(top, plain, metric=metric)
    if outcome != "above":
        reason = "one seed shows no spread" if outcome == "unknown" else "no method exceeds it by more than the spread"
        yield f"For {goal} keep plain training ({before}): {reason}."
        return
    rest = [row for row in rows if row is not top and has(row, metric)]
    level = [row["method"] for row in rest if verdict(row, top, metric=metric) == "level"]
    names = f"; level with it: {', '.join(level)}" if level else ""
    reached = f"{percent(top['metrics'][metric])} %, plain training {before}"
    yield f"For {goal}: {top['method']}{NEEDS[top['information']]}, {reached}{names}."


def _least_bias(rows: Sequence[Row], plain: Row) -> Iterator[str]:
    least = plain["metrics"]["accuracy"]["mean"] - COST
    cheap = [row for row in rows if has(row, "bias") and row["metrics"]["accuracy"]["mean"] >= least]
    edits = [row for row in cheap if "edits" in row["settings"]]
    for among, goal in ((cheap, "Least bias"), (edits, "Least bias by editing the trained network")):
        if among:
            top = min(among, key=lambda row: row["metrics"]["bias"]["mean"])
            bias, before = (row["metrics"]["bias"]["mean"] for row in (top, plain))
            yield f"{goal}, for at most {100 * COST:g} points of accuracy: {top['method']}, {bias:.3f} of {before:.3f}."


def _edits(rows: Sequence[Row]) -> Iterator[str]:
    """The best of our edits against the best other edit."""
    edits = [row for row in rows if "edits" in row["settings"]]
    parts = []
    for metric, goal in GOALS.items():
        ours, rival = (best((row for row in edits if row["role"] == role), metric=metric) for role in ("ours", "rival"))
        if ours is not None and rival is not None:
            outcome = verdict(ours, rival, metric=metric)
            parts.append(f"on {goal} {ours['method']} is {UNCLEAR.get(outcome, outcome)} {rival['method']}")
    if parts:
        yield f"Our best edits against the best others: {', '.join(parts)}."


def _temperature(rows: Sequence[Row]) -> Iterator[str]:
    if any(row["settings"].get("controls") == "temperature" for row in rows):
        yield "A temperature reaches the same bias without changing any prediction: bias alone is not enough."
