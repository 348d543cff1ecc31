"""Rows, figures and the page of a D3M run, from its stored units alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from d3mjax import metrics
from experiments import plots, report
from experiments.tasks import TASKS, Task

INFORMATION = {
    "ERM": "none",
    "random removal": "none",
    "class-matched random removal": "none",
    "SUBY": "none",
    "RWG on the targets alone": "validation groups",
    "D3M, drop negative": "validation groups",
    "D3M, 10 % removed": "validation groups",
    "D3M, k by selection": "validation groups",
    "scores centred, drop negative": "validation groups",
    "highest scores removed": "validation groups",
    "group-matched random removal": "training groups",
    "SUBG": "training groups",
    "RWG": "training groups",
}
"""The methods of the table, in its order, and the group labels each one needs."""

Units = Mapping[tuple[str, int], tuple[dict[str, Any], dict[str, np.ndarray]]]


def write(directory: Path, config: dict[str, Any], units: Units, seconds: float) -> None:
    """Print one table a task, and write ``metrics.json`` and ``report.html``."""
    tasks = {name: [unit for (task, _), unit in units.items() if task == name] for name, _ in units}
    rows = [row for name, seeds in tasks.items() for row in rows_of(name, seeds)]
    sections = {name: section(TASKS[name], seeds) for name, seeds in tasks.items()}
    report.finish(directory, "d3m", config, rows, sections, seconds)


def rows_of(task: str, seeds: list) -> list[dict[str, Any]]:
    """One row a method: a seed's number is the mean over its retrained models of their worst group's accuracy."""
    rows = []
    for method, information in INFORMATION.items():
        values = {
            "worst_group_accuracy": [worst(arrays, method).mean() for _, arrays in seeds],
            "average_accuracy": [arrays[f"average/{method}"].mean() for _, arrays in seeds],
            "removed": [facts["removed"].get(method) for facts, _ in seeds],
        }
        measured = {k: metrics.summary([float(v) for v in vs]) for k, vs in values.items() if None not in vs}
        rows.append({"task": task, "method": method, "information": information, "settings": {}, "metrics": measured})
    return rows


def worst(arrays: Mapping[str, np.ndarray], method: str) -> np.ndarray:
    """Worst-group test accuracy of each retrained model of one seed."""
    return arrays[f"test/{method}"].min(-1)


def section(task: Task, seeds: list) -> report.Section:
    """What the page shows of a task; single examples are those of its first seed."""
    _, first = seeds[0]
    n = len(first["id"])
    curves = {}
    for method in ("D3M", "random", "class-matched"):
        shares = sorted(float(k.split("/")[2]) for k in first if k.startswith(f"test/{method}/"))
        accuracy = [[worst(arrays, f"{method}/{share}").mean() for share in shares] for _, arrays in seeds]
        curves[method] = ([int(share * n) for share in shares], accuracy)
    removed = float(np.mean([facts["removed"]["D3M, drop negative"] for facts, _ in seeds])) * n
    rule = float(np.mean([worst(arrays, "D3M, drop negative").mean() for _, arrays in seeds]))
    references = {m: [worst(a, m).mean() for _, a in seeds] for m in ("ERM", "SUBG", "RWG", "RWG on the targets alone")}
    bars = ("ERM", "D3M, 10 % removed", "D3M, drop negative")
    figures = {
        "Worst-group test accuracy against the number of removed examples.": plots.accuracy_against_removed(
            curves, {"drop negative": (removed, rule)}, references=references, num_train=n
        ),
        "Test accuracy of every group before and after removal.": plots.bar_groups(
            {m: [a[f"test/{m}"].mean(0) for _, a in seeds] for m in bars}, task.group_names
        ),
        "Who was removed by the rule (first seed).": plots.removed_by_cell(
            first["kept"], first["y"], first["group"], task.class_names, task.group_names
        ),
        "Scores of the training examples by group, which the method never saw (first seed).": plots.score_histogram(
            first["score"], first["group"], task.group_names
        ),
    }
    if task.image:
        order = np.argsort(first["score"])[: len(first["lowest"])]
        titles = [f"{task.class_names[first['y'][i]]} {first['score'][i]:.1e}" for i in order]
        figures["Training images of lowest score: the first to go (first seed)."] = plots.image_grid(
            first["lowest"], titles
        )
    text = (
        f"{task.about} Random, matched and highest removals take out as many examples as the rule. "
        f"Kept ids and scores of every seed: units/{task.name}-<seed>.npz (id, score, kept)."
    )
    return report.Section(text, figures)
