"""Rows, figures, lists and advice of d3mjax-debias, from its stored units alone."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d3mjax.commands import debias_auto
from d3mjax.commands.command import write_csv
from d3mjax.commands.debias_data import Files, UserData
from d3mjax.commands.debias_seed import MATCHED, NEGATIVE, PLAIN, RANDOM, SELECTED, TARGETS_ALONE, TENTH
from d3mjax.debiasing import selection
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import WGA, Kind, Row, row, verdict
from d3mjax.reports.sentences import points
from d3mjax.reports.tables import percent
from d3mjax.runtime import store
from d3mjax.runtime.runs import Unit

METHODS = {
    PLAIN: Kind("plain"),
    RANDOM: Kind("control", controls="number"),
    MATCHED: Kind("control", controls="class balance"),
    TARGETS_ALONE: Kind("control", "validation groups", "targets alone"),
    NEGATIVE: Kind("ours", "validation groups"),
    TENTH: Kind("ours", "validation groups"),
    SELECTED: Kind("ours", "validation groups"),
}
"""The methods of the table, in its order."""
PARTS = {"target": "scoring", "selection": "selection", "test": "report"}
FEW, ENOUGH = 10, 25  # scored targets of a group: at 10 the choice is unstable, at 20 of 800 it was sound on two tasks


class Ranking(NamedTuple):
    """All seeds together: mean scores, which examples are removed, and how often each is suspected."""

    score: np.ndarray  # Float[n]
    keep: np.ndarray  # Bool[n]
    rank: np.ndarray  # Int[n], 0 is removed first
    suspect: np.ndarray  # Float[n], share of the seeds
    reading: int  # index of the damping behind the score


def rank(units: Sequence[Unit], y: np.ndarray, num_classes: int) -> Ranking:
    """The lowest mean scores are removed, as many as on average over seeds.

    The scores are of the damping that most seeds have chosen. A seed that refused counts with scores of 0.
    """
    reading = np.bincount([facts["reading"] for facts, _ in units]).argmax()
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

    Where --auto refused in all seeds, only methods that remove nothing; a seed that refused counts as plain training.
    """
    splits = debias_auto.of_seeds(units)
    methods = (PLAIN, TARGETS_ALONE) if debias_auto.refused(splits) else METHODS
    rows = []
    for method in methods:
        kind, names = METHODS[method], [_stored(unit, method) for unit in units]
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
        information = "none" if splits else kind.information  # with --auto no group label was used
        rows.append(row(task, method, values, role=kind.role, information=information, settings=settings))
    return rows


def _stored(unit: Unit, method: str) -> str:
    """The method under whose name a seed stored its numbers: plain training where it refused to remove anything."""
    return method if f"test/{method}" in unit[1] else PLAIN


def _worst(unit: Unit, method: str) -> float:
    """Worst-group test accuracy, mean over the retrained models."""
    return float(unit[1][f"test/{_stored(unit, method)}"].min(-1).mean())


def section(
    files: Files,
    data: UserData,
    image: tuple[int, ...] | None,
    units: Sequence[Unit],
    ranking: Ranking,
    advice: Sequence[str],
) -> Section:
    """What the page shows; no figures where --auto refused in all seeds, as nothing is removed."""
    n, groups = len(data.train.y), f"in {len(data.group_names)} groups ({files.group})."
    groups = f"without group labels. {debias_auto.ABOUT}" if files.auto else groups
    about = f"{n:,} training examples of {files.train}, {len(data.target.y):,} targets of {files.target} {groups}"
    text = "\n".join([about, "Advice:", *(f"- {sentence}" for sentence in advice)])
    removing = [unit for unit in units if "curve" in unit[1]]
    if not removing:
        return Section(text, {})
    worst = {method: [_worst(unit, method) for unit in units] for method in METHODS}
    shares = removing[0][0]["shares"]
    curve = ([int(share * n) for share in shares], [a["curve"].min(-1).mean(-1) for _, a in removing])
    mark = (float((~ranking.keep).sum()), float(np.mean(worst[SELECTED])))
    references = {method: worst[method] for method in (PLAIN, MATCHED, TARGETS_ALONE)}
    bars = {m: [unit[1][f"test/{_stored(unit, m)}"].mean(0) for unit in units] for m in (PLAIN, SELECTED)}
    names = (*data.group_names, "unknown group")
    group = np.where(data.train.group < 0, len(names) - 1, data.train.group)
    figures = {
        "Worst-group accuracy on the report part against the number of removed examples.": (
            plots.accuracy_against_removed({"D3M": curve}, {"by selection": mark}, references=references, num_train=n)
        ),
        "Accuracy of every group on the report part, before and after.": plots.bar_groups(bars, data.group_names),
        "Removed examples by class and group.": plots.removed_by_cell(
            ranking.keep, data.train.y, group, data.class_names, names
        ),
        "Scores of the training examples, mean over seeds.": plots.score_histogram(ranking.score, group, names),
    }
    if image:
        first = np.argsort(ranking.rank)[:24]
        images = data.train.x[first].reshape(-1, *image)
        titles = [f"{data.names[i]}: {data.class_names[data.train.y[i]]}"[:18] for i in first]
        figures["The examples of lowest score: id and label."] = plots.image_grid(images, titles)
    return Section(text, figures)


