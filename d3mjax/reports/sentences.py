"""Conclusions from the rows of one task, computed from the numbers, the most important first.

Rows are selected by role, information and settings. Two rows differ if their means differ by more than the joint
spread (`rows.verdict`). Where several rows have the same role, the best is the one to compare with.
"""

from collections.abc import Iterator, Sequence

from d3mjax.reports.rows import VERDICTS, WGA, Row, best, difference, has, num_seeds, verdict
from d3mjax.reports.tables import percent, rounded

MOST = 6
"""Sentences of one task."""
FEW, MANY = 3, 8
"""Rows of one verdict that a sentence names with their differences, and those that it names at all."""
UNCLEAR = {"level": "level with", "unknown": "not comparable (one seed) with"}

CONTROLS = {
    "class balance": {
        "above": "The choice of examples matters beyond their number and classes.",
        "level": "This run does not show that the choice of examples matters beyond class balance.",
        "below": "The choice of examples is worse than a random one of the same classes.",
        "unknown": "One seed shows no spread.",
    },
    "targets alone": {
        "above": "The training set adds to what the targets hold.",
        "level": "The targets alone suffice, so this task does not show that finding training examples helps.",
        "below": "Training on the targets alone is better, so this task does not show that finding examples helps.",
        "unknown": "One seed shows no spread.",
    },
}
"""Meaning of a verdict on the best of our rows against each control."""


def conclusions(rows: Sequence[Row]) -> list[str]:
    """At most `MOST` sentences on worst-group accuracy, the verdict first; none where no row has one."""
    rows = [row for row in rows if has(row, WGA)]
    if not rows:
        return []
    ours = [row for row in rows if row["role"] == "ours"]
    others = [row for row in rows if row["role"] not in ("ours", "plain")]
    plain = best(row for row in rows if row["role"] == "plain")
    sentences = [*_against_plain(ours, plain), *_few_seeds(rows)]
    if ours:
        sentences += [*_against_controls(ours, rows), *_against_yardstick(ours, rows)]
        sentences += [*_suspects(ours), *_checkpoints(ours)]
    if plain is not None:
        lists = (("All of ours", ours[1:] and ours), ("Other methods", others))
        sentences += [f"{name} against plain training: {listed(some, plain)}." for name, some in lists if some]
    return sentences[:MOST]


def _against_plain(ours: Sequence[Row], plain: Row | None) -> Iterator[str]:
    top = best(ours)
    if plain is None:
        yield "No row is plain training, so this table does not show whether any method helps."
        return
    base = f"plain training ({plain['method']}, {percent(plain['metrics'][WGA])} %)"
    if top is None:
        yield f"Worst-group accuracy of {base}."
        return
    outcome, cost = verdict(top, plain), ""
    if has(top, "average_accuracy") and has(plain, "average_accuracy"):
        change = difference(top, plain, metric="average_accuracy")[0]
        cost = f"; average accuracy changes by {100 * change:+.1f} points"
    reached = f"{top['method']} reaches {percent(top['metrics'][WGA])} %"
    yield f"Worst group: {reached}, {UNCLEAR.get(outcome, outcome)} {base}: {points(top, plain)}{cost}."


def _few_seeds(rows: Sequence[Row]) -> Iterator[str]:
    few = min(map(num_seeds, rows))
    if few < 3:
        yield f"Only {few} seed{'s' * (few > 1)}: the spread is poorly known, so these results are preliminary."


def _against_controls(ours: Sequence[Row], rows: Sequence[Row]) -> Iterator[str]:
    missing = {}
    if any(has(row, "removed") for row in ours):
        text = "No row removes random examples of the same classes, so class balance alone may explain a gain."
        missing["class balance"] = text
    if any(row["information"] == "validation groups" for row in ours):
        missing["targets alone"] = "No row trains on the targets alone, so the targets alone may explain a gain."
    for controls, meaning in CONTROLS.items():
        control = best(row for row in rows if row["settings"].get("controls") == controls)
        top = best(ours)
        if control is not None and top is not None:
            yield f"Against {control['method']}: {listed(ours, control)}. {meaning[verdict(top, control)]}"
        elif controls in missing:
            yield missing[controls]


def _against_yardstick(ours: Sequence[Row], rows: Sequence[Row]) -> Iterator[str]:
    yardstick = best(row for row in rows if row["role"] == "yardstick")
    if yardstick is not None:
        name = f"{yardstick['method']}, the best yardstick (given {yardstick['information']})"
        yield f"Against {name}: {listed(ours, yardstick)}."


def _suspects(ours: Sequence[Row]) -> Iterator[str]:
    known = [row for row in ours if has(row, "suspects") and has(row, "suspects_removed")][:FEW]
    removed = [f"{percent(row['metrics']['suspects_removed'])} % ({row['method']})" for row in known]
    if known:
        yield (
            "Training examples that every checkpoint misclassifies (wrong labels or rare cases): "
            f"{percent(known[0]['metrics']['suspects'])} % of all, and of the removed examples {', '.join(removed)}."
        )


def _checkpoints(ours: Sequence[Row]) -> Iterator[str]:
    for row in ours:
        worth, number = row["metrics"].get("effective_checkpoints"), row["settings"].get("checkpoints")
        if worth and number:
            yield (
                f"The {number} checkpoints behind the scores reduce noise as much as {rounded(worth)} independent ones "
                f"(1: all agree; {number}: they share nothing, and the scores are noise)."
            )
            return


def listed(rows: Sequence[Row], other: Row, *, metric: str = WGA) -> str:
    """Rows by their verdict against another row; differences of shares in points where few rows have that verdict."""
    groups = []
    for outcome in VERDICTS:
        same = [row for row in rows if verdict(row, other, metric=metric) == outcome]
        names = [row["method"] for row in same]
        if len(same) <= FEW:
            names = [f"{row['method']} ({points(row, other, metric=metric)})" for row in same]
        elif len(same) > MANY:
            top = max(same, key=lambda row: row["metrics"][metric]["mean"])
            names = [f"{len(same)} rows, of which {top['method']} is the highest"]
        if same:
            groups.append(f"{outcome if outcome != 'unknown' else 'no verdict'}: {', '.join(names)}")
    return "; ".join(groups)


def points(row: Row, other: Row, *, metric: str = WGA) -> str:
    """Difference of two shares in points, with the joint spread."""
    gap, spread = difference(row, other, metric=metric)
    return f"{100 * gap:+.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}") + " points"
