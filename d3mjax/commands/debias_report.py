"""Rows, figures, lists and findings of d3mjax-debias, from its stored units alone."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d3mjax.commands import debias_auto, debias_trust, measures, verdict
from d3mjax.commands.command import write_csv
from d3mjax.commands.debias_data import UserData
from d3mjax.commands.debias_seed import (
    LABEL_MATCHED,
    LABEL_WEIGHTS,
    MATCHED,
    NEGATIVE,
    OFFSETS,
    PLAIN,
    RANDOM,
    SELECTED,
    SHIFT,
    TARGETS_ALONE,
    TENTH,
    WEIGHTS,
)
from d3mjax.commands.verdict import Verdict
from d3mjax.debiasing import selection
from d3mjax.reports.rows import Kind, Row, row
from d3mjax.runtime import store
from d3mjax.runtime.runs import Unit
from d3mjax.types import classes_of

METHODS = {
    PLAIN: Kind("plain"),
    OFFSETS: Kind("control", "validation groups", "threshold"),
    SHIFT: Kind("control", "validation groups", "shift"),
    WEIGHTS: Kind("control", "validation groups", "class weights"),
    LABEL_WEIGHTS: Kind("control", "validation groups", "label weights"),
    RANDOM: Kind("control", controls="number"),
    MATCHED: Kind("control", controls="class balance"),
    LABEL_MATCHED: Kind("control", controls="label balance"),
    TARGETS_ALONE: Kind("control", "validation groups", "targets alone"),
    NEGATIVE: Kind("ours", "validation groups"),
    TENTH: Kind("ours", "validation groups"),
    SELECTED: Kind("ours", "validation groups"),
}
"""The methods of the table, in its order; those that no seed has measured are left out."""
MOST = 5  # findings after the verdict


class Ranking(NamedTuple):
    """All seeds together: mean scores, which examples are removed, and how often each is suspected."""

    score: np.ndarray  # Float[n]
    keep: np.ndarray  # Bool[n]
    rank: np.ndarray  # Int[n], 0 is removed first
    suspect: np.ndarray  # Float[n], share of the seeds
    reading: int  # index of the damping behind the score


def rank(units: Sequence[Unit], y: np.ndarray, *, reading: int | None = None) -> Ranking:
    """The lowest mean scores are removed, as many as on average over seeds.

    The scores are of ``reading``, or of the damping that most seeds have chosen. A seed that refused counts with scores
    of 0, and has chosen none.
    """
    if reading is None:
        choosing = [facts for facts, _ in units if "chosen" in facts] or [facts for facts, _ in units]
        reading = int(np.bincount([facts["reading"] for facts in choosing]).argmax())
    score = np.mean([arrays["score"][reading] for _, arrays in units], axis=0)
    removed = round(float(np.mean([(~arrays["kept"]).sum() for _, arrays in units])))
    y = np.asarray(classes_of(y))
    keep, _ = selection.guard(score, selection.drop_lowest(score, removed), y, int(y.max()) + 1)
    order = selection.rank_within(score, np.zeros(len(score), int))
    suspect = np.mean([arrays["suspect"] for _, arrays in units], axis=0)
    return Ranking(score, np.asarray(keep), np.asarray(order), suspect, int(reading))


def write_lists(directory: Path, data: UserData, units: Sequence[Unit], ranking: Ranking) -> None:
    """``examples.csv``, lowest scores first, and ``scores.npz`` with the arrays of every seed.

    With --auto also ``pseudo_groups.csv``: for every target its class, its side in most of the seeds that split it,
    the share of them that have it on the weaker side, and their number.
    """
    scores = (f"{score:.6g}" for score in ranking.score)
    suspects = (f"{share:.2f}" for share in ranking.suspect)
    lines = list(zip(data.names, scores, ranking.keep.astype(int), ranking.rank, suspects, strict=True))
    lines = [lines[i] for i in np.argsort(ranking.rank)]
    write_csv(directory / "examples.csv", ("id", "score", "keep", "rank", "suspect"), lines)
    seeds = {f"{k}_per_seed": np.stack([a[k] for _, a in units]) for k in ("kept", "suspect")}
    seeds |= {f"{k}_per_seed": np.stack([a[k][ranking.reading] for _, a in units]) for k in ("score", "columns")}
    store.write_arrays(directory / "scores.npz", {"id": data.names, **ranking._asdict(), **seeds})
    if debias_auto.of_seeds(units):
        lines = debias_auto.target_lines(data, units)
        write_csv(directory / "pseudo_groups.csv", ("id", "class", "group", "weaker", "seeds"), lines)


def rows_of(task: str, units: Sequence[Unit]) -> list[dict[str, Any]]:
    """One row a method: a seed's number is the mean over its retrained models of their worst group's accuracy or error.

    A seed where --auto refused counts as plain training.
    """
    splits, measure = debias_auto.of_seeds(units), measure_of(units)
    rows = []
    for method in measured(units):
        kind = METHODS[method]
        names = [of_stored(unit, method) for unit in units]
        values = {
            measure.worst: [worst_of(unit, method) for unit in units],
            measure.average: [a[f"average/{name}"].mean() for (_, a), name in zip(units, names, strict=True)],
            **(absolute_errors(units, method) if measure.errors else {}),
            "removed": [facts["removed"].get(name) for (facts, _), name in zip(units, names, strict=True)],
            "suspects_removed": [facts["suspects_removed"].get(method) for facts, _ in units],
        }
        settings: dict[str, Any] = kind.settings()
        if kind.role == "ours":
            values |= {name: [facts[name] for facts, _ in units] for name in ("suspects", "effective_checkpoints")}
            settings["checkpoints"] = units[0][0]["checkpoints"]
        if method == SELECTED:
            offsets = float(np.mean([facts.get("offsets", False) for facts, _ in units]))
            settings |= {"selected": True, "offsets": offsets}  # share of the seeds with class offsets
        information = "none" if splits else kind.information  # with --auto no group label was used
        rows.append(row(task, method, values, role=kind.role, information=information, settings=settings))
    return rows


def measure_of(units: Sequence[Unit]) -> measures.Measure:
    """Accuracies, or with --regression errors."""
    return measures.ERRORS if f"absolute/{PLAIN}" in units[0][1] else measures.ACCURACIES


def absolute_errors(units: Sequence[Unit], method: str) -> dict[str, list[float]]:
    """Mean absolute errors of every seed: the largest of a group, and over all that report."""
    of = lambda name: [arrays[f"{name}/{of_stored((facts, arrays), method)}"] for facts, arrays in units]
    worst = [float(a.max(-1).mean()) for a in of("absolute")]
    return {
        "worst_group_absolute_error": worst,
        "mean_absolute_error": [float(a.mean()) for a in of("average_absolute")],
    }


def measured(units: Sequence[Unit]) -> list[str]:
    """Methods that some seed measured."""
    return [method for method in METHODS if any(f"test/{method}" in arrays for _, arrays in units)]


def of_stored(unit: Unit, method: str) -> str:
    """The method under whose name a seed stored its numbers: plain training where it refused to remove anything."""
    return method if f"test/{method}" in unit[1] else PLAIN


def worst_of(unit: Unit, method: str) -> float:
    """Worst-group test accuracy, or largest error of a group, mean over the retrained models."""
    return float(worst_group(unit[1][f"test/{of_stored(unit, method)}"], measure_of([unit])).mean())


def worst_group(numbers: np.ndarray, measure: measures.Measure) -> np.ndarray:
    """The smallest accuracy, or the largest error, over groups, the last axis."""
    return numbers.max(-1) if measure.errors else numbers.min(-1)


def influences_of(units: Sequence[Unit]) -> verdict.Influences:
    """Influences of all that reports on the worst-group accuracy of every method of the table, mean over seeds."""
    of_seeds = lambda method: [unit[1][f"influence/{of_stored(unit, method)}"] for unit in units]
    return {method: np.mean(of_seeds(method), axis=0) for method in measured(units)}


def decide(rows: Sequence[Row], units: Sequence[Unit], group_names: Sequence[str], max_loss: float) -> Verdict:
    """The verdict on these rows; where --auto refused in all seeds, to leave the training set as it is."""
    splits = debias_auto.of_seeds(units)
    if debias_auto.refused(splits):
        sentence, *reasons = debias_auto.refusal()
        return Verdict(verdict.LEAVE, sentence, tuple(reasons))
    kind = "class" if splits else "group"
    sizes = units[0][0]["sizes"]
    return verdict.decide(rows, sizes, group_names, influences_of(units), max_loss=max_loss, kind=kind)


def findings(
    result: Verdict,
    rows: Sequence[Row],
    units: Sequence[Unit],
    class_names: Sequence[str],
) -> list[str]:
    """The verdict, and at most `MOST` sentences that follow from numbers, the most important first."""
    splits = debias_auto.of_seeds(units)
    if debias_auto.refused(splits):
        return [result.sentence, *result.reasons][: 1 + MOST]
    ours = next(row for row in rows if row["settings"].get("selected"))
    controls = {row["settings"].get("controls"): row for row in rows if row["role"] == "control"}
    kept = [arrays["kept"] for _, arrays in units if "kept" in arrays]
    plain, measure = next(row for row in rows if row["role"] == "plain"), measures.measure_of(rows)
    error_to = partial(verdict.sampling_error, influences_of(units), ours)
    some = [
        *_what_to_do(result, rows, units, class_names),
        *result.reasons,
        *debias_auto.caveats(splits),
        *debias_trust.sentences(units[0][0]),
        *_noise(ours),
        *_suspects(ours, measure),
        *_against(ours, controls.get("class balance"), "as many random examples of the same classes", error_to),
        *_against(ours, controls.get("label balance"), "as many random examples of the same labels", error_to),
        *_agreement(kept),
        *_against(ours, controls.get("targets alone"), "training on the targets alone", error_to),
        *_chance(units[0][0]["sizes"]["test"], error_to(plain), measure),
    ]
    return [result.sentence, *some[:MOST]]


def _what_to_do(
    result: Verdict, rows: Sequence[Row], units: Sequence[Unit], class_names: Sequence[str]
) -> Iterator[str]:
    if result.action in (verdict.DROP, verdict.BOTH):
        chosen = next(row for row in rows if row["method"] == result.method)
        removed, mark = chosen["metrics"]["removed"]["mean"], " (keep = 0)" * chosen["settings"].get("selected", False)
        yield f"Drop the first {removed:.1%} of the lines of examples.csv{mark}."
    if result.action in (verdict.THRESHOLD, verdict.BOTH):
        # A seed whose selection took no offsets has none to average.
        with_offsets = [a for facts, a in units if result.method != SELECTED or facts.get("offsets")]
        models = [a[f"offsets/{result.method}"].mean(0) for a in with_offsets if f"offsets/{result.method}" in a]
        offsets = np.mean(models, axis=0) if models else np.zeros(len(class_names))
        largest = sorted(np.argsort(-np.abs(offsets))[:4].tolist())
        added = ", ".join(f"{class_names[c]} {offsets[c]:+.2f}" for c in largest)
        yield f"Add to the logits: {added}. For another model choose them anew (d3mjax.offsets.choose)."
    if result.action == verdict.SHIFT:
        added = np.mean([arrays[f"offsets/{SHIFT}"] for _, arrays in units])
        yield f"Add {added:+.4g} to the predictions. For another model choose it anew (debiasing.regression.shift)."
    if result.action == verdict.BALANCE_LABELS:
        yield "Give intervals of the label equal weight in training, by weights inverse to their size or its root."
    if result.action == verdict.BALANCE:
        yield "Give the classes equal weight in training, by weights inverse to their size or its root."


def _noise(ours: Row) -> Iterator[str]:
    worth, number = ours["metrics"]["effective_checkpoints"]["mean"], ours["settings"]["checkpoints"]
    if worth > (number + 1) / 2:  # less than half of the variance of their mean is common to them
        yield (
            f"The scores are mostly noise: {number} checkpoints differ as much as {worth:.1f} unrelated ones. "
            "Raise --checkpoints."
        )


def _suspects(ours: Row, measure: measures.Measure) -> Iterator[str]:
    among_all, among = (ours["metrics"].get(name) for name in ("suspects", "suspects_removed"))
    if among_all and among and among["mean"] > 0.1 and among["mean"] > 2 * among_all["mean"]:
        fail = "far from the prediction of every checkpoint" if measure.errors else "misclassified by every checkpoint"
        yield (
            f"Look at the suspects first: {among['mean']:.0%} of the dropped examples and {among_all['mean']:.0%} of "
            f"all are {fail}, as wrong labels are."
        )


def _against(ours: Row, other: Row | None, name: str, error_to: Callable[[Row], float]) -> Iterator[str]:
    if other is not None:
        metric = measures.measure_of([ours]).worst
        judged = verdict.outcome(ours, other, metric=metric, error=error_to(other))
        yield f"D3M by selection against {name}: {measures.against(ours, other, judged)}."


def _agreement(kept: Sequence[np.ndarray]) -> Iterator[str]:
    shares = [(~a & ~b).sum() / max(min((~a).sum(), (~b).sum()), 1) for a, b in itertools.combinations(kept, 2)]
    if shares and any((~a).any() for a in kept):
        chance = np.mean([max((~a).mean(), (~b).mean()) for a, b in itertools.combinations(kept, 2)])
        yield f"Of what one seed drops, another drops {np.mean(shares):.0%} ({chance:.0%} by chance)."


def _chance(sizes: Sequence[int], error: float, measure: measures.Measure) -> Iterator[str]:
    examples = f"by the reporting examples, {min(sizes)} of the smallest group"
    yield f"The difference to plain training has a standard error of {measures.amount(error, measure)} {examples}."
