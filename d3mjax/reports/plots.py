"""Figures of a report. Every function takes arrays and returns a `Figure`; the state of pyplot does not change.

Accuracies and shares are fractions in [0, 1] and drawn as percentages. Leading axis `s` is seeds: lines and bars are
means, bands and whiskers one standard deviation (ddof=1; none for a single seed).
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from d3mjax.types import AnyArray

Numbers = AnyArray | Sequence[Any]
"""Arrays, or lists and tuples that become one."""

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's colours, told apart with any kind of colour vision; markers and dashes repeat the distinction."""

_INK, _FAINT = "#30343b", "#d9dce1"


def accuracy_against_removed(
    curves: Mapping[str, tuple[Numbers, Numbers]],
    marks: Mapping[str, tuple[Any, Any]],
    *,
    references: Mapping[str, Numbers],
    num_train: int,
    error: str | None = None,
) -> Figure:
    """Worst-group accuracy against the number of removed examples.

    `curves`: method -> (removed [k], accuracy [s k]); `references`: method -> accuracy [s], drawn as horizontal
    lines; `marks`: label -> (removed, accuracy) of one choice, say the heuristic's. `error`: name of an error that
    takes the place of accuracy, any numbers above 0.
    """
    figure, (axes,) = _figure(8.2, 4.2)
    for (label, (removed, accuracy)), colour, marker in zip(curves.items(), cycle(PALETTE), cycle("os^Dv<>")):
        x, (mean, std) = np.asarray(removed), _spread(np.atleast_2d(accuracy))
        axes.plot(x, mean, color=colour, marker=marker, markersize=4, linewidth=1.8, label=label)
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    greys = zip(cycle(["#4b5563", "#8a929e"]), cycle(["--", ":", "-."]))
    for (label, accuracy), (colour, dashes) in zip(references.items(), greys, strict=False):
        mean, std = _spread(np.atleast_1d(accuracy))
        axes.axhline(mean, color=colour, linestyle=dashes, linewidth=1.4, label=label)
        axes.axhspan(mean - std, mean + std, color=colour, alpha=0.08, linewidth=0)
    for (label, (x, y)), marker in zip(marks.items(), cycle("*PX")):
        style = {"color": "white", "edgecolor": "black", "linewidth": 1.2, "zorder": 5, "clip_on": False}
        axes.scatter([x], [y], marker=marker, s=170, label=label, **style)
    axes.set(xlabel="training examples removed", ylabel=f"worst-group {error or 'accuracy'}", xlim=(0, None))
    axes.set_ylim(0, axes.get_ylim()[1] if error else min(1.0, axes.get_ylim()[1]))
    if not error:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    to_share = (lambda k: np.divide(k, num_train), lambda f: np.multiply(f, num_train))
    share = axes.secondary_xaxis("top", functions=to_share)
    share.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    share.set_xlabel(f"share of the {num_train:,} training examples", color=_INK)
    share.tick_params(colors=_INK)
    share.spines["top"].set_color(_FAINT)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def curves(
    lines: Mapping[str, tuple[Numbers, Numbers]],
    xlabel: str,
    ylabel: str,
    *,
    ticks: Numbers | None = None,
) -> Figure:
    """Mean and standard deviation over seeds against a positive number; `lines`: label -> (x [k], y [s k]).

    Every x has its tick unless `ticks` names some.
    """
    figure, (axes,) = _figure(7.2, 3.8)
    for (label, (x, y)), colour, marker in zip(lines.items(), cycle(PALETTE), cycle("osD^vP*X")):
        mean, std = _spread(np.asarray(y))
        axes.plot(x, mean, marker=marker, markersize=4.5, color=colour, label=label)
        axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    xs = np.concatenate([np.asarray(x, float) for x, _ in lines.values()])
    ticks = np.unique(xs if ticks is None else np.asarray(ticks))
    axes.set(xscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def tradeoff(points: Mapping[str, tuple[Numbers, Numbers]], *, xlabel: str, ylabel: str) -> Figure:
    """Two goals against each other, a point a method with deviations over seeds; `points`: label -> (x [s], y [s])."""
    figure, (axes,) = _figure(8.2, max(4.2, 0.18 * len(points)))  # as high as its legend
    styles = zip(cycle(PALETTE), cycle("osD^vP*X<>p"))
    for (label, (x, y)), (colour, marker) in zip(points.items(), styles, strict=False):
        style = {"color": colour, "marker": marker, "markersize": 6, "elinewidth": 0.9, "linestyle": "none"}
        (mean_x, std_x), (mean_y, std_y) = (_spread(np.asarray(a)) for a in (x, y))
        axes.errorbar(mean_x, mean_y, xerr=std_x, yerr=std_y, label=label, **style)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def worst_against_average(
    points: Mapping[str, tuple[Numbers, Numbers]],
    *,
    plain: str | None = None,
    chosen: str | None = None,
    max_loss: float | None = None,
    candidates: tuple[Numbers, Numbers] = ((), ()),
    part: str = "group",
    error: str | None = None,
) -> Figure:
    """Worst-group against average accuracy, a point a method; `points`: label -> (average [s], worst group [s]).

    `plain` has a ring and `chosen` a frame. Left of the line, ``max_loss`` below `plain`, average accuracy costs too
    much. `candidates`: further points without names, (average [k], worst group [k]). `part`: what the groups are.
    `error`: name of an error that takes the place of accuracy; the line is then ``max_loss`` of it above `plain`.
    """
    figure, (axes,) = _figure(6.0, 4.0 + 0.1 * len(points))
    scale = 1 if error else 100
    average, worst = (scale * np.asarray(a) for a in candidates)
    axes.scatter(average, worst, color="#8a929e", marker=".", s=22, zorder=1)
    styles = zip(cycle(PALETTE), cycle("osD^vP<>"))
    for (label, (average, worst)), (colour, marker) in zip(points.items(), styles, strict=False):
        (x, xerr), (y, yerr) = (_spread(scale * np.asarray(a)) for a in (average, worst))
        style = {"color": colour, "marker": marker, "markersize": 6, "elinewidth": 0.9, "linestyle": "none"}
        axes.errorbar(x, y, xerr=xerr, yerr=yerr, label=label, **style)
        if label == plain and max_loss is not None:
            line = {"color": "black", "linestyle": "--", "linewidth": 1.1, "zorder": 1}
            below = f"limit: {100 * max_loss:g} {'% above' if error else 'points of average below'} {plain}"
            axes.axvline(x * (1 + max_loss) if error else x - 100 * max_loss, label=below, **line)
        mark = {"facecolor": "none", "edgecolor": "black", "zorder": 5, "linewidth": 1.3}
        if label == plain:
            axes.scatter([x], [y], marker="o", s=170, label="plain training", **mark)
        if label == chosen:
            axes.scatter([x], [y], marker="s", s=260, label="the verdict", **mark)
    of = error or "accuracy, %"
    axes.set(xlabel=f"{'overall' if error else 'average'} {of}", ylabel=f"worst-{part} {of}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5, markerscale=0.6)
    return figure


def scatters(points: Mapping[str, Mapping[str, tuple[Numbers, Numbers]]], *, xlabel: str, ylabel: str) -> Figure:
    """One panel a name, one colour a label: `points`: panel -> label -> (x [k], y [k]); dashed where y = x."""
    figure = Figure(figsize=(3.1 * len(points), 3.4), layout="constrained", facecolor="white")
    shades = ["#cfd8e3", "#a9c6e0", "#7fb0d8", "#4f94c9", "#2a74ad", "#17528a", "#0a2f5c"]
    for i, (name, series) in enumerate(points.items()):
        axes = figure.add_subplot(1, len(points), i + 1)
        steps = np.linspace(0, len(shades) - 1, len(series)).astype(int)
        for (label, (x, y)), step in zip(series.items(), steps, strict=True):
            axes.scatter(x, y, s=13, color=shades[step], edgecolor=_INK, linewidth=0.3, label=label if i == 0 else None)
        axes.axline((0, 0), slope=1, color="black", linestyle="--", linewidth=0.9)
        axes.set_title(name, fontsize=10, color=_INK)
        axes.set(xlabel=xlabel, ylabel=ylabel if i == 0 else "")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color=_FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def removed_by_cell(
    kept: Numbers,
    y: Numbers,
    group: Numbers,
    class_names: Sequence[str],
    group_names: Sequence[str],
) -> Figure:
    """Who was removed: for every class and group that occurs, the share and the number removed.

    `kept` is Bool[n], `y` and `group` Int[n]; group -1 is drawn as unknown. The dashed line is the overall share:
    where a removal blind to class and group would put every bar.
    """
    kept, y, group = np.asarray(kept, bool), np.asarray(y), np.asarray(group)
    cells = sorted({(int(c), int(g)) for c, g in zip(y, group, strict=True)})
    own_class = len({g for _, g in cells}) == len(cells)  # groups that already tell the class need no second name
    figure, (axes,) = _figure(8.2, 0.9 + 0.42 * len(cells))
    names = [group_names[g] if g >= 0 else "unknown group" for _, g in cells]
    for i, ((c, g), name) in enumerate(zip(cells, names, strict=True)):
        members = (y == c) & (group == g)
        total, gone = members.sum(), (members & ~kept).sum()
        axes.barh(i, 1, color=_FAINT, alpha=0.45, height=0.7)
        axes.barh(i, gone / total, color=PALETTE[c % len(PALETTE)], height=0.7)
        text = f"{gone:,} of {total:,} ({gone / total:.0%}), {gone / max((~kept).sum(), 1):.0%} of all removed"
        axes.text(1.015, i, text, va="center", color=_INK, fontsize=9)
        names[i] = name if own_class else f"{class_names[c]} · {name}"
    axes.axvline((~kept).mean(), color="black", linestyle="--", linewidth=1)
    axes.set(yticks=range(len(cells)), xlim=(0, 1), xlabel=f"share removed (dashed: {(~kept).mean():.0%} overall)")
    axes.set_yticklabels(names)
    axes.invert_yaxis()
    axes.grid(False)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def score_histogram(scores: Numbers, group: Numbers, group_names: Sequence[str], *, bins: int = 60) -> Figure:
    """Alignment scores [n] of each group on one axis of scores, each group on its own scale of counts.

    The line at zero divides what the rule "drop negative" removes (left) from what it keeps. The outermost bins also
    hold the few scores beyond them, at most half a per cent of a group on either side.
    """
    scores, group = np.asarray(scores, np.float64), np.asarray(group)
    present = [g for g in range(len(group_names)) if (group == g).any()]
    tails = np.array([np.quantile(scores[group == g], [0.005, 0.995]) for g in present])
    low, high = min(tails[:, 0].min(), 0.0), max(tails[:, 1].max(), 0.0)
    width = (high - low) / bins or 1.0
    edges = width * np.arange(np.floor(low / width), np.ceil(high / width) + 1)  # zero is an edge
    figure, rows = _figure(7.2, 0.8 + 1.05 * len(present), rows=len(present))
    for axes, g, colour in zip(rows, present, cycle(PALETTE)):
        values = scores[group == g]
        axes.hist(np.clip(values, edges[0], edges[-1]), bins=list(edges), color=colour, alpha=0.85)
        axes.set_xlim(edges[0] - width, edges[-1] + width)
        axes.axvline(0, color="black", linewidth=1)
        axes.set_title(
            f"{group_names[g]}: {len(values):,} examples, {(values < 0).mean():.0%} below zero",
            loc="left",
            fontsize=9.5,
            color=_INK,
        )
        axes.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        axes.label_outer()
    rows[-1].set_xlabel("alignment score (negative: removing the example should help the weak groups)")
    figure.supylabel("examples", fontsize=10, color=_INK)
    return figure


def image_grid(images: Numbers, titles: Sequence[str], *, columns: int = 8) -> Figure:
    """Images [k h w] (grey) or [k h w c] with c 1 or 3, in the given order, each under its title.

    Floats are scaled together from their smallest to their largest value, bytes are shown as they are.
    """
    pixels = np.asarray(images)
    if pixels.ndim not in (3, 4) or len(pixels) != len(titles) or pixels.shape[3:] not in ((), (1,), (3,)):
        raise ValueError(f"{len(titles)} titles for images of shape {pixels.shape}; need [k h w] or [k h w 1|3]")
    pixels = pixels[..., 0] if pixels.shape[3:] == (1,) else pixels
    if pixels.dtype != np.uint8:
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / max(high - low, 1e-12)
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(1.25 * columns, 1.45 * rows), layout="constrained", facecolor="white")
    for i, (image, title) in enumerate(zip(pixels, titles, strict=True)):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255 if pixels.dtype == np.uint8 else 1)
        axes.set_title(title, fontsize=8, color=_INK, pad=3)
        axes.set_axis_off()
    return figure


