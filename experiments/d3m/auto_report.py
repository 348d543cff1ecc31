"""Rows, figures and the page of an AUTO-D3M run, from its stored units alone."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from d3mjax.reports import plots
from d3mjax.reports.page import Section
from d3mjax.reports.rows import Kind, row
from experiments import study

ORACLES = {
    "ERM": Kind("plain"),
    "D3M, true groups": Kind("yardstick", "validation groups"),
    "SUBG": Kind("yardstick", "training groups"),
}
FOUND = ("refused", "attribute_auc", "explained", "separation", "loss_share")


def describe(case: Any, _config: Any, found: list[study.Unit]) -> tuple[list[dict[str, Any]], Section]:
    """Rows and what the page shows of one task and mix of targets."""
    rows = []
    for method in found[0][0]:
        worst = {name: np.array([a[f"test/{name}"].min(-1).mean() for _, a in found]) for name in (method, *ORACLES)}
        gap = worst["D3M, true groups"] - worst["ERM"]
        values: dict[str, Any] = {
            "worst_group_accuracy": worst[method],
            "average_accuracy": [arrays[f"average/{method}"].mean() for _, arrays in found],
            "removed": [facts[method]["removed"] for facts, _ in found],
        }
        if method not in ORACLES:
            values["share_of_d3m"] = (worst[method] - worst["ERM"]) / np.where(gap > 0, gap, np.nan)
            values |= {name: [facts[method][name] for facts, _ in found] for name in FOUND}
        kind = ORACLES.get(method, Kind("ours"))
        rows.append(row(case.name, method, values, role=kind.role, information=kind.information))
    order = list(ORACLES)[:2]
    rows.sort(key=lambda of: order.index(of["method"]) if of["method"] in order else len(order))
    return rows, Section(text(case, found), figures(case, found))


def text(case: Any, found: list[study.Unit]) -> str:
    """What was asked, and the column names that need words."""
    few = (
        "" if case.minority is None else f" At most {case.minority} targets of each of the two rarest groups are left."
    )
    refused = sum(bool(facts["AUTO-D3M"]["refused"]) for facts, _ in found)
    return (
        f"{case.task.about}{few} No method but D3M with true groups and SUBG sees a group label. AUTO-D3M refused, and "
        f"removed nothing, on {refused} of {len(found)} seeds. share_of_d3m: of the gain of D3M with true groups; "
        "attribute_auc: how well the split score tells the true attribute within a class (1/2: chance); loss_share: "
        "of the variance of errors between pseudo-groups; separation: of the score's (a single Gaussian: .64)."
    )


def figures(case: Any, found: list[study.Unit]) -> dict[str, Figure]:
    """Accuracy of every group, and the scores that were split."""
    methods = ("ERM", "AUTO-D3M as published", "AUTO-D3M", "D3M, true groups")
    return {
        "Test accuracy of every group, before and after D3M for groups found or given.": plots.bar_groups(
            {m: [arrays[f"test/{m}"].mean(0) for _, arrays in found] for m in methods}, case.task.group_names
        ),
        "What was split, by the true groups that nobody saw (first seed).": split_scores(
            found[0][1], case.task.group_names
        ),
    }


def split_scores(arrays: Any, group_names: tuple[str, ...]) -> Figure:
    """Histograms of the published and of our score among the targets of each true group."""
    figure = Figure(figsize=(8.2, 5.2), layout="constrained", facecolor="white")
    group, y = arrays["target_group"], arrays["target_y"]
    for column, method in enumerate(("AUTO-D3M as published", "AUTO-D3M")):
        for c in np.unique(y):
            axes = figure.add_subplot(2, len(np.unique(y)), column * len(np.unique(y)) + int(c) + 1)
            score = arrays[f"score/{method}"]
            bins = list(np.histogram_bin_edges(score[y == c], 40))
            for g, colour in zip(np.unique(group[y == c]), plots.PALETTE, strict=False):
                axes.hist(score[group == g], bins, color=colour, alpha=0.6, label=group_names[g])
            axes.set_yscale("log")
            axes.set_title(method, loc="left", fontsize=9.5)
            axes.legend(frameon=False, fontsize=7.5)
    figure.supxlabel("score of a target", fontsize=10)
    figure.supylabel("targets", fontsize=10)
    return figure
