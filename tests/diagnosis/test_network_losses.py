"""The losses by hand on small cases, and what must not change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.diagnosis import network_losses

RNG = np.random.default_rng(0)
LOG3 = np.float32(np.log(3))


def test_positive_weights_by_hand():
    flags = np.array([[1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 0, 1], [1, 1, 1]], bool)
    rows = np.array([True, True, True, True, False])
    # n = 4. Kind 0: 2 of 4, (4 - 2) / 4 = 0.5. Kind 1: none, taken as (4 - 0) / 2 = 2. Kind 2: 3 of 4, 1 / 6.
    np.testing.assert_allclose(network_losses.positive_weights(flags, rows), [0.5, 2, 1 / 6], rtol=1e-6)


def test_prediction_losses_by_hand():
    # sigmoid(log 3) = 3/4, sigmoid(0) = 1/2.
    logits = jnp.array([[LOG3, 0.0], [LOG3, 0.0]])
    flags = np.array([[True, False], [False, True]])
    weight = jnp.array([2.0, 0.5])
    # Row 0: kind 0 true at p = 3/4: (1/4) 2 log(4/3); kind 1 false at p = 1/2: (1/2) log 2.
    # Row 1: kind 0 false at p = 3/4: p_true = 1/4: (3/4) log 4; kind 1 true at p = 1/2: (1/2) 0.5 log 2.
    expected = [0.5 * np.log(4 / 3) + 0.5 * np.log(2), 0.75 * np.log(4) + 0.25 * np.log(2)]
    np.testing.assert_allclose(network_losses.prediction_losses(logits, flags, weight), expected, rtol=1e-6)
    plain = [2 * np.log(4 / 3) + np.log(2), np.log(4) + 0.5 * np.log(2)]
    np.testing.assert_allclose(network_losses.prediction_losses(logits, flags, weight, gamma=0.0), plain, rtol=1e-6)
    squared = [2 / 16 * np.log(4 / 3) + np.log(2) / 4, 9 / 16 * np.log(4) + 0.5 / 4 * np.log(2)]
    np.testing.assert_allclose(network_losses.prediction_losses(logits, flags, weight, gamma=2.0), squared, rtol=1e-6)


def test_prediction_losses_of_sure_mistakes_are_finite_with_their_gradients():
    logits = jnp.array([[200.0, -200.0]])
    flags = np.array([[False, True]])
    value, grad = jax.value_and_grad(lambda z: network_losses.prediction_losses(z, flags, jnp.ones(2)).sum())(logits)
    np.testing.assert_allclose(value, 400, rtol=1e-6)
    np.testing.assert_allclose(grad, [[1, -1]], rtol=1e-6)


# Cosines [[1, 0.6], [0, 0.8]] between anchors (rows) and views, whatever the lengths.
ANCHORS = jnp.array([[2.0, 0.0], [0.0, 3.0]])
VIEWS = jnp.array([[5.0, 0.0], [0.6, 0.8]])


def test_info_nce_by_hand():
    # At temperature 0.2 the scores are [[5, 3], [0, 4]]: log(1 + e^-2) and log(1 + e^-4).
    by_rows = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-4))) / 2
    np.testing.assert_allclose(network_losses.info_nce(ANCHORS, VIEWS, temperature=0.2), by_rows, rtol=1e-5)
    # From the views: [[5, 0], [3, 4]]: log(1 + e^-5) and log(1 + e^-1).
    by_columns = (np.log1p(np.exp(-5)) + np.log1p(np.exp(-1))) / 2
    found = network_losses.symmetric_info_nce(ANCHORS, VIEWS, temperature=0.2)
    np.testing.assert_allclose(found, (by_rows + by_columns) / 2, rtol=1e-5)
    np.testing.assert_allclose(network_losses.info_nce(VIEWS, ANCHORS, temperature=0.2), by_columns, rtol=1e-5)


def test_supervised_info_nce_by_hand():
    differ = np.array([[True, False], [True, True]])
    found = network_losses.supervised_info_nce(ANCHORS, VIEWS, differ, temperature=0.2)
    np.testing.assert_allclose(found, network_losses.info_nce(ANCHORS, VIEWS, temperature=0.2), rtol=1e-6)
    # Of the same flags, both views are positives: row 0 averages -log p of scores 5 and 3, row 1 of 0 and 4.
    same = np.array([[True, False], [True, False]])
    expected = (np.log1p(np.exp(-2)) + 1 + np.log1p(np.exp(-4)) + 2) / 2
    found = network_losses.supervised_info_nce(ANCHORS, VIEWS, same, temperature=0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_contrast_does_not_depend_on_the_order_of_the_batch():
    anchors, views = (jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32) for _ in range(2))
    flags, order = RNG.random((6, 2)) < 0.5, RNG.permutation(6)
    for loss in (network_losses.info_nce, network_losses.symmetric_info_nce):
        np.testing.assert_allclose(loss(anchors[order], views[order]), loss(anchors, views), rtol=1e-5)
        assert abs(float(loss(anchors, views[order]) - loss(anchors, views))) > 0.1
    found = network_losses.supervised_info_nce(anchors[order], views[order], flags[order])
    np.testing.assert_allclose(found, network_losses.supervised_info_nce(anchors, views, flags), rtol=1e-5)


def test_zero_projections_have_finite_gradients():
    grad = jax.grad(lambda a: network_losses.info_nce(a, VIEWS))(jnp.zeros((2, 2)))
    assert np.isfinite(grad).all()


def test_centroid_spread_by_hand():
    projections = jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0], [9.0, 9.0], [5.0, 5.0]])
    model_ids = np.array([0, 0, 2, 2, 1])
    flags = np.array([[1, 0], [1, 0], [1, 0], [0, 1], [0, 0]], bool)
    # Kind 0: centroids (2, 0) of model 0 and (0, 4) of model 2, centre (1, 2): squares 1 and 4 for both: mean 2.5.
    # Kind 1: model 2 alone: 0. Model 1 has no row of either kind, model 3 none at all.
    np.testing.assert_allclose(network_losses.centroid_spread(projections, flags, model_ids, 4), 2.5, rtol=1e-6)
    both = np.concatenate([flags[:, :1], flags[:, :1]], axis=1)
    np.testing.assert_allclose(network_losses.centroid_spread(projections, both, model_ids, 3), 5.0, rtol=1e-6)


@pytest.mark.parametrize("num_models", [1, 3])
def test_one_model_alone_has_no_spread(num_models):
    projections = jnp.asarray(RNG.normal(size=(6, 3)), jnp.float32)
    flags = RNG.random((6, 2)) < 0.5
    spread = lambda z: network_losses.centroid_spread(z, flags, np.full(6, num_models - 1), num_models)
    value, grad = jax.value_and_grad(spread)(projections)
    assert value == 0
    np.testing.assert_array_equal(grad, 0)


def test_risk_variance_by_hand():
    risks = jnp.array([1.0, 3.0, 6.0, 6.0])
    # Means 2 and 6 of environments 0 and 2 about 4; environment 1 is absent.
    np.testing.assert_allclose(network_losses.risk_variance(risks, np.array([0, 0, 2, 2]), 3), 4.0)
    np.testing.assert_allclose(network_losses.risk_variance(risks, np.array([1, 1, 1, 1]), 3), 0.0)


def _seen(model_ids):
    normal = lambda *shape: jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    flags = np.random.default_rng(2).random((4, 3)) < 0.5
    return network_losses.Seen(
        normal(4, 3),
        2 * normal(4, 3),
        normal(4, 5),
        normal(4, 5)[::-1],
        jnp.asarray(flags),
        jnp.asarray(model_ids),
        jnp.ones(3),
    )


def test_the_objective_is_the_sum_of_its_parts():
    seen = _seen([0, 1, 1, 0])
    prediction = network_losses.prediction_losses(seen.logits, seen.flags, seen.positive_weight).mean()
    contrast = network_losses.info_nce(seen.anchors, seen.views)
    spread = network_losses.centroid_spread(seen.anchors, seen.flags, seen.model_ids, 2)
    np.testing.assert_allclose(network_losses.demix(2)(seen), prediction + 0.1 * contrast + 0.1 * spread, rtol=1e-6)
    only = network_losses.demix(2, contrast_weight=0.0, invariance_weight=0.0)(seen)
    np.testing.assert_allclose(only, prediction, rtol=1e-6)
    other = network_losses.demix(
        2,
        contrast=lambda s: network_losses.supervised_info_nce(s.anchors, s.views, s.flags),
        invariance=network_losses.vrex,
        contrast_weight=0.5,
        invariance_weight=2.0,
    )
    risks = [
        network_losses.prediction_losses(z, seen.flags, seen.positive_weight) for z in (seen.logits, seen.view_logits)
    ]
    means = [risk[jnp.asarray(rows)].mean() for risk in risks for rows in ([0, 3], [1, 2])]
    supervised = network_losses.supervised_info_nce(seen.anchors, seen.views, seen.flags)
    np.testing.assert_allclose(other(seen), prediction + 0.5 * supervised + 2 * np.var(means), rtol=1e-5)