def bar_groups(
    values: Mapping[str, Numbers], group_names: Sequence[str], *, ylabel: str = "accuracy", share: bool = True
) -> Figure:
    """Accuracy, or another share, of every group under every method; ``values``: method -> [s G].

    ``share`` False: numbers of any size above 0, such as errors in the unit of a label.
    """
    figure, (axes,) = _figure(max(5.5, 1.2 + 1.5 * len(group_names)), 3.8)
    width = 0.8 / len(values)
    positions = np.arange(len(group_names))
    hatches = cycle(["", "//", "..", "xx"])
    for i, ((label, of_method), colour, hatch) in enumerate(zip(values.items(), cycle(PALETTE), hatches)):
        mean, std = _spread(np.atleast_2d(of_method))
        style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.6, "label": label}
        whiskers = {"ecolor": _INK, "elinewidth": 1.1, "capsize": 2.5}
        offset = (i - (len(values) - 1) / 2) * width
        axes.bar(positions + offset, mean, width, yerr=std, error_kw=whiskers, **style)
    axes.set(xticks=positions, ylabel=ylabel, ylim=(0, 1 if share else None))
    axes.set_xticklabels([name.replace(", ", "\n") for name in group_names])
    axes.grid(False, axis="x")
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    fit = int(figure.get_figwidth() * 13 / (max(map(len, values)) + 8))  # some 13 characters an inch, and the patch
    figure.legend(loc="outside upper center", ncols=max(1, min(len(values), 4, fit)), frameon=False)
    return figure


