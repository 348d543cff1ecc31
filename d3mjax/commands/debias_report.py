"""Rows, figures, lists and advice of `experiments.debias`, from its stored units alone."""

import csv
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d3mjax.commands import debias_auto
from d3mjax.commands.debias_data import Own
from d3mjax.debiasing import selection
from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import WGA, Row, verdict
from d3mjax.reports.tables import percent
from d3mjax.runtime import store
from experiments import study
from experiments.d3m import d3m_report
from experiments.tasks import Task

METHODS = (
    "ERM",
    "random removal",
    "class-matched random removal",
    "RWG on the targets alone",
    "D3M, drop negative",
    "D3M, 10 % removed",
    "D3M, by selection",
)
OURS = "D3M, by selection"
PARTS = {"target": "scoring", "selection": "selection", "test": "report"}
FEW, ENOUGH = 10, 25  # scored targets of a group: at 10 the choice is unstable, at 20 of 800 it was sound on two tasks


class Final(NamedTuple):
    """All seeds together: their mean score, the mean number of removed examples, and who is suspected how often."""

    score: np.ndarray  # Float[n]
    keep: np.ndarray  # Bool[n]
    rank: np.ndarray  # Int[n], 0 is the first to go
    suspect: np.ndarray  # Float[n], share of the seeds
    reading: int  # which damping the score is of


def final(found: Sequence[study.Unit], y: np.ndarray, num_classes: int) -> Final:
    """What the seeds say together: as many of the lowest mean scores go as on average over seeds.

    The scores are of the damping that most seeds have chosen.
    """
    reading = np.bincount([facts["reading"] for facts, _ in found]).argmax()
    score = np.mean([arrays["score"][reading] for _, arrays in found], axis=0)
    removed = round(float(np.mean([(~arrays["kept"]).sum() for _, arrays in found])))
    keep, _ = selection.guard(score, selection.drop_lowest(score, removed), y, num_classes)
    rank = selection.rank_within(score, np.zeros(len(score), int))
    suspect = np.mean([arrays["suspect"] for _, arrays in found], axis=0)
    return Final(score, np.asarray(keep), np.asarray(rank), suspect, int(reading))


