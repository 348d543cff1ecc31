"""Scores of labels that are numbers, by hand and on a planted line."""

import numpy as np
import planted
import pytest

from d3mjax.data import label_scale
from d3mjax.diagnosis import number_scores


def test_residuals_by_hand():
    predictions, y = np.array([0.0, 1.0, 10.0, 11.0]), np.array([1.0, 0.0, 14.0, 5.0])
    np.testing.assert_array_equal(number_scores.absolute_residuals(predictions, y), [1, 1, 4, 6])
    # Windows of two in the order of the predictions: (1, 1), (1, 1), (1, 4), (4, 6).
    np.testing.assert_allclose(number_scores.local_residuals(predictions, y, like=2), [1, 1, 4 / 2.5, 6 / 5])
    np.testing.assert_array_equal(number_scores.far_labels(y), [2, 3, 11, 2])


def test_exact_predictions_do_not_divide_by_zero():
    y = np.arange(8.0)
    wrong = np.where(np.arange(8) == 3, 9.0, y)
    scores = number_scores.local_residuals(y, wrong, like=4)
    assert np.isfinite(scores).all()
    assert scores.argmax() == 3


@pytest.mark.parametrize("microbatch", [1, 3, None])
def test_a_label_unlike_its_neighbours_has_the_largest_gap(microbatch):
    angle = np.linspace(0, 1, 30)
    x, y = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32), angle.astype(np.float32)
    y[7] += 2.0
    gaps = np.asarray(number_scores.neighbour_gaps(x, y, neighbours=4, microbatch=microbatch))
    planted.close(gaps[7], 2.0, scale=8.0)  # the middle of two before and two after is its own place on the line
    assert gaps.argmax() == 7
    assert np.delete(gaps, 7).max() < 0.1
    with pytest.raises(ValueError, match=r"neighbours: found 30, expected 1\.\.29"):
        number_scores.neighbour_gaps(x, y, neighbours=30)


def test_labels_return_to_their_unit():
    y = np.array([1e6, 3e6, 2e6])
    scale = label_scale.fit(y)
    z = label_scale.standardise(scale, y)
    np.testing.assert_allclose(z, [-np.sqrt(1.5), np.sqrt(1.5), 0], atol=1e-6)
    np.testing.assert_allclose(label_scale.restore(scale, z), y, rtol=1e-6)
    for bad in (np.ones(3), np.array([1.0, np.inf])):
        with pytest.raises(ValueError, match="expected finite ones that vary"), np.errstate(invalid="ignore"):
            label_scale.fit(bad)
