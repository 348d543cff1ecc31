"""The section of a page of d3mjax-debias: details and figures of its stored units."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from d3mjax.commands import debias_auto, debias_divisions, measures
from d3mjax.commands.debias_data import Files, UserData
from d3mjax.commands.debias_report import Ranking, measured, of_stored, worst_group, worst_of
from d3mjax.commands.debias_seed import LABEL_MATCHED, MATCHED, PLAIN, SELECTED, TARGETS_ALONE
from d3mjax.data import cells, label_scale
from d3mjax.reports import plots
from d3mjax.reports.page import LONGEST, Section
from d3mjax.runtime.runs import Unit

LOWEST = 24  # examples of lowest score that are shown
NOTE = (
    "examples.csv puts the scores of all seeds together; the table is of each seed's own list, on targets that "
    "this list had not seen. Checkpoints and plain training are shared by all seeds, so the spread is that of the "
    "division of the targets and of retraining."
)
OF_NUMBERS = (
    "A shift is one number added to all predictions, chosen by the groups of the targets. Label weights and matched "
    "removals go by ten intervals of the label."
)


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
    measure = measures.ACCURACIES if data.scale is None else measures.ERRORS
    error = f"error, {files.label}" if measure.errors else None
    unit = [f"Errors are root mean square errors in the unit of {files.label}: smaller is better. {OF_NUMBERS}"]
    about = f"{n:,} training examples of {files.train}, {len(data.target.y):,} targets of {files.target} {groups}"
    splits = debias_auto.of_seeds(units)
    text = "\n".join(
        [
            about,
            *(unit if measure.errors else ()),
            *data.card.get("notes", ()),
            NOTE,
            *(debias_auto.details(splits, data.group_names) if splits else []),
        ]
    )
    average = lambda unit, method: float(unit[1][f"average/{of_stored(unit, method)}"].mean())
    of_method = {
        m: ([average(unit, m) for unit in units], [worst_of(unit, m) for unit in units]) for m in measured(units)
    }
    removing = [arrays for _, arrays in units if "curve" in arrays]
    worst = lambda numbers: worst_group(numbers, measure)
    tried = [(a["candidate_average"], worst(a["candidate_test"])) for a in removing if "candidate_average" in a]
    figures = {
        f"Worst group against {'overall error' if error else 'average accuracy'} on the report part; grey: the "
        "candidates of D3M.": (
            plots.worst_against_average(
                of_method,
                plain=PLAIN,
                chosen=chosen,
                max_loss=max_loss,
                candidates=tuple(np.mean(tried, axis=0)) if tried else ((), ()),
                error=error,
            )
        )
    }
    if removing:
        shown = dict.fromkeys(method for method in (PLAIN, SELECTED, chosen) if method)
        of_worst = {m: numbers for m, (_, numbers) in of_method.items()}
        figures |= _removal_figures(data, units, ranking, of_worst, shown, error)
    if image and removing:
        first = np.argsort(ranking.rank)[:LOWEST]
        images = data.train.x[first].reshape(-1, *image)
        titles = [f"{data.names[i]}: {label}"[:18] for i, label in zip(first, _labels(data, first), strict=True)]
        figures["The examples of lowest score: id and label."] = plots.image_grid(images, titles)
    pictures, texts = _lowest(data, ranking) if removing else ({}, {})
    return Section(text, figures | pictures, card=data.card.get("columns", ()), examples=texts)


def _labels(data: UserData, rows: np.ndarray) -> list[str]:
    """Names of the classes of training rows, or their numbers in the label's unit."""
    y = data.train.y[rows]
    if data.scale is None:
        return [data.class_names[c] for c in y]
    return [f"{number:.5g}" for number in label_scale.restore(data.scale, y)]


def _lowest(data: UserData, ranking: Ranking) -> tuple[dict[str, Figure], dict[str, list[dict[str, Any]]]]:
    """The examples of lowest score as a figure of pictures, or as a table of texts, by caption."""
    if data.examples is None:
        return {}, {}
    first = np.argsort(ranking.rank)[:LOWEST]
    labels = _labels(data, first)
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
    error: str | None,
) -> dict[str, Figure]:
    """Figures of what is removed; ``shown``: methods of which every group is shown; ``error``: its name, if any."""
    measure, matched = (measures.ERRORS, LABEL_MATCHED) if error else (measures.ACCURACIES, MATCHED)
    n, removing = len(data.train.y), [unit for unit in units if "curve" in unit[1]]
    removed = [int(share * n) for share in removing[0][0]["shares"]]
    curve = (removed, [worst_group(a["curve"], measure).mean(-1) for _, a in removing])
    mark = (float((~ranking.keep).sum()), float(np.mean(worst[SELECTED])))
    references = {method: worst[method] for method in (PLAIN, matched, TARGETS_ALONE)}
    bars = {m: [unit[1][f"test/{of_stored(unit, m)}"].mean(0) for unit in units] for m in shown}
    names = (*data.group_names, "unknown group")
    group = np.where(data.train.group < 0, len(names) - 1, data.train.group)
    of, by = ("error", "interval of the label") if error else ("accuracy", "class")
    style: dict[str, Any] = {"ylabel": f"root mean square {error}", "share": False} if error else {}
    strata = debias_divisions.strata(data, data.train.y)
    return {
        f"Worst-group {of} on the report part against the number of removed examples.": (
            plots.accuracy_against_removed(
                {"D3M": curve}, {"by selection": mark}, references=references, num_train=n, error=error
            )
        ),
        f"{of.capitalize()} of every group on the report part, before and after.": (
            plots.bar_groups(bars, data.group_names, **style)
        ),
        f"Removed examples by {by} and group.": plots.removed_by_cell(
            ranking.keep, strata, group, debias_divisions.strata_names(data), names
        ),
        "Scores of the training examples, mean over seeds.": plots.score_histogram(ranking.score, group, names),
    }


def _criteria(files: Files) -> str:
    """What the groups are made of."""
    return ", ".join(filter(None, (files.group, files.any_of and f"any of {files.any_of}")))
