"""Conclusions from the rows of one task, computed from the numbers, the most important first.

Rows are selected by role, information and settings. Two rows differ if their means differ by more than the joint
spread (`rows.verdict`). Where several rows have the same role, the best is the one to compare with.
"""

from collections.abc import Iterator, Sequence

from d3mjax.reports.rows import WGA, Row, best, difference, has, num_seeds, verdict
from d3mjax.reports.tables import percent, rounded, value

MOST = 6
"""Sentences of one task."""
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
    "threshold": {
        "above": "Removal adds to what a moved threshold alone gives.",
        "level": "A moved threshold alone, without retraining, does as much.",
        "below": "A moved threshold alone, without retraining, is better.",
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
    top, plain = best(ours), best(row for row in rows if row["role"] == "plain")
    sentences = [*_against_plain(top, plain), *_few_seeds(rows)]
    if top is not None:
        sentences += [*_against_controls(top, rows), *_against_best(top, rows), *_suspects(top), *_checkpoints(top)]
    return sentences[:MOST]


def _against_plain(top: Row | None, plain: Row | None) -> Iterator[str]:
    if plain is None:
        yield "No row is plain training, so this table does not show whether any method helps."
        return
    base = f"plain training ({percent(plain['metrics'][WGA])} %)"
    if top is None:
        yield f"Worst-group accuracy of {base}."
        return
    outcome, cost = verdict(top, plain), ""
    if has(top, "average_accuracy") and has(plain, "average_accuracy"):
        change = difference(top, plain, metric="average_accuracy")[0]
        cost = f"; average accuracy changes by {100 * change:+.1f} points"
    reached = f"{top['method']} reaches {percent(top['metrics'][WGA])} %"
    yield f"Worst group: {reached}, {UNCLEAR.get(outcome, outcome)} {base}{cost}."


def _few_seeds(rows: Sequence[Row]) -> Iterator[str]:
    few = min(map(num_seeds, rows))
    if few < 3:
        yield f"Only {few} seed{'s' * (few > 1)}: the spread is poorly known, so these results are preliminary."


def _against_controls(top: Row, rows: Sequence[Row]) -> Iterator[str]:
    missing = {}
    if has(top, "removed"):
        text = "No row removes random examples of the same classes, so class balance alone may explain a gain."
        missing["class balance"] = text
    if top["information"] == "validation groups":
        missing["targets alone"] = "No row trains on the targets alone, so the targets alone may explain a gain."
    for controls, meaning in CONTROLS.items():
        control = best(row for row in rows if row["settings"].get("controls") == controls)
        if control is not None:
            yield f"{_against(top, control)} {meaning[verdict(top, control)]}"
        elif controls in missing:
            yield missing[controls]


def _against_best(top: Row, rows: Sequence[Row]) -> Iterator[str]:
    for role in ("yardstick", "rival"):
        other = best(row for row in rows if row["role"] == role)
        if other is not None:
            yield _against(top, other, f", the best {role} ({other['information']})")


def _against(top: Row, other: Row, about: str = "") -> str:
    """The best of our rows against another, which ``about`` describes."""
    outcome = {"unknown": "not comparable (one seed)"}.get(judged := verdict(top, other), judged)
    return f"{top['method']} against {other['method']}{about}: {outcome}, {points(top, other)}."


def _suspects(top: Row) -> Iterator[str]:
    if has(top, "suspects") and has(top, "suspects_removed"):
        all_rows, removed = (percent(top["metrics"][name]) for name in ("suspects", "suspects_removed"))
        yield f"Every checkpoint misclassifies {all_rows} % of all examples, and {removed} % of the removed ones."


def _checkpoints(top: Row) -> Iterator[str]:
    worth, number = top["metrics"].get("effective_checkpoints"), top["settings"].get("checkpoints")
    if worth and number:
        yield f"The {number} checkpoints reduce noise as much as {rounded(worth)} independent ones; 1: all agree."


def comparisons(rows: Sequence[Row], pairs: Sequence[tuple[str, str]], *, metric: str, name: str) -> list[str]:
    """A sentence for each pair of methods of one task: their means of ``metric``, called ``name``, and the verdict.

    >>> from d3mjax.reports import rows, sentences
    >>> table = [
    ...     rows.row("adult", method, {"macro_f1": values}, role="ours")
    ...     for method, values in (("trees", [0.61, 0.63]), ("loss", [0.50, 0.52]))
    ... ]
    >>> sentences.comparisons(table, [("trees", "loss")], metric="macro_f1", name="Macro-F1")
    ['Macro-F1: trees 0.620 ± 0.014, above loss (0.510 ± 0.014).']
    """
    of, made = {row["method"]: row for row in rows}, []
    for pair in pairs:
        outcome = verdict(of[pair[0]], of[pair[1]], metric=metric)
        one, other = (value(of[method], metric) for method in pair)
        made.append(f"{name}: {pair[0]} {one}, {UNCLEAR.get(outcome, outcome)} {pair[1]} ({other}).")
    return made


def points(row: Row, other: Row, *, metric: str = WGA) -> str:
    """Difference of two shares in points, with the joint spread."""
    gap, spread = difference(row, other, metric=metric)
    return f"{100 * gap:+.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}") + " points"
