"""Thresholds against brute force, Platt's correction against a planted one, calibration error by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.metrics import f1_score

from d3mjax.diagnosis import calibration

RNG = np.random.default_rng(0)


def _example(n=400):
    truth = RNG.random((n, 3)) < np.array([0.1, 0.3, 0.5])
    p = 1 / (1 + np.exp(-(RNG.normal(size=(n, 3)) + np.array([2.0, 1.0, 0.5]) * truth - np.array([1.0, 0.2, -0.5]))))
    return p.astype(np.float32), truth, RNG.random(n) < 0.6


def test_thresholds_are_those_of_brute_force():
    p, truth, rows = _example()
    found = calibration.best_thresholds(p, truth, rows=rows)
    for k in range(3):
        grid = [np.float32(0.3 + 0.05 * i) for i in range(10)]
        scores = [f1_score(truth[rows, k], p[rows, k] > level) for level in grid]
        best = max(level for level, score in zip(grid, scores, strict=True) if score > max(scores) - 1e-9)
        np.testing.assert_allclose(found[k], best, atol=1e-6)
    flagged = calibration.flag(p, found)
    np.testing.assert_array_equal(flagged, p > np.asarray(found))
    expected = [f1_score(truth[rows, k], np.asarray(flagged)[rows, k]) for k in range(3)]
    np.testing.assert_allclose(calibration.f1(flagged, truth, rows=rows), expected, rtol=1e-6)
    np.testing.assert_array_equal(
        calibration.best_thresholds(p[rows], truth[rows]), calibration.best_thresholds(p, truth, rows=rows)
    )


def test_a_kind_without_examples_is_flagged_least():
    p, truth, _ = _example()
    found = calibration.best_thresholds(p, truth & np.array([True, False, True]))
    np.testing.assert_allclose(found[1], 0.75)
    assert np.isnan(calibration.f1(np.zeros((4, 1), bool), np.zeros((4, 1), bool)))[0]


def test_platt_minimises_its_objective_and_undoes_a_planted_distortion():
    n = 20_000
    z = 2 * RNG.normal(size=n)
    truth = RNG.random(n) < 1 / (1 + np.exp(-(0.5 * z - 1.0)))
    p = (1 / (1 + np.exp(-z))).astype(np.float32)[:, None]
    rows = np.arange(n) % 2 == 0
    (found,) = np.asarray(calibration.platt(p, truth[:, None], rows=rows))
    # Standard errors at n = 10,000, variance p (1 - p) about 0.17: slope 0.012, intercept 0.024.
    np.testing.assert_allclose(found, [0.5, -1.0], atol=0.1)
    x, y = z[rows], truth[rows]
    target = np.where(y, (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2))
    loss = lambda ab: np.mean(np.logaddexp(0, ab[0] * x + ab[1]) - target * (ab[0] * x + ab[1]))
    np.testing.assert_allclose(found, minimize(loss, [1.0, 0.0], tol=1e-10).x, atol=1e-4)
    better = calibration.calibrated(p, found[None])
    before, after = (calibration.calibration_error(q, truth[:, None], rows=~rows)[0] for q in (p, better))
    assert before > 0.1
    assert after < 0.02  # its noise floor: 15 bins, mean |gap| sqrt(2 / pi) sum_b sqrt(n_b 0.17) / n, at most 0.013


@pytest.mark.parametrize("flip", [False, True])
def test_platt_is_finite_where_the_probabilities_separate(flip):
    p = jnp.array([[0.0], [0.1], [0.2], [0.9], [1.0]])
    truth = np.array([[0], [0], [0], [1], [1]], bool) ^ flip
    found = jax.jit(calibration.platt)(p, truth)
    assert np.isfinite(found).all()
    assert (found[0, 0] < 0) == flip
    assert np.isfinite(calibration.calibrated(p, found)).all()


def test_platt_of_a_constant_finds_the_share():
    truth = np.arange(10)[:, None] < 3
    p = np.full((10, 1), 0.8, np.float32)
    found = calibration.calibrated(p, calibration.platt(p, truth))
    # Targets 4/5 of three rows and 1/9 of seven: mean (2.4 + 7/9) / 10.
    np.testing.assert_allclose(found, (2.4 + 7 / 9) / 10, atol=1e-4)


def test_calibration_error_by_hand():
    p = np.array([[0.1], [0.15], [0.9], [1.0]], np.float32)
    truth = np.array([[False], [True], [True], [True]])
    # Two bins: |0.1 + 0.15 - 1| = 0.75 and |1.9 - 2| = 0.1, over 4.
    np.testing.assert_allclose(calibration.calibration_error(p, truth, num_bins=2), [0.85 / 4], rtol=1e-5)
    rows = np.array([True, False, True, True])
    np.testing.assert_allclose(calibration.calibration_error(p, truth, rows=rows, num_bins=2), [0.2 / 3], rtol=1e-5)
