"""Predicted LDS and the cheap signals by their definitions; `experiments trust` judges them on real trainings."""

from typing import Any

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr

from d3mjax.attribution import trust


@pytest.fixture(name="rng")
def _rng():
    return np.random.default_rng(0)


def effects(rng, halves=12, outputs=5):
    return rng.standard_normal((halves, outputs)).astype(np.float32)


def trained(rng, effects, trainings=3, noise=0.0, of_keys=0.0):
    """Outputs ``[h r k]``: effects of halves, of keys, and noise."""
    h, k = effects.shape
    keys = of_keys * rng.standard_normal((1, trainings, k))
    return effects[:, None] + keys + noise * rng.standard_normal((h, trainings, k))


def mean_rank_correlation(a, b):
    found: Any = [spearmanr(x, y) for x, y in zip(a.T, b.T, strict=True)]
    return np.mean([one.statistic for one in found])


class TestPredictedLds:
    def test_right_and_turned_predictions_have_one_and_minus_one(self, rng):
        truth = effects(rng)
        outputs = trained(rng, truth, of_keys=5.0)
        np.testing.assert_allclose(trust.predicted_lds(truth, outputs), 1, atol=1e-4)
        np.testing.assert_allclose(trust.predicted_lds(-truth, outputs)[:3], -1, atol=1e-4)

    def test_is_the_lds_over_the_root_of_the_reliability(self, rng):
        predictions, outputs = effects(rng, 9, 4), trained(rng, effects(rng, 9, 4), noise=0.5, of_keys=2.0)
        residuals = outputs - outputs.mean(1, keepdims=True) - outputs.mean(0, keepdims=True)
        residuals += outputs.mean((0, 1), keepdims=True)
        noise = (residuals**2).sum((0, 1)) / (8 * 2) / 3
        reliability = 1 - (noise / outputs.mean(1).var(0, ddof=1)).mean()
        expected = mean_rank_correlation(predictions, outputs.mean(1)) / np.sqrt(reliability)
        found = trust.predicted_lds(predictions, outputs)
        np.testing.assert_allclose([found.lds, found.reliability], [expected, reliability], rtol=1e-4)

    def test_trainings_that_are_noise_have_the_least_reliability(self, rng):
        noise = trained(rng, np.zeros((12, 5), np.float32), trainings=2, noise=1.0)
        assert trust.predicted_lds(effects(rng), noise).reliability < 0.4

    def test_the_interval_is_of_two_standard_errors_by_the_jackknife(self, rng):
        predictions, outputs = effects(rng, 8, 40), trained(rng, effects(rng, 8, 40), noise=0.3)
        predictions += 0.5 * outputs.mean(1)
        found = trust.predicted_lds(predictions, outputs)
        rows = [np.delete(np.arange(8), i) for i in range(8)]
        without = np.array([trust.predicted_lds(predictions[i], outputs[i]).lds for i in rows])
        error = np.sqrt(7 / 8 * ((without - without.mean()) ** 2).sum())
        np.testing.assert_allclose([found.lds - found.low, found.high - found.lds], 2 * error, rtol=1e-3)

    def test_noise_of_training_is_taken_off(self, rng):
        truth = effects(rng, 400, 30)
        outputs = trained(rng, truth, trainings=2, noise=1.0, of_keys=3.0)
        assert mean_rank_correlation(truth, outputs.mean(1)) < 0.85
        np.testing.assert_allclose(trust.predicted_lds(truth, outputs).lds, 1, atol=0.03)

    def test_outputs_and_halves_in_another_order_have_the_same(self, rng):
        predictions, outputs = effects(rng), trained(rng, effects(rng), noise=0.5)
        halves, order = rng.permutation(12), rng.permutation(5)
        turned = trust.predicted_lds(predictions[halves][:, order], outputs[halves][:, :, order])
        np.testing.assert_allclose(trust.predicted_lds(predictions, outputs), turned, atol=1e-5)

    @pytest.mark.parametrize("shape", [(3, 2, 5), (4, 1, 5)])
    def test_too_few_are_refused(self, shape):
        with pytest.raises(ValueError, match="expected 4 and 2 or more"):
            trust.predicted_lds(np.zeros((shape[0], 5)), np.zeros(shape))


class TestAgreement:
    def test_is_the_correlation_with_the_limit(self, rng):
        c, n = 4, 200_000
        common = rng.standard_normal((1, n))
        scores = common + 1.5 * rng.standard_normal((c, n))
        value = trust.agreement(scores.var(-1)[:, None], scores.mean(0).var()[None])
        np.testing.assert_allclose(value, np.corrcoef(scores.mean(0), common[0])[0, 1], atol=0.01)

    def test_equal_checkpoints_have_one_and_opposite_ones_zero(self):
        variances = np.ones((3, 2))
        np.testing.assert_allclose(trust.agreement(variances, np.ones(2)), 1, rtol=1e-6)
        np.testing.assert_allclose(trust.agreement(variances, np.full(2, 0.1)), 0, atol=1e-6)

    def test_one_checkpoint_is_refused(self):
        with pytest.raises(ValueError, match="found 1 checkpoint, expected 2 or more"):
            trust.agreement(np.ones((1, 2)), np.ones(2))


class TestAlongScores:
    def test_changes_raise_what_the_scores_promise_and_keep_weights_positive(self, rng):
        tau, key = rng.standard_normal((5, 40)).astype(np.float32), jax.random.key(1)
        change = np.asarray(trust.along_scores(key, tau, steps=6))
        np.testing.assert_allclose(change.mean(1), 0, atol=1e-6)
        assert (change > -1).all()
        mix = np.asarray(jax.random.normal(key, (6, 5)))
        assert ((change @ tau.T * mix).sum(1) > 0).all()

    def test_scores_of_zero_change_no_weight(self):
        np.testing.assert_array_equal(trust.along_scores(jax.random.key(0), np.zeros((5, 40), np.float32)), 0)

    def test_the_fit_is_a_cosine(self, rng):
        a, b = effects(rng), effects(rng)
        np.testing.assert_allclose(trust.step_fit(a, 3 * a), 1, rtol=1e-6)
        expected = (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())
        np.testing.assert_allclose(trust.step_fit(a, b), expected, rtol=1e-5)
