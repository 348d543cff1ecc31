"""What the rows of one task show and do not show, in sentences computed from the numbers.

Rows are told apart by their method names: plain training is the row "ERM", or "dirty" on a table with errors; controls
are the rows whose names hold "class-matched" or "targets alone", oracles are the rows that need training groups, and
ours are the rows with "D3M" in their names that do not. Two rows differ when their means differ by more than the joint
spread, the root of the sum of the squared standard deviations over seeds. Where several rows are the same control, the
best is the one to beat.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from d3mjax.reports.rows import Row

WGA = "worst_group_accuracy"
PLAIN = ("ERM", "dirty")

SPOKEN = ("suspects", "suspects_removed", "effective_checkpoints")
"""Metrics of a row that sentences tell and tables leave out."""


def reading(rows: Sequence[Row]) -> list[str]:
    """Sentences about worst-group accuracy; none where no row has one."""
    rows = [row for row in rows if row["metrics"].get(WGA, {}).get("mean") is not None]
    if not rows:
        return []
    ours = [row for row in rows if "D3M" in row["method"] and row["information"] != "training groups"]
    erm = _best(rows, lambda row: row["method"] in PLAIN)
    matched = _best(rows, lambda row: "class-matched" in row["method"].lower())
    targets = _best(rows, lambda row: "targets alone" in row["method"].lower())
    oracle = _best(rows, lambda row: row["information"] == "training groups")
    said = list(_against_plain(rows, erm))
    if ours:
        said += [*_against_matched(ours, matched), *_against_targets(ours, targets)]
        said += [*_against_oracle(ours, oracle), *_cost(ours, erm), *_suspects(ours), *_checkpoints(ours)]
    few = min(num_seeds(row) for row in rows)
    if few < 3:
        said.append(f"Only {few} seed{'s' * (few > 1)}: the spread is hardly known, take all of this as a hint.")
    return said


def verdict(row: Row, other: Row, metric: str = WGA) -> str:
    """Whether `row` is "above", "below" or "level" with `other`; "unknown" where a single seed shows no spread."""
    difference, joint = _difference(row, other, metric)
    if joint is None:
        return "unknown"
    return "level" if abs(difference) <= joint else "above" if difference > 0 else "below"


def num_seeds(row: Row) -> int:
    """Seeds behind a row: those of its best-covered metric."""
    return max((len(value["per_seed"]) for value in row["metrics"].values()), default=0)


def percent(value: Mapping[str, Any]) -> str:
    """Mean ± standard deviation of a share, in per cent."""
    return _rounded(value, 100.0)


def _against_plain(rows: Sequence[Row], erm: Row | None) -> Iterator[str]:
    if erm is None:
        yield "There is no row of plain training (ERM), so nothing here says whether any method helps."
        return
    yield f"Plain training ({erm['method']}) reaches {percent(erm['metrics'][WGA])} % on its worst group."
    phrases = {
        "above": "Better by more than the joint spread",
        "level": "Within the joint spread of it",
        "below": "Worse by more than the joint spread",
        "unknown": "One seed, so no spread to judge the difference",
    }
    for result, phrase in phrases.items():
        found = [r for r in rows if r is not erm and verdict(r, erm) == result]
        listed = ", ".join(f"{r['method']} ({_points(r, erm)})" for r in found)
        if found:
            yield f"{phrase}: {listed}."


def _against_matched(ours: Sequence[Row], matched: Row | None) -> Iterator[str]:
    if matched is None:
        yield "No row removes random examples of the same classes, so a gain may come from class balance alone."
        return
    meaning = {
        "above": "which examples go matters, not only how many and of which class.",
        "level": "this run does not show that the choice of examples matters beyond class balance.",
        "below": "its choice of examples does harm here.",
        "unknown": "one seed decides nothing.",
    }
    for row in ours:
        gap = _points(row, matched)
        yield f"{row['method']} against {matched['method']}, {gap}: {meaning[verdict(row, matched)]}"


def _against_targets(ours: Sequence[Row], targets: Row | None) -> Iterator[str]:
    if targets is None:
        yield "No row trains on the targets alone, so the targets by themselves may be all that is needed."
        return
    name = targets["method"]
    for row in ours:
        method, gap, result = row["method"], _points(row, targets), verdict(row, targets)
        if result == "above":
            yield f"{method} against {name}, {gap}: the training set holds something that the targets do not."
        elif result == "unknown":
            yield f"{method} against {name}, {gap}: one seed decides nothing."
        else:
            yield (
                f"{method} against {name}, {gap}: the targets by themselves do "
                f"{'better' if result == 'below' else 'as well'}, so for {method} this task proves nothing about "
                "finding training examples."
            )


def _against_oracle(ours: Sequence[Row], oracle: Row | None) -> Iterator[str]:
    if oracle is None:
        return
    place = {"above": "above", "level": "level with", "below": "below", "unknown": "(one seed) to be compared with"}
    for row in ours:
        yield (
            f"{row['method']} is {place[verdict(row, oracle)]} {oracle['method']}, the best row that is given the "
            f"training groups ({_points(row, oracle)})."
        )


def _cost(ours: Sequence[Row], erm: Row | None) -> Iterator[str]:
    before = erm["metrics"].get("average_accuracy") if erm else None
    for row in ours:
        after = row["metrics"].get("average_accuracy")
        if before and after and None not in (before["mean"], after["mean"]):
            yield f"Average accuracy under {row['method']}: {percent(after)} %, under ERM {percent(before)} %."


def _suspects(ours: Sequence[Row]) -> Iterator[str]:
    known = [row["metrics"] for row in ours if "suspects" in row["metrics"]]
    removed = [
        f"{percent(row['metrics'][key])} % ({row['method']})"
        for row in ours
        if (key := "suspects_removed") in row["metrics"]
    ]
    if known and removed:
        yield (
            "Label-error suspects are training examples that every checkpoint misclassifies, because the label is "
            f"wrong or the case too rare to be learnt: {percent(known[0]['suspects'])} % of the training set, and of "
            f"the removed examples {', '.join(removed)}."
        )


def _checkpoints(ours: Sequence[Row]) -> Iterator[str]:
    for row in ours:
        worth, number = row["metrics"].get("effective_checkpoints"), row["settings"].get("checkpoints")
        if worth and number:
            yield (
                f"Averaging the {number} checkpoints behind the scores evens out as much as averaging "
                f"{_rounded(worth)} unrelated ones would: 1 would mean that all say the same, {number} that they share "
                "nothing and the scores are noise."
            )
            return


def _rounded(value: Mapping[str, Any], scale: float = 1.0) -> str:
    spread = f" ± {scale * value['std']:.1f}" if value["std"] else ""
    return f"{scale * value['mean']:.1f}{spread}"


def _best(rows: Sequence[Row], matches: Callable[[Row], bool]) -> Row | None:
    return max(filter(matches, rows), key=lambda row: row["metrics"][WGA]["mean"], default=None)


def _difference(row: Row, other: Row, metric: str = WGA) -> tuple[float, float | None]:
    a, b = row["metrics"][metric], other["metrics"][metric]
    joint = None if None in (a["std"], b["std"]) else (a["std"] ** 2 + b["std"] ** 2) ** 0.5
    return a["mean"] - b["mean"], joint


def _points(row: Row, other: Row) -> str:
    difference, joint = _difference(row, other)
    return f"{100 * difference:+.1f}" + ("" if joint is None else f" ± {100 * joint:.1f}") + " points"
