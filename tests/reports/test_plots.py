"""Figures show numbers that can be counted by hand, and refuse what they cannot draw."""

import numpy as np
import pytest

from d3mjax.reports import plots


def texts(figure):
    return [t.get_text() for axes in figure.axes for t in [*axes.texts, *axes.get_yticklabels(), axes.title]] + [
        axes.get_title(loc="left") for axes in figure.axes
    ]


def test_removed_by_cell_counts_by_hand():
    kept = [True, False, False, True, False, True]
    y, group = [0, 0, 0, 1, 1, 1], [0, 0, 1, 0, 1, -1]
    got = texts(plots.removed_by_cell(kept, y, group, ["cat", "dog"], ["indoor", "outdoor"]))
    assert "cat · indoor" in got
    assert "dog · unknown group" in got
    assert got[:5] == [
        "1 of 2 (50%), 33% of all removed",
        "1 of 1 (100%), 33% of all removed",
        "0 of 1 (0%), 0% of all removed",
        "0 of 1 (0%), 0% of all removed",
        "1 of 1 (100%), 33% of all removed",
    ]


def test_score_histogram_counts_by_hand_and_survives_equal_scores():
    got = texts(plots.score_histogram([-1.0, 0.0, 2.0, -3.0], [0, 0, 0, 2], ["a", "empty", "c"]))
    assert "a: 3 examples, 33% below zero" in got
    assert "c: 1 examples, 100% below zero" in got
    plots.score_histogram(np.zeros(4), [0] * 4, ["a"])  # one bin


def test_image_grid_takes_grey_and_colour_and_refuses_the_rest():
    for shape in ((3, 4, 4), (3, 4, 4, 1), (3, 4, 4, 3)):
        assert len(plots.image_grid(np.zeros(shape, np.uint8), ["a", "b", "c"]).axes) == 3
    for shape, titles in (((3, 16), "abc"), ((3, 4, 4, 2), "abc"), ((3, 4, 4), "ab")):
        with pytest.raises(ValueError, match="titles for images of shape"):
            plots.image_grid(np.zeros(shape), list(titles))


def test_worst_against_average_marks_plain_training_the_choice_and_the_limit():
    points = {"ERM": ([0.9, 0.92], [0.3, 0.4]), "ours": ([0.88, 0.88], [0.7, 0.7])}
    others = ([0.9, 0.8], [0.5, 0.8])
    figure = plots.worst_against_average(points, plain="ERM", chosen="ours", max_loss=0.05, candidates=others)
    (axes,) = figure.axes
    limit = next(line for line in axes.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(np.asarray(limit.get_xdata()), 86)
    marked = {marks.get_label(): np.asarray(marks.get_offsets()) for marks in axes.collections}
    np.testing.assert_allclose(np.asarray(axes.collections[0].get_offsets()), [[90, 50], [80, 80]])
    np.testing.assert_allclose(marked["plain training"], [[91, 35]])
    np.testing.assert_allclose(marked["the verdict"], [[88, 70]])
    assert len(plots.worst_against_average(points).axes[0].lines) < len(axes.lines)
