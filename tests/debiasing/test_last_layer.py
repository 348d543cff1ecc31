"""Refitted heads: features are what the last layer sees, the fit is scikit-learn's, the new model is that fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from sklearn.linear_model import LogisticRegression

from d3mjax.debiasing import last_layer
from d3mjax.networks import adapt, dense

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
Y = (X[:, 0] + 0.5 * RNG.normal(size=60) > 0.3).astype(int)
GROUP = 2 * Y + (X[:, 1] > 0.4)
MODEL = dense.mlp((6,), 2)
VARIABLES = MODEL.init(jax.random.key(0), X[:1])
PATH = last_layer.find(VARIABLES["params"], 2)


def _hidden(x):
    layer = VARIABLES["params"]["Dense_0"]
    return np.maximum(x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]), 0)


def test_the_head_is_found_or_its_path_asked_for():
    assert PATH == ("Dense_1",)
    with pytest.raises(ValueError, match=r"found dense layers \[\] with 7 outputs, expected exactly one"):
        last_layer.find(VARIABLES["params"], 7)
    twice = dense.mlp((2,), 2).init(jax.random.key(0), X[:1])
    with pytest.raises(ValueError, match="expected exactly one"):
        last_layer.find(twice["params"], 2)


@pytest.mark.parametrize("microbatch", [None, 7])
def test_features_are_what_the_last_layer_sees(microbatch):
    found = last_layer.features(MODEL, VARIABLES, X, PATH, microbatch=microbatch)
    np.testing.assert_allclose(found, _hidden(X), rtol=1e-5, atol=1e-6)


def test_features_of_a_pooled_head_with_batch_statistics():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train: bool = False):
            x = linen.BatchNorm(use_running_average=not train)(linen.Conv(5, (2, 2))(x))
            return linen.Dense(3, name="top")(x.mean((1, 2)))

    images = RNG.normal(size=(3, 4, 4, 1)).astype(np.float32)
    model = adapt.from_linen(Net())
    variables = model.init(jax.random.key(1), images)
    found = last_layer.features(model, variables, images, last_layer.find(variables["params"], 3))
    top = variables["params"]["top"]
    logits = np.asarray(found) @ np.asarray(top["kernel"]) + np.asarray(top["bias"])
    np.testing.assert_allclose(logits, model.apply(variables, images)[0], rtol=1e-4, atol=1e-5)


def test_dfr_is_the_mean_of_scikit_learn_fits_on_balanced_subsets():
    subsets = last_layer.balanced_subsets(jax.random.key(2), GROUP, 4, num_subsets=3)
    scale = last_layer.scale_of(_hidden(X))
    standard = np.asarray(last_layer.standardise(_hidden(X), scale))
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-6)
    found = last_layer.average_fits(standard, Y, 2, subsets, inverse_strength=0.7)
    coefficients, intercepts = [], []
    for keep in np.asarray(subsets) > 0:
        assert len(set(np.bincount(GROUP[keep]))) == 1
        oracle = LogisticRegression(C=0.7, l1_ratio=1.0, solver="saga", tol=1e-7, max_iter=50_000)
        oracle.fit(standard[keep], Y[keep])
        coefficients.append(oracle.coef_[0])
        intercepts.append(np.ravel(oracle.intercept_)[0])
    np.testing.assert_allclose(found.weight[1] - found.weight[0], np.mean(coefficients, 0), atol=2e-3)
    np.testing.assert_allclose(found.bias[1] - found.bias[0], np.mean(intercepts), atol=2e-3)
    logits, _ = MODEL.apply(last_layer.with_head(VARIABLES, PATH, found, scale), X)
    np.testing.assert_allclose(logits, standard @ np.asarray(found.weight).T + np.asarray(found.bias), atol=1e-5)


def test_rows_outside_small_subsets_need_not_be_looked_at():
    subsets = last_layer.balanced_subsets(jax.random.key(3), GROUP, 4, num_subsets=3)
    size = int(subsets[0].sum())
    assert size < 60
    whole, few = (last_layer.average_fits(_hidden(X), Y, 2, subsets, max_size=k) for k in (None, size))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), whole, few)


def test_a_constant_feature_stays_finite_and_nothing_is_mutated():
    features = np.array([[1.0, 2.0], [1.0, 4.0]], np.float32)
    np.testing.assert_allclose(last_layer.standardise(features, last_layer.scale_of(features)), [[0, -1], [0, 1]])
    before = jax.tree.map(np.asarray, VARIABLES)
    head = last_layer.average_fits(_hidden(X), Y, 2, jnp.ones((1, 60)))
    last_layer.with_head(VARIABLES, PATH, head, last_layer.scale_of(_hidden(X)))
    jax.tree.map(np.testing.assert_array_equal, before, VARIABLES)
