"""Rows, figures and the page of a D3M run, from its stored units alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, row
from experiments import study
from experiments.tasks import Task

METHODS = {
    "ERM": Kind("plain"),
    "random removal": Kind("control", controls="number"),
    "class-matched random removal": Kind("control", controls="class balance"),
    "SUBY": Kind("rival"),
    "RWG on the targets alone": Kind("control", "validation groups", "targets alone"),
    "D3M, drop negative": Kind("ours", "validation groups"),
    "D3M, 10 % removed": Kind("ours", "validation groups"),
    "D3M, by selection": Kind("ours", "validation groups"),
    "D3M, by selection, at most 10 % removed": Kind("ours", "validation groups"),
    "scores centred, drop negative": Kind("control", "validation groups", "mean of the scores"),
    "highest scores removed": Kind("control", "validation groups", "sign"),
    "group-matched random removal": Kind("control", "training groups", "group balance"),
    "SUBG": Kind("yardstick", "training groups"),
    "RWG": Kind("yardstick", "training groups"),
}
"""The methods of the table, in its order."""


def describe(task: Task, _config: Any, found: list[study.Unit]) -> tuple[list[dict[str, Any]], Section]:
    """Rows and what the page shows of a task."""
    return rows_of(task.name, found), section(task, found)


def rows_of(task: str, seeds: list[study.Unit], *, methods: Mapping[str, Kind] = METHODS) -> list[dict[str, Any]]:
    """One row a method: a seed's number is the mean over its retrained models of their worst group's accuracy."""
    facts = [facts for facts, _ in seeds]
    rows = []
    for method, kind in methods.items():
        values = {
            "worst_group_accuracy": [worst(arrays, method).mean() for _, arrays in seeds],
            "average_accuracy": [arrays[f"average/{method}"].mean() for _, arrays in seeds],
            "removed": [f["removed"].get(method) for f in facts],
            "suspects_removed": [f.get("suspects_removed", {}).get(method) for f in facts],
        }
        settings: dict[str, Any] = kind.settings()
        if kind.role == "ours" and "checkpoints" in facts[0]:
            values |= {name: [f[name] for f in facts] for name in ("suspects", "effective_checkpoints")}
            settings["checkpoints"] = facts[0]["checkpoints"]
        rows.append(row(task, method, values, role=kind.role, information=kind.information, settings=settings))
    return rows


def worst(arrays: Mapping[str, np.ndarray], method: str) -> np.ndarray:
    """Worst-group test accuracy of each retrained model of one seed."""
    return arrays[f"test/{method}"].min(-1)


def section(task: Task, seeds: list) -> Section:
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
    bars = ("ERM", "D3M, by selection", "D3M, drop negative")
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
    return Section(text, figures)