def advice(rows: Sequence[Row], units: Sequence[Unit], group_names: Sequence[str]) -> list[str]:
    """Advice on whether to drop the examples, in plain words; every sentence follows from numbers.

    With --auto the groups that select and report are the classes.
    """
    splits = debias_auto.of_seeds(units)
    if debias_auto.refused(splits):
        return debias_auto.refusal(splits, group_names)
    by_name = {row["method"]: row for row in rows}
    ours, facts = by_name[SELECTED], [facts for facts, _ in units]
    kind = "class" if splits else "group"
    about_targets = debias_auto.sentences(splits, group_names) if splits else []
    return [
        _worth_it(ours, by_name[PLAIN], min(facts[0]["sizes"]["selection"]), kind),
        *about_targets,
        _class_balance(ours, by_name[MATCHED]),
        _targets_alone(ours, by_name[TARGETS_ALONE]),
        *([] if splits else [_target_size(facts[0]["sizes"], ours, group_names)]),
        *_suspects(ours),
        _agreement(ours, [arrays["kept"] for _, arrays in units]),
        "examples.csv puts the scores of all seeds together; the accuracies are those of each seed's own list, on "
        "targets that this list had not seen.",
    ]


def _worth_it(ours: Row, erm: Row, selected_on: int, kind: str) -> str:
    removed = ours["metrics"]["removed"]["mean"]
    accuracies = f"{percent(erm['metrics'][WGA])} % to {percent(ours['metrics'][WGA])} %"
    average = ours["metrics"]["average_accuracy"]["mean"] - erm["metrics"]["average_accuracy"]["mean"]
    if removed == 0:
        text = "Keep your training set: on the selection part, dropping examples did no better than dropping none."
        doubt = f" Its smallest {kind} has {selected_on} examples, too few to decide by: collect more targets."
        return text + doubt * (selected_on < FEW)
    judged = {
        "above": "more than the spread: drop them.",
        "level": "within the spread: do not count on it.",
        "below": "a loss: leave your training set as it is.",
        "unknown": "but a single seed shows no spread: take --seeds 5.",
    }
    return (
        f"Dropping {removed:.1%} of the training examples moves the worst {kind} from {accuracies}, "
        f"{points(ours, erm)}, {judged[verdict(ours, erm)]} Average accuracy changes by {100 * average:+.1f} points."
    )


def _class_balance(ours: Row, matched: Row) -> str:
    meaning = {
        "above": "class balance does not explain it, the choice of examples matters.",
        "level": "class balance may explain all of it: try balancing your classes first.",
        "below": "random examples of these classes are the better choice: balance your classes instead.",
        "unknown": "a single seed shows no spread.",
    }
    return (
        f"Against dropping as many random examples of the same classes: {points(ours, matched)}; "
        f"{meaning[verdict(ours, matched)]}"
    )


def _targets_alone(ours: Row, targets: Row) -> str:
    meaning = {
        "above": "your training set is worth having.",
        "level": "they do as well: adding your targets to the training set is the simpler way.",
        "below": "they do better: train on them.",
        "unknown": "a single seed shows no spread.",
    }
    return (
        f"Against training on the scoring targets alone, their groups balanced: {points(ours, targets)}; "
        f"{meaning[verdict(ours, targets)]}"
    )


def _target_size(sizes: Mapping[str, Sequence[int]], ours: Row, names: Sequence[str]) -> str:
    g = int(np.argmin(sizes["target"]))
    counts = ", ".join(f"{sizes[part][g]} for {name}" for part, name in PARTS.items())
    scored, accuracy = sizes["target"][g], ours["metrics"][WGA]["mean"]
    meaning = (
        f"too few to choose by: collect more, {ENOUGH} to score are a fair number"
        if scored < FEW
        else f"few: more targets would make the choice more certain, {ENOUGH} to score are a fair number"
        if scored < ENOUGH
        else "a fair number"
    )
    least = min(sizes["test"])
    chance = 100 * (accuracy * (1 - accuracy) / least) ** 0.5
    return (
        f"The smallest group of targets is {names[g]} ({counts}): {meaning}. An accuracy near {accuracy:.0%} measured "
        f"on {least} examples is uncertain by {chance:.1f} points for each seed."
    )


def _suspects(ours: Row) -> list[str]:
    among_all, among = (ours["metrics"].get(name) for name in ("suspects", "suspects_removed"))
    if not among_all or not among:
        return []
    text = (
        f"Of all training examples {percent(among_all)} %, of the dropped ones {percent(among)} % are misclassified by "
        "every checkpoint: their label is wrong, or the case too rare to be learnt."
    )
    look = among["mean"] > 0.1 and among["mean"] > 2 * among_all["mean"]
    return [text + " Look at them (suspect = 1 in examples.csv): correcting labels may beat dropping." * look]


def _agreement(ours: Row, kept: Sequence[np.ndarray]) -> str:
    worth, number = ours["metrics"]["effective_checkpoints"]["mean"], ours["settings"]["checkpoints"]
    text = f"The {number} checkpoints behind the scores differ as much as {worth:.1f} unrelated ones would"
    noisy = worth > (number + 1) / 2  # less than half of the variance of their mean is common to them
    text += ", so the scores are mostly noise: raise --checkpoints." if noisy else "; 1 would mean that all agree."
    shares = [(~a & ~b).sum() / max(min((~a).sum(), (~b).sum()), 1) for a, b in itertools.combinations(kept, 2)]
    if not shares:
        return text
    chance = np.mean([max((~a).mean(), (~b).mean()) for a, b in itertools.combinations(kept, 2)])
    return f"{text} Of what one seed drops, another drops {np.mean(shares):.0%} ({chance:.0%} by chance)."