def write_lists(directory: Path, own: Own, found: Sequence[study.Unit], ours: Final) -> None:
    """``examples.csv``, the first to go first, and ``scores.npz`` with the arrays of every seed.

    With --auto also ``pseudo_groups.csv``: of every target its class, the side that it was on in most of the seeds that
    split it, in what share of them it was on the weaker, and how many there were.
    """
    order = np.argsort(ours.rank)
    lines = (
        [own.names[i], f"{ours.score[i]:.6g}", int(ours.keep[i]), ours.rank[i], f"{ours.suspect[i]:.2f}"] for i in order
    )
    write_csv(directory / "examples.csv", ("id", "score", "keep", "rank", "suspect"), lines)
    seeds = {f"{k}_per_seed": np.stack([a[k] for _, a in found]) for k in ("kept", "suspect")}
    seeds |= {f"{k}_per_seed": np.stack([a[k][ours.reading] for _, a in found]) for k in ("score", "columns")}
    store.write_arrays(directory / "scores.npz", id=own.names, **ours._asdict(), **seeds)
    if debias_auto.of_seeds(found):
        lines = debias_auto.target_lines(own, found)
        write_csv(directory / "pseudo_groups.csv", ("id", "class", "group", "weaker", "seeds"), lines)


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """A header and lines, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    store.write_bytes(path, text.getvalue().encode())


def rows_of(task: Task, found: list[study.Unit]) -> list[dict[str, Any]]:
    """One row a method; where --auto refused throughout, of those that remove nothing."""
    splits = debias_auto.of_seeds(found)
    names = ("ERM", "RWG on the targets alone") if debias_auto.refused(splits) else METHODS
    methods = {name: d3m_report.METHODS[name] for name in names}
    if splits:  # no group label was used
        methods = {name: kind._replace(information="none") for name, kind in methods.items()}
    return d3m_report.rows_of(task.name, found, methods=methods)


def section(task: Task, own: Own, found: list[study.Unit], ours: Final, advice: Sequence[str]) -> Section:
    """What the page shows; no figures where --auto refused throughout, as nothing is removed."""
    text = "\n".join([task.about, "Advice:", *(f"- {sentence}" for sentence in advice)])
    if debias_auto.refused(debias_auto.of_seeds(found)):
        return Section(text, {})
    worst = lambda name: [d3m_report.worst(arrays, name).mean() for _, arrays in found]
    shares = sorted(float(name.split("/")[2]) for name in found[0][1] if name.startswith("test/D3M/"))
    n = len(own.train.y)
    curve = ([int(share * n) for share in shares], np.transpose([worst(f"D3M/{share}") for share in shares]))
    mark = (float((~ours.keep).sum()), float(np.mean(worst(OURS))))
    references = {m: worst(m) for m in ("ERM", "class-matched random removal", "RWG on the targets alone")}
    names = (*task.group_names, "unknown group")
    group = np.where(own.train.group < 0, len(names) - 1, own.train.group)
    figures = {
        "Worst-group accuracy on the report part against the number of removed examples.": (
            plots.accuracy_against_removed({"D3M": curve}, {"by selection": mark}, references=references, num_train=n)
        ),
        "Accuracy of every group on the report part, before and after.": plots.bar_groups(
            {m: [a[f"test/{m}"].mean(0) for _, a in found] for m in ("ERM", OURS)}, task.group_names
        ),
        "Who is to go.": plots.removed_by_cell(ours.keep, own.train.y, group, task.class_names, names),
        "Scores of the training examples, mean over seeds.": plots.score_histogram(ours.score, group, names),
    }
    if task.image:
        first = np.argsort(ours.rank)[:24]
        images = own.train.x[first].reshape(-1, *task.image)
        titles = [f"{own.names[i]}: {task.class_names[own.train.y[i]]}"[:18] for i in first]
        figures["The first training examples to go: id and label."] = plots.image_grid(images, titles)
    return Section(text, figures)


def advice(rows: Sequence[Row], found: Sequence[study.Unit], group_names: Sequence[str]) -> list[str]:
    """What somebody who has to decide should know, in plain words; every sentence follows from numbers.

    With --auto the groups that select and report are the classes.
    """
    splits = debias_auto.of_seeds(found)
    if debias_auto.refused(splits):
        return debias_auto.refusal(splits, group_names)
    by_name = {row["method"]: row for row in rows}
    ours, facts = by_name[OURS], [facts for facts, _ in found]
    kind = "class" if splits else "group"
    about_targets = debias_auto.sentences(splits, group_names) if splits else []
    return [
        _worth_it(ours, by_name["ERM"], min(facts[0]["sizes"]["selection"]), kind),
        *about_targets,
        _class_balance(ours, by_name["class-matched random removal"]),
        _targets_alone(ours, by_name["RWG on the targets alone"]),
        *([] if splits else [_target_size(facts[0]["sizes"], ours, group_names)]),
        *_suspects(ours),
        _sureness(ours, [arrays["kept"] for _, arrays in found]),
        "examples.csv puts the scores of all seeds together; the accuracies are those of each seed's own list, on "
        "targets that this list had not seen.",
    ]


def _gap(row: Row, other: Row) -> str:
    a, b = row["metrics"][WGA], other["metrics"][WGA]
    spread = "" if a["std"] is None else f" ± {100 * (a['std'] ** 2 + b['std'] ** 2) ** 0.5:.1f}"
    return f"{100 * (a['mean'] - b['mean']):+.1f}{spread} points"


def _worth_it(ours: Row, erm: Row, selected_on: int, kind: str) -> str:
    removed = ours["metrics"]["removed"]["mean"]
    accuracies = f"{percent(erm['metrics'][WGA])} % to {percent(ours['metrics'][WGA])} %"
    average = ours["metrics"]["average_accuracy"]["mean"] - erm["metrics"]["average_accuracy"]["mean"]
    if removed == 0:
        text = "Keep your training set: on the selection part, dropping examples did no better than dropping none."
        doubt = f" Its smallest {kind} has {selected_on} examples, so this says little: collect more targets."
        return text + doubt * (selected_on < FEW)
    judged = {
        "above": "more than the spread: drop them.",
        "level": "within the spread: do not count on it.",
        "below": "a loss: leave your training set as it is.",
        "unknown": "but one seed decides nothing: take --seeds 5.",
    }
    return (
        f"Dropping {removed:.1%} of the training examples moves the worst {kind} from {accuracies}, {_gap(ours, erm)}, "
        f"{judged[verdict(ours, erm)]} Average accuracy changes by {100 * average:+.1f} points."
    )


def _class_balance(ours: Row, matched: Row) -> str:
    meaning = {
        "above": "which examples go matters, class balance does not explain it.",
        "level": "class balance may explain all of it: try balancing your classes first.",
        "below": "random examples of these classes are the better choice: balance your classes instead.",
        "unknown": "one seed decides nothing.",
    }
    return (
        f"Against dropping as many random examples of the same classes: {_gap(ours, matched)}; "
        f"{meaning[verdict(ours, matched)]}"
    )


def _targets_alone(ours: Row, targets: Row) -> str:
    meaning = {
        "above": "your training set is worth having.",
        "level": "they do as well: adding your targets to the training set is the simpler way.",
        "below": "they do better: train on them.",
        "unknown": "one seed decides nothing.",
    }
    return (
        f"Against training on the scoring targets alone, their groups balanced: {_gap(ours, targets)}; "
        f"{meaning[verdict(ours, targets)]}"
    )


def _target_size(sizes: Mapping[str, Sequence[int]], ours: Row, names: Sequence[str]) -> str:
    g = int(np.argmin(sizes["target"]))
    counts = ", ".join(f"{sizes[part][g]} for {name}" for part, name in PARTS.items())
    scored, accuracy = sizes["target"][g], ours["metrics"][WGA]["mean"]
    meaning = (
        f"too few to choose by: collect more, {ENOUGH} to score are a fair number"
        if scored < FEW
        else f"few: more targets would make the choice surer, {ENOUGH} to score are a fair number"
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


def _sureness(ours: Row, kept: Sequence[np.ndarray]) -> str:
    worth, number = ours["metrics"]["effective_checkpoints"]["mean"], ours["settings"]["checkpoints"]
    text = f"The {number} checkpoints behind the scores differ as much as {worth:.1f} unrelated ones would"
    noisy = worth > (number + 1) / 2  # less than half of the variance of their mean is common to them
    text += ", so the scores are mostly noise: raise --checkpoints." if noisy else "; 1 would mean that all agree."
    shares = [(~a & ~b).sum() / max(min((~a).sum(), (~b).sum()), 1) for a, b in itertools.combinations(kept, 2)]
    if not shares:
        return text
    chance = np.mean([max((~a).mean(), (~b).mean()) for a, b in itertools.combinations(kept, 2)])
    return f"{text} Of what one seed drops, another drops {np.mean(shares):.0%} ({chance:.0%} by chance)."
