"""Metrics of claims against scikit-learn, hand arithmetic and missing values; calibration of a planted distortion."""

import jax
import numpy as np
import pytest
from sklearn import metrics as oracle

from d3mjax.diagnosis import claims


def planted(seed=0, n=200):
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 3)) < np.array([0.3, 0.2, 0.05])
    probabilities = np.round((rng.random((n, 3)) + truth) / 2, 1).astype(np.float32)  # with ties
    return probabilities, truth


def test_scores_are_those_of_scikit_learn():
    probabilities, truth = planted()
    claimed = probabilities > 0.45
    got = jax.jit(claims.scores)(claimed, truth)
    for type in range(3):
        precision, recall, f1, _ = oracle.precision_recall_fscore_support(
            truth[:, type], claimed[:, type], average="binary"
        )
        np.testing.assert_allclose([g[type] for g in got], [precision, recall, f1], rtol=1e-5)
    np.testing.assert_allclose(
        claims.macro_f1(claimed, truth), oracle.f1_score(truth, claimed, average="macro"), rtol=1e-5
    )
    np.testing.assert_allclose(claims.exact_match(claimed, truth), oracle.accuracy_score(truth, claimed), rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_scikit_learn_with_ties(seed):
    probabilities, truth = planted(seed)
    for values, flag in zip(probabilities.T, truth.T, strict=True):
        expected = oracle.average_precision_score(flag, values)
        np.testing.assert_allclose(jax.jit(claims.average_precision)(values, flag), expected, rtol=1e-5)
    constant = claims.average_precision(np.zeros(len(truth), np.float32), truth[:, 0])
    np.testing.assert_allclose(constant, truth[:, 0].mean(), rtol=1e-5)


def test_metrics_without_a_value_are_nan():
    claimed = np.array([[1, 0, 0], [0, 0, 1]], bool)
    truth = np.array([[1, 1, 0], [1, 0, 0]], bool)
    got = claims.scores(claimed, truth)
    np.testing.assert_array_equal(got.precision, [1, np.nan, 0])
    np.testing.assert_array_equal(got.recall, [0.5, 0, np.nan])
    np.testing.assert_allclose(got.f1, [2 / 3, 0, np.nan], rtol=1e-5)
    np.testing.assert_allclose(claims.macro_f1(claimed, truth), 1 / 3, rtol=1e-5)
    assert np.isnan(claims.clean_false_positives(claimed, truth))
    assert np.isnan(claims.average_precision(np.ones(2, np.float32), np.zeros(2, bool)))


def test_clean_rows_are_those_without_any_error():
    truth = np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]], bool)
    claimed = np.array([[0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 0, 0]], bool)
    np.testing.assert_allclose(claims.clean_false_positives(claimed, truth), 2 / 3, rtol=1e-5)


def test_calibration_error_by_hand():
    probabilities = np.array([0.0, 0.05, 0.62, 0.68, 1.0], np.float32)
    truth = np.array([0, 1, 1, 0, 1], bool)
    # bins [0, .1): |.05 - 1|, [.6, .7): |1.30 - 1|, the last: 0; over five rows
    np.testing.assert_allclose(claims.calibration_error(probabilities, truth), (0.95 + 0.3) / 5, rtol=1e-5)


def test_best_thresholds_are_those_of_a_loop():
    probabilities, truth = planted(4)
    truth[:, 2] = False
    got = np.asarray(claims.best_thresholds(probabilities, truth))
    levels = np.array(claims.CANDIDATES, np.float32)
    for type in range(2):
        f1 = [oracle.f1_score(truth[:, type], probabilities[:, type] >= level) for level in levels]
        assert got[type] == levels[np.argmax(f1)]
    assert got[2] == levels[-1]


def test_platt_undoes_a_planted_distortion_and_flattens_what_ranks_worse_than_chance():
    rng, n = np.random.default_rng(1), 20_000
    odds = (2 * rng.normal(size=(n, 1))).astype(np.float32)
    truth = rng.random((n, 1)) < 1 / (1 + np.exp(-(0.5 * odds - 1.0)))
    calibration = claims.platt(odds[::2], truth[::2])
    # Standard errors at n = 10,000, variance p (1 - p) about 0.17: slope 0.012, intercept 0.024.
    np.testing.assert_allclose(np.concatenate(calibration), [0.5, -1.0], atol=0.1)
    before, after = (
        claims.calibration_error(claims.calibrated(odds[1::2], by)[:, 0], truth[1::2, 0])
        for by in (claims.Calibration(np.ones(1), np.zeros(1)), calibration)
    )
    assert before > 0.1
    assert after < 0.02  # its noise floor: 10 bins, mean |gap| sqrt(2 / pi) sum_b sqrt(n_b 0.17) / n, at most 0.013
    flat = claims.platt(-odds, truth)
    np.testing.assert_allclose(claims.calibrated(-odds, flat), truth.mean(), atol=0.01)


def test_platt_is_finite_where_a_type_is_constant_or_separated():
    odds = np.array([[-9.0, 1, 2], [-8, 1, 3], [7, 1, -1]], np.float32)
    truth = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0]], bool)
    probabilities = np.asarray(claims.calibrated(odds, claims.platt(odds, truth)))
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities[:, 1], 1 / 3, atol=1e-3)
    np.testing.assert_allclose(probabilities[:, 2], 1 / (1 + np.exp(-odds[:, 2])), rtol=1e-5)  # no true row: as it is


def test_claims_of_the_highest_expected_f1():
    p = np.array([[0.9, 0.3], [0.8, 0.3], [0.1, 0.1], [0.6, 0.05], [0.2, 0.05]])
    ordered = np.sort(p, axis=0)[::-1]
    of_count = [2 * ordered[:k].sum(0) / (k + p.sum(0)) for k in range(1, 6)]
    counts = np.argmax(of_count, axis=0) + 1
    claimed = claims.expected_best(p)
    np.testing.assert_array_equal(claimed.sum(0), counts)
    assert claimed[:, 0].tolist() == [True, True, False, True, False]
    assert claimed[:, 1].tolist() == [True, True, False, False, False]  # unlikely, but the likeliest
    assert not claims.expected_best(p, least=0.31)[:, 1].any()
    assert claims.expected_best(np.full((4, 1), 0.5)).all()  # ties together
