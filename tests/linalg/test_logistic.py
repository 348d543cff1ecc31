"""Logistic regression against scikit-learn: multinomial, both penalties, weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from d3mjax.linalg import logistic


def _problem():
    """Features of unequal scale, three classes of a planted linear model, and whole weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 5)) * [1, 1.5, 1, 0.7, 1]
    y = np.argmax(x @ rng.normal(size=(5, 3)) + rng.gumbel(size=(120, 3)) + [0.8, 0, 0], axis=1)
    return x, y, rng.integers(0, 3, size=120)


X, Y3, WEIGHT = _problem()
Y2 = (Y3 == 0).astype(int)


def _oracle(y, c, ratio):
    model = LogisticRegression(C=c, l1_ratio=ratio, solver="saga", tol=1e-7, max_iter=50_000)
    return model.fit(X, y, sample_weight=WEIGHT)


@pytest.mark.parametrize(("ratio", "c"), [(1.0, 0.3), (1.0, 0.05), (0.0, 1.0)])
def test_three_classes_agree_with_scikit_learn(ratio, c):
    oracle, penalty = _oracle(Y3, c, ratio), 1 / (c * WEIGHT.sum())
    with jax.enable_x64(True):
        found = logistic.fit(
            X, Y3, 3, weights=WEIGHT.astype(float), l1=ratio * penalty, l2=(1 - ratio) * penalty, rtol=1e-8
        )
        weight, bias = np.asarray(found.head.weight), np.asarray(found.head.bias)
    np.testing.assert_allclose(weight, oracle.coef_, atol=1e-4)
    np.testing.assert_allclose(bias - bias.mean(), oracle.intercept_ - oracle.intercept_.mean(), atol=1e-4)


@pytest.mark.parametrize(("ratio", "half"), [(1.0, 1), (0.0, 2)])
def test_two_classes_agree_up_to_the_factor_of_the_docstring(ratio, half):
    oracle, penalty = _oracle(Y2, 0.2, ratio), 1 / (0.2 * WEIGHT.sum())
    found = logistic.fit(X, Y2, 2, weights=WEIGHT.astype(float), l1=ratio * penalty, l2=half * (1 - ratio) * penalty)
    difference = found.head.weight[1] - found.head.weight[0]
    np.testing.assert_allclose(difference, oracle.coef_[0], atol=1e-3)
    np.testing.assert_allclose(found.head.bias[1] - found.head.bias[0], oracle.intercept_[0], atol=1e-3)
    assert float(found.residual) <= 1e-4
    assert int(found.steps) < 5000


def test_a_strong_penalty_leaves_the_class_shares_alone():
    head = logistic.fit(X, Y3, 3, l1=10.0).head
    np.testing.assert_array_equal(head.weight, 0)
    np.testing.assert_allclose(jax.nn.softmax(head.bias), np.bincount(Y3) / 120, atol=1e-4)


def test_rows_of_weight_zero_count_nowhere_and_vmap_changes_nothing():
    weights = jnp.asarray(np.random.default_rng(1).integers(0, 2, size=(3, 120)), jnp.float32)
    fit = lambda w: logistic.fit(X, Y3, 3, weights=w, l1=0.01).head
    together = jax.vmap(fit)(weights)
    used = np.asarray(weights[0]) > 0
    alone = logistic.fit(X[used], Y3[used], 3, l1=0.01).head
    np.testing.assert_allclose(together.weight[0], alone.weight, atol=1e-3)
    np.testing.assert_allclose(together.weight[2], fit(weights[2]).weight, atol=1e-3)
