"""Metrics against SciPy, scikit-learn and hand arithmetic, plain and under `jit` and `vmap`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from sklearn.metrics import confusion_matrix

from d3mjax import metrics


def test_group_accuracies_by_hand():
    correct = jnp.array([1, 0, 1, 1, 0, 1], bool)
    group = jnp.array([0, 0, 0, 2, 2, -1])  # group 1 is empty, the last example's group is unknown
    got = metrics.group_means(correct, group, 3)
    np.testing.assert_allclose(got, [2 / 3, np.nan, 1 / 2], rtol=1e-6)
    assert jnp.isnan(metrics.worst_group_accuracy(got))
    np.testing.assert_allclose(metrics.worst_group_accuracy(got[jnp.array([0, 2])]), 0.5)
    np.testing.assert_allclose(metrics.average_accuracy(correct), 4 / 6, rtol=1e-6)


def test_group_accuracies_match_sklearn_under_jit_and_vmap():
    rng = np.random.default_rng(0)
    y, predicted = rng.integers(0, 4, 500), rng.integers(0, 4, (3, 500))
    mapped = jax.vmap(lambda correct: metrics.group_means(correct, y, 4))
    got = jax.jit(mapped)(jnp.asarray(predicted == y))
    expected = np.stack([np.diag(confusion_matrix(y, p, normalize="true")) for p in predicted])
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics.worst_group_accuracy(got), expected.min(1), rtol=1e-6)


def test_influences_give_the_error_of_paired_differences():
    group = np.array([0, 0, 0, 2, 2, 2, 2])  # group 1 is empty
    one = np.array([[1, 0, 0, 1, 1, 1, 0], [1, 1, 1, 0, 0, 1, 1]], bool)  # worst group 0 at 1/3, then 2 at 1/2
    influence = np.asarray(metrics.worst_group_influence(one, group, 3))
    expected = np.array([2 / 9, -1 / 9, -1 / 9, -1 / 8, -1 / 8, 1 / 8, 1 / 8]) / 2
    np.testing.assert_allclose(influence, expected, rtol=1e-6)
    # McNemar: of 4 examples of the worst group, the other model gets one more right and none wrong.
    other = one[1:].copy()
    other[0, 3] = True
    difference = metrics.worst_group_influence(other, group, 3) - metrics.worst_group_influence(one[1:], group, 3)
    np.testing.assert_allclose(np.square(difference).sum(), (1 / 4) * (3 / 4) / 4, rtol=1e-6)


def test_weighted_accuracy():
    accuracies = jnp.array([[0.5, 1.0, jnp.nan], [0.2, 0.6, 0.0]])
    # (0.5 * 3 + 1.0 * 1) / 4 = 0.625 and (0.2 * 3 + 0.6 * 1) / 4 = 0.3; the empty group has share 0
    got = jax.jit(metrics.weighted_accuracy)(accuracies, jnp.array([3, 1, 0]))
    np.testing.assert_allclose(got, [0.625, 0.3], rtol=1e-6)
    assert jnp.isnan(metrics.weighted_accuracy(accuracies[0], jnp.ones(3)))


def _columns(m=41):
    rng = np.random.default_rng(1)
    return np.stack(
        [
            rng.normal(size=m),
            rng.integers(0, 4, m).astype(float),  # many ties
            np.r_[np.inf, np.inf, -np.inf, np.zeros(m - 5), -0.0, 1.0],
            np.full(m, 0.1),
        ]
    ).astype(np.float32)


def test_rank_matches_scipy():
    x = _columns()
    np.testing.assert_array_equal(metrics.rank(x), stats.rankdata(x, axis=-1))
    np.testing.assert_array_equal(jax.jit(jax.vmap(metrics.rank))(x), stats.rankdata(x, axis=-1))
    assert jnp.isnan(metrics.rank(jnp.array([1.0, jnp.nan, 2.0]))).all()
    np.testing.assert_array_equal(metrics.rank(jnp.array([7, 7, 3])), [2.5, 2.5, 1.0])


def _scipy_spearman(x, y) -> float:
    result: Any = stats.spearmanr(x, y)
    return result.statistic


def test_spearman_matches_scipy_with_ties():
    x = _columns()
    y = x[::-1, ::-1] + np.arange(x.shape[1]) % 3
    expected = np.array([_scipy_spearman(a, b) for a, b in zip(x[:3], y[:3], strict=True)] + [np.nan])
    np.testing.assert_allclose(metrics.spearman(x, y), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(metrics.spearman))(x, y), expected, atol=1e-5)
    assert jnp.isnan(metrics.spearman(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1.0, 2.0, 3.0])))


def test_lds_golden_vector():
    tau = jnp.array([[0.1, 0.2, 0.3, 0.4], [0.2, 0.1, 0.3, 0.4]])
    masks = jnp.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0]], bool)
    outputs = jnp.array([[0.3, 0.3], [0.4, 0.4], [0.5, 0.3]])
    # Target 1 predicts .3, .5, .4, ranks 1 3 2, against ranks 1.5 3 1.5: 1.5 / sqrt(2 * 1.5) = sqrt(3) / 2
    np.testing.assert_allclose(metrics.lds(tau, masks, outputs), [1.0, np.sqrt(3) / 2], rtol=1e-5)
    np.testing.assert_allclose(metrics.lds(-tau, masks, outputs), [-1.0, -np.sqrt(3) / 2], rtol=1e-5)


def test_lds_of_a_linear_world_is_one_and_a_constant_target_is_nan():
    keys = jax.random.split(jax.random.key(2))
    tau = jax.random.normal(keys[0], (5, 30)).at[4].set(0)
    masks = jax.random.bernoulli(keys[1], 0.5, (64, 30))
    outputs = 3 + metrics.subset_predictions(tau, masks) ** 3  # any increasing function
    got = jax.jit(metrics.lds)(tau, masks, outputs)
    np.testing.assert_allclose(got, [1, 1, 1, 1, np.nan], rtol=1e-5)


def test_bootstrap_interval_covers_the_mean():
    values = jax.random.normal(jax.random.key(3), (200, 40)) + 5

    def interval(key, v):
        return metrics.bootstrap_interval(key, v, num_resamples=400)

    low, high = jax.jit(jax.vmap(interval))(jax.random.split(jax.random.key(4), 200), values).T
    assert 0.90 <= float(((low < 5) & (high > 5)).mean()) <= 0.99


def test_bootstrap_interval_takes_any_statistic():
    values = jnp.array([1.0, 2.0, 3.0, 4.0, 100.0])
    low, high = metrics.bootstrap_interval(jax.random.key(0), values, statistic=jnp.median, level=0.5)
    assert 1 < low <= 3 <= high < 100
    np.testing.assert_array_equal(metrics.bootstrap_interval(jax.random.key(0), jnp.full(3, 2.0)), [2, 2])


def test_counted_ranks_are_the_ranks_of_the_resample():
    rng = np.random.default_rng(5)
    x, index = rng.integers(0, 5, (3, 20)).astype(np.float32), rng.integers(0, 20, 20)
    got = metrics._counted_rank(metrics._tie_runs(jnp.asarray(x)), jnp.bincount(index, length=20))
    np.testing.assert_array_equal(got[:, index], stats.rankdata(x[:, index], axis=-1))


def test_lds_interval_covers_the_population_value():
    """Gaussian predictions and outputs of correlation r have Spearman correlation 6 / pi * asin(r / 2)."""
    draws, m, t, r = 200, 80, 6, 0.7
    truth = 6 / np.pi * np.arcsin(r / 2)

    def interval(key):
        shared_key, x_key, y_key, key = jax.random.split(key, 4)
        shared = jax.random.normal(shared_key, (m, 1))  # masks that matter for all targets together
        x = (jnp.broadcast_to(shared, (m, t)) + jax.random.normal(x_key, (m, t))) / jnp.sqrt(2.0)
        y_noise = jnp.broadcast_to(jax.random.normal(y_key, (m, 1)), (m, t))
        y = r * x + np.sqrt(1 - r**2) * y_noise
        return metrics.lds_interval(key, x, y, num_resamples=200)

    low, high = jax.jit(jax.vmap(interval))(jax.random.split(jax.random.key(6), draws)).T
    assert 0.90 <= float(((low < truth) & (high > truth)).mean()) <= 0.99


def test_lds_interval_resamples_masks_not_only_targets():
    """Targets that are copies of one another carry no more information than one."""
    x, noise = jax.random.normal(jax.random.key(7), (2, 50, 1))
    one = metrics.lds_interval(jax.random.key(8), x, x + noise)
    many = metrics.lds_interval(jax.random.key(8), jnp.tile(x, (1, 30)), jnp.tile(x + noise, (1, 30)))
    np.testing.assert_allclose(one, many, atol=1e-5)
    dead = jnp.concatenate([x, jnp.zeros_like(x)], 1)  # a constant prediction has no LDS and is left out
    assert jnp.isfinite(metrics.lds_interval(jax.random.key(8), dead, jnp.tile(x + noise, (1, 2)), level=0.5)).all()


def test_group_errors_by_hand():
    residuals, group = jnp.array([3.0, -4.0, 1.0, -2.0, 7.0]), jnp.array([0, 0, 2, 2, -1])
    rms, absolute = (fn(residuals, group, 3) for fn in (metrics.group_rms_errors, metrics.group_absolute_errors))
    np.testing.assert_allclose(rms, [np.sqrt(12.5), np.nan, np.sqrt(2.5)], rtol=1e-6)
    np.testing.assert_allclose(absolute, [3.5, np.nan, 1.5], rtol=1e-6)
    assert jnp.isnan(metrics.worst_group_error(rms))
    np.testing.assert_allclose(metrics.worst_group_error(rms[jnp.array([0, 2])]), np.sqrt(12.5), rtol=1e-6)


def test_auc_is_the_share_of_ordered_pairs():
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.3
    pairs = scores[truth][:, None] - scores[~truth][None]
    np.testing.assert_allclose(metrics.auc(scores, truth), (pairs > 0).mean() + (pairs == 0).mean() / 2, rtol=1e-6)
    assert np.isnan(metrics.auc(scores, np.zeros(60, bool)))
