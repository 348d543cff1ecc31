"""Rows, figures, lists and findings of d3mjax-debias, from its stored units alone."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from d3mjax.commands import debias_auto, verdict
from d3mjax.commands.command import write_csv
from d3mjax.commands.debias_data import Files, UserData
from d3mjax.commands.debias_seed import (
    MATCHED,
    NEGATIVE,
    OFFSETS,
    PLAIN,
    RANDOM,
    SELECTED,
    TARGETS_ALONE,
    TENTH,
    WEIGHTS,
)
from d3mjax.commands.verdict import Verdict
from d3mjax.data import cells
from d3mjax.debiasing import selection
from d3mjax.reports import plots
from d3mjax.reports.page import LONGEST, Section
from d3mjax.reports.rows import WGA, Kind, Row, row
from d3mjax.reports.sentences import points
from d3mjax.runtime import store
from d3mjax.runtime.runs import Unit

METHODS = {
    PLAIN: Kind("plain"),
    OFFSETS: Kind("control", "validation groups", "threshold"),
    WEIGHTS: Kind("control", "validation groups", "class weights"),
    RANDOM: Kind("control", controls="number"),
    MATCHED: Kind("control", controls="class balance"),
    TARGETS_ALONE: Kind("control", "validation groups", "targets alone"),
    NEGATIVE: Kind("ours", "validation groups"),
    TENTH: Kind("ours", "validation groups"),
    SELECTED: Kind("ours", "validation groups"),
}
"""The methods of the table, in its order; those that no seed has measured are left out."""
MOST = 5  # findings after the verdict
LOWEST = 24  # examples of lowest score that are shown
NOTE = (
    "examples.csv puts the scores of all seeds together; the accuracies are those of each seed's own list, on targets "
    "that this list had not seen. Checkpoints and plain training are shared by all seeds, so the spread is that of the "
    "division of the targets and of retraining."
)


class Ranking(NamedTuple):
    """All seeds together: mean scores, which examples are removed, and how often each is suspected."""

    score: np.ndarray  # Float[n]
    keep: np.ndarray  # Bool[n]
    rank: np.ndarray  # Int[n], 0 is removed first
    suspect: np.ndarray  # Float[n], share of the seeds
    reading: int  # index of the damping behind the score


def rank(units: Sequence[Unit], y: np.ndarray, num_classes: int, *, reading: int | None = None) -> Ranking:
    """The lowest mean scores are removed, as many as on average over seeds.

    The scores are of ``reading``, or of the damping that most seeds have chosen. A seed that refused counts with scores
    of 0, and has chosen none.
    """
    if reading is None:
        choosing = [facts for facts, _ in units if "chosen" in facts] or [facts for facts, _ in units]
        reading = int(np.bincount([facts["reading"] for facts in choosing]).argmax())
    score = np.mean([arrays["score"][reading] for _, arrays in units], axis=0)
    removed = round(float(np.mean([(~arrays["kept"]).sum() for _, arrays in units])))
    keep, _ = selection.guard(score, selection.drop_lowest(score, removed), y, num_classes)
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
    """One row a method: a seed's number is the mean over its retrained models of their worst group's accuracy.

    A seed where --auto refused counts as plain training.
    """
    splits = debias_auto.of_seeds(units)
    rows = []
    for method in _measured(units):
        kind = METHODS[method]
        names = [_stored(unit, method) for unit in units]
        values = {
            WGA: [_worst(unit, method) for unit in units],
            "average_accuracy": [a[f"average/{name}"].mean() for (_, a), name in zip(units, names, strict=True)],
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


def _measured(units: Sequence[Unit]) -> list[str]:
    """Methods that some seed measured."""
    return [method for method in METHODS if any(f"test/{method}" in arrays for _, arrays in units)]


def _stored(unit: Unit, method: str) -> str:
    """The method under whose name a seed stored its numbers: plain training where it refused to remove anything."""
    return method if f"test/{method}" in unit[1] else PLAIN


def _worst(unit: Unit, method: str) -> float:
    """Worst-group test accuracy, mean over the retrained models."""
    return float(unit[1][f"test/{_stored(unit, method)}"].min(-1).mean())


def influences_of(units: Sequence[Unit]) -> verdict.Influences:
    """Influences of all that reports on the worst-group accuracy of every method of the table, mean over seeds."""
    of_seeds = lambda method: [unit[1][f"influence/{_stored(unit, method)}"] for unit in units]
    return {method: np.mean(of_seeds(method), axis=0) for method in _measured(units)}


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
    plain = next(row for row in rows if row["role"] == "plain")
    error_to = partial(verdict.sampling_error, influences_of(units), ours)
    some = [
        *_what_to_do(result, rows, units, class_names),
        *result.reasons,
        *debias_auto.caveats(splits),
        *_noise(ours),
        *_suspects(ours),
        *_against(ours, controls.get("class balance"), "as many random examples of the same classes", error_to),
        *_agreement(kept),
        *_against(ours, controls.get("targets alone"), "training on the targets alone", error_to),
        *_chance(units[0][0]["sizes"]["test"], error_to(plain)),
    ]
    return [result.sentence, *some[:MOST]]


def _criteria(files: Files) -> str:
    """What the groups are made of."""
    return ", ".join(filter(None, (files.group, files.any_of and f"any of {files.any_of}")))


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
    if result.action == verdict.BALANCE:
        yield "Give the classes equal weight in training, by weights inverse to their size or its root."


def _noise(ours: Row) -> Iterator[str]:
    worth, number = ours["metrics"]["effective_checkpoints"]["mean"], ours["settings"]["checkpoints"]
    if worth > (number + 1) / 2:  # less than half of the variance of their mean is common to them
        yield (
            f"The scores are mostly noise: {number} checkpoints differ as much as {worth:.1f} unrelated ones. "
            "Raise --checkpoints."
        )


def _suspects(ours: Row) -> Iterator[str]:
    among_all, among = (ours["metrics"].get(name) for name in ("suspects", "suspects_removed"))
    if among_all and among and among["mean"] > 0.1 and among["mean"] > 2 * among_all["mean"]:
        yield (
            f"Look at the suspects first: {among['mean']:.0%} of the dropped examples and {among_all['mean']:.0%} of "
            "all are misclassified by every checkpoint, as wrong labels are."
        )


def _against(ours: Row, other: Row | None, name: str, error_to: Callable[[Row], float]) -> Iterator[str]:
    if other is not None:
        judged = verdict.outcome(ours, other, error=error_to(other))
        yield f"D3M by selection against {name}: {points(ours, other)}, {judged}."


def _agreement(kept: Sequence[np.ndarray]) -> Iterator[str]:
    shares = [(~a & ~b).sum() / max(min((~a).sum(), (~b).sum()), 1) for a, b in itertools.combinations(kept, 2)]
    if shares and any((~a).any() for a in kept):
        chance = np.mean([max((~a).mean(), (~b).mean()) for a, b in itertools.combinations(kept, 2)])
        yield f"Of what one seed drops, another drops {np.mean(shares):.0%} ({chance:.0%} by chance)."


def _chance(sizes: Sequence[int], error: float) -> Iterator[str]:
    examples = f"by the reporting examples, {min(sizes)} of the smallest group"
    yield f"The difference to plain training has a standard error of {100 * error:.1f} points {examples}."


def section(
    files: Files,
    data: UserData,
    image: tuple[int, ...] | None,
    units: Sequence[Unit],
    ranking: Ranking,
    *,
    chosen: str | None,
    max_loss: float,
) -> Section:
    """Details and figures of the page; ``chosen``: method of the verdict."""
    n, groups = len(data.train.y), f"in {len(data.group_names)} groups ({_criteria(files)})."
    groups = f"without group labels. {debias_auto.ABOUT}" if files.auto else groups
    about = f"{n:,} training examples of {files.train}, {len(data.target.y):,} targets of {files.target} {groups}"
    splits = debias_auto.of_seeds(units)
    text = "\n".join(
        [about, *data.card.get("notes", ()), NOTE, *(debias_auto.details(splits, data.group_names) if splits else [])]
    )
    average = lambda unit, method: float(unit[1][f"average/{_stored(unit, method)}"].mean())
    of_method = {
        m: ([average(unit, m) for unit in units], [_worst(unit, m) for unit in units]) for m in _measured(units)
    }
    removing = [arrays for _, arrays in units if "curve" in arrays]
    tried = [(a["candidate_average"], a["candidate_test"].min(-1)) for a in removing if "candidate_average" in a]
    figures = {
        "Worst group against average accuracy on the report part; grey: the candidates of D3M.": (
            plots.worst_against_average(
                of_method,
                plain=PLAIN,
                chosen=chosen,
                max_loss=max_loss,
                candidates=tuple(np.mean(tried, axis=0)) if tried else ((), ()),
            )
        )
    }
    if removing:
        shown = dict.fromkeys(method for method in (PLAIN, SELECTED, chosen) if method)
        figures |= _removal_figures(data, units, ranking, {m: worst for m, (_, worst) in of_method.items()}, shown)
    if image and removing:
        first = np.argsort(ranking.rank)[:LOWEST]
        images = data.train.x[first].reshape(-1, *image)
        titles = [f"{data.names[i]}: {data.class_names[data.train.y[i]]}"[:18] for i in first]
        figures["The examples of lowest score: id and label."] = plots.image_grid(images, titles)
    pictures, texts = _lowest(data, ranking) if removing else ({}, {})
    return Section(text, figures | pictures, card=data.card.get("columns", ()), examples=texts)


def _lowest(data: UserData, ranking: Ranking) -> tuple[dict[str, Figure], dict[str, list[dict[str, Any]]]]:
    """The examples of lowest score as a figure of pictures, or as a table of texts, by caption."""
    if data.examples is None:
        return {}, {}
    first = np.argsort(ranking.rank)[:LOWEST]
    labels = [data.class_names[y] for y in data.train.y[first]]
    raw = data.examples(first.tolist())
    if isinstance(raw, np.ndarray):
        titles = [f"{data.names[i]}: {label}"[:18] for i, label in zip(first, labels, strict=True)]
        return {"The examples of lowest score: id and label.": plots.image_grid(raw, titles)}, {}
    lines = [
        {
            "id": str(data.names[i]),
            "text": cells.short(text, length=LONGEST),
            "label": label,
            "score": f"{score:.2g}",
        }
        for i, text, label, score in zip(first, raw, labels, ranking.score[first], strict=True)
    ]
    return {}, {"The texts of lowest score.": lines}


def _removal_figures(
    data: UserData,
    units: Sequence[Unit],
    ranking: Ranking,
    worst: Mapping[str, Sequence[float]],
    shown: Iterable[str],
) -> dict[str, Figure]:
    """Figures of what is removed; ``shown``: methods of which every group is shown."""
    n, removing = len(data.train.y), [unit for unit in units if "curve" in unit[1]]
    removed = [int(share * n) for share in removing[0][0]["shares"]]
    curve = (removed, [a["curve"].min(-1).mean(-1) for _, a in removing])
    mark = (float((~ranking.keep).sum()), float(np.mean(worst[SELECTED])))
    references = {method: worst[method] for method in (PLAIN, MATCHED, TARGETS_ALONE)}
    bars = {m: [unit[1][f"test/{_stored(unit, m)}"].mean(0) for unit in units] for m in shown}
    names = (*data.group_names, "unknown group")
    group = np.where(data.train.group < 0, len(names) - 1, data.train.group)
    return {
        "Worst-group accuracy on the report part against the number of removed examples.": (
            plots.accuracy_against_removed({"D3M": curve}, {"by selection": mark}, references=references, num_train=n)
        ),
        "Accuracy of every group on the report part, before and after.": plots.bar_groups(bars, data.group_names),
        "Removed examples by class and group.": plots.removed_by_cell(
            ranking.keep, data.train.y, group, data.class_names, names
        ),
        "Scores of the training examples, mean over seeds.": plots.score_histogram(ranking.score, group, names),
    }
