"""Refitted heads: features are what the last layer sees, the fit is scikit-learn's, the new model is that fit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from flax import linen
from sklearn.linear_model import LogisticRegression

from d3mjax.debiasing import last_layer
from d3mjax.networks import adapt, dense
from d3mjax.types import Linear

X = np.asarray(planted.normal(0, 60, 4))
Y = (X[:, 0] + 0.5 * np.asarray(planted.normal(1, 60)) > 0.3).astype(int)
GROUP = 2 * Y + (X[:, 1] > 0.4)
MODEL = dense.mlp((6,), 2)
VARIABLES = MODEL.init(jax.random.key(0), X[:1])
PATH = last_layer.find(VARIABLES["params"], 2)
SOLVED = 1e-2  # of coefficients: gradients of 1e-4 over curvatures of some .02


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
    planted.close(found, _hidden(X), terms=4)


def test_features_of_a_pooled_head_with_batch_statistics():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train: bool = False):
            x = linen.BatchNorm(use_running_average=not train)(linen.Conv(5, (2, 2))(x))
            return linen.Dense(3, name="top")(x.mean((1, 2)))

    images = np.asarray(planted.normal(2, 3, 4, 4, 1))
    model = adapt.from_linen(Net())
    variables = model.init(jax.random.key(1), images)
    found = last_layer.features(model, variables, images, last_layer.find(variables["params"], 3))
    top = variables["params"]["top"]
    logits = np.asarray(found) @ np.asarray(top["kernel"]) + np.asarray(top["bias"])
    planted.close(logits, model.apply(variables, images)[0], terms=16 + 4 + 5)


def _objective(head, rows, y, l1):
    """What a fit minimises: mean cross-entropy in nats and the L1 penalty of half of each row of two opposite ones."""
    logits = rows @ np.asarray(head.weight, float).T + np.asarray(head.bias, float)
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(y)), y]
    return losses.mean() + l1 * np.abs(head.weight).sum()


def test_dfr_is_the_mean_of_scikit_learn_fits_on_balanced_subsets():
    subsets = last_layer.balanced_subsets(jax.random.key(2), GROUP, 4, num_subsets=3)
    scale = last_layer.scale_of(_hidden(X))
    standard = np.asarray(last_layer.standardise(_hidden(X), scale))
    planted.close(standard.mean(0), np.zeros(6), terms=60, scale=1)
    fits = [last_layer.average_fits(standard, Y, 2, row[None], inverse_strength=0.7) for row in subsets]
    for keep, head in zip(np.asarray(subsets) > 0, fits, strict=True):
        assert len(set(np.bincount(GROUP[keep]))) == 1
        oracle = LogisticRegression(C=0.7, l1_ratio=1.0, solver="saga", tol=1e-7, max_iter=50_000)
        oracle.fit(standard[keep], Y[keep])
        weight, bias = oracle.coef_ / 2, np.ravel(oracle.intercept_) / 2
        best = Linear(jnp.concatenate([-weight, weight]), jnp.concatenate([-bias, bias]))
        objective = partial(_objective, rows=standard[keep], y=Y[keep], l1=1 / (0.7 * keep.sum()))
        # The objective is convex: a gradient of 1e-4, the solver's bound, over the distance to the best.
        distance = np.abs(head.weight - best.weight).sum() + np.abs(head.bias - best.bias).sum()
        assert objective(head) <= objective(best) + 1e-4 * distance + 1e-6
        weaker = last_layer.average_fits(standard, Y, 2, keep.astype(np.float32)[None], inverse_strength=1.4)
        assert objective(weaker) > objective(best) + 1e-3  # as another penalty would be
    found = last_layer.average_fits(standard, Y, 2, subsets, inverse_strength=0.7)
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *fits)
    np.testing.assert_allclose(found.weight, mean.weight, atol=SOLVED)
    logits, _ = MODEL.apply(last_layer.with_head(VARIABLES, PATH, found, scale), X)
    planted.close(logits, standard @ np.asarray(found.weight).T + np.asarray(found.bias), terms=4 + 6 + 6)


def test_rows_outside_small_subsets_need_not_be_looked_at():
    subsets = last_layer.balanced_subsets(jax.random.key(3), GROUP, 4, num_subsets=3)
    size = int(subsets[0].sum())
    assert size < 60
    whole, few = (last_layer.average_fits(_hidden(X), Y, 2, subsets, max_size=k) for k in (None, size))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=SOLVED), whole, few)


def test_a_constant_feature_stays_finite_and_nothing_is_mutated():
    features = np.array([[1.0, 2.0], [1.0, 4.0]], np.float32)
    np.testing.assert_allclose(last_layer.standardise(features, last_layer.scale_of(features)), [[0, -1], [0, 1]])
    before = jax.tree.map(np.asarray, VARIABLES)
    head = last_layer.average_fits(_hidden(X), Y, 2, jnp.ones((1, 60)))
    last_layer.with_head(VARIABLES, PATH, head, last_layer.scale_of(_hidden(X)))
    jax.tree.map(np.testing.assert_array_equal, before, VARIABLES)