def probability_histograms(
    probabilities: Mapping[str, Numbers], thresholds: Mapping[str, Any], *, bins: int = 25
) -> Figure:
    """Rows by their probability [n] of each kind of error, on a logarithmic scale; a line at the kind's threshold."""
    figure, rows = _figure(7.2, 0.8 + 1.3 * len(probabilities), rows=len(probabilities))
    for axes, (kind, values), colour in zip(rows, probabilities.items(), cycle(PALETTE)):
        values = np.asarray(values)
        axes.hist(values, bins=list(np.linspace(0, 1, bins + 1)), color=colour, alpha=0.85, log=True)
        axes.axvline(thresholds[kind], color="black", linewidth=1)
        count = int((values >= thresholds[kind]).sum())
        axes.set_title(f"{kind}: {count:,} at or above {thresholds[kind]:.2f}", loc="left", fontsize=9.5, color=_INK)
        axes.set_xlim(0, 1)
        axes.label_outer()
    rows[-1].set_xlabel("probability")
    figure.supylabel("rows", fontsize=10, color=_INK)
    return figure


def reliability(bins: Mapping[str, Numbers]) -> Figure:
    """Claimed probability against the true share; ``bins``: kind -> [b 3] of probability, share and number of rows."""
    figure, (axes,) = _figure(5.2, 4.6)
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":", label="perfect")
    for (kind, values), colour, marker in zip(bins.items(), cycle(PALETTE), cycle("osD^")):
        claimed, true, _ = np.reshape(np.asarray(values, np.float64), (-1, 3)).T
        axes.plot(claimed, true, color=colour, marker=marker, markersize=5, linewidth=1.3, label=kind)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability", ylabel="share of rows that have the error")
    axes.legend(frameon=False)
    return figure


def _spread(values: Numbers) -> tuple[Any, Any]:
    """Mean and standard deviation over the leading axis."""
    samples = np.asarray(values, np.float64)
    mean = samples.mean(0)
    return mean, samples.std(0, ddof=1) if len(samples) > 1 else np.zeros_like(mean)


def _figure(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    every = [figure.add_subplot(rows, 1, i + 1) for i in range(rows)]
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_FAINT)
        axes.tick_params(colors=_INK)
        axes.xaxis.label.set_color(_INK)
        axes.yaxis.label.set_color(_INK)
        axes.grid(True, color=_FAINT, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, every
