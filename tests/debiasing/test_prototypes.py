"""DPE: the ensemble's formula, what each part of its fit does, and the model around it."""

from typing import Any

import jax
import numpy as np
import planted
import pytest

import d3mjax
from d3mjax.debiasing import last_layer, prototypes
from d3mjax.networks import dense

KEY = jax.random.key(0)
DATA = d3mjax.planted_shortcut(seed=0, train=200, target=120, test=400)
X, Y = np.asarray(DATA.target.x), np.asarray(DATA.target.y)
SUBSETS = last_layer.balanced_subsets(jax.random.key(1), DATA.target.group, 4, num_subsets=4)
OPTIONS = prototypes.Options(steps=60)


def fit(x: Any = X, y: Any = Y, subsets: Any = SUBSETS, **options):
    return prototypes.fit(KEY, x, y, 2, subsets, options=OPTIONS, **options)


def likeness(ensemble):
    """Mean |cosine| of prototypes of one class in two heads."""
    cosines = np.einsum("rcp,scp->rsc", ensemble.prototypes, ensemble.prototypes)
    return np.abs(cosines[np.triu_indices(len(cosines), 1)]).mean()


def test_probabilities_are_means_of_softmax_outputs():
    rng = np.random.default_rng(0)
    raw, scales = rng.normal(size=(3, 2, 5)), np.array([0.5, 1.0, 4.0])
    directions: Any = raw / np.linalg.norm(raw, axis=2, keepdims=True)
    ensemble = prototypes.Ensemble(directions, jax.numpy.asarray(scales))
    features = rng.normal(size=(7, 5))
    standard = (features - features.mean(1, keepdims=True)) / features.std(1, keepdims=True)
    unit = standard / np.linalg.norm(standard, axis=1, keepdims=True)
    distance = np.linalg.norm(unit[None, :, None] - ensemble.prototypes[:, None], axis=-1)
    odds = np.exp(-scales[:, None, None] * distance)
    expected = np.log((odds / odds.sum(-1, keepdims=True)).mean(0))
    as_float32 = jax.tree.map(lambda a: a.astype(np.float32), ensemble)
    got = prototypes.log_probabilities(as_float32, features.astype(np.float32))
    planted.close(got, expected.astype(np.float32), terms=30)


def test_heads_are_unit_prototypes_which_the_penalty_tells_apart():
    alike, unlike = fit(diversity=0.0), fit(diversity=1.0)
    np.testing.assert_allclose(np.linalg.norm(unlike.prototypes, axis=2), 1, rtol=1e-5)
    assert likeness(unlike) < 0.6 * likeness(alike)
    planted.equal(alike.prototypes[0], unlike.prototypes[0])  # the first head has nothing to be unlike


def test_examples_outside_all_subsets_and_the_scale_of_features_do_not_matter():
    outside = np.asarray(SUBSETS).sum(0) == 0
    assert outside.any()
    changed = np.where(outside[:, None], X[:, ::-1], X)
    expected = fit()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), fit(changed), expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), fit(3 * X + 2), expected)


def test_a_planted_shortcut_is_lifted():
    logits = prototypes.log_probabilities(fit(), DATA.test.x)
    right = np.asarray(logits.argmax(1) == DATA.test.y)
    one = np.ones((1, len(Y)), np.float32)
    plain = np.asarray(prototypes.log_probabilities(fit(subsets=one), DATA.test.x).argmax(1) == DATA.test.y)
    worst = lambda right: min(right[np.asarray(DATA.test.group) == g].mean() for g in range(4))
    assert worst(right) > worst(plain)


@pytest.mark.parametrize("microbatch", [None, 7])
def test_the_model_around_the_ensemble(microbatch):
    network = dense.mlp((6,), 2)
    variables = network.init(KEY, X[:1])
    path = last_layer.find(variables["params"], 2)
    features = last_layer.features(network, variables, X, path)
    ensemble = fit(features)
    model = prototypes.on_features(network, path, microbatch=microbatch)
    logits, after = model.apply({**variables, "ensemble": ensemble}, X)
    planted.close(logits, prototypes.log_probabilities(ensemble, features), terms=20)
    planted.equal(after["params"], variables["params"])
    np.testing.assert_allclose(np.exp(logits).sum(1), 1, rtol=1e-5)


def test_a_constant_row_is_finite():
    logits = prototypes.log_probabilities(fit(), np.ones((2, X.shape[1]), np.float32))
    np.testing.assert_allclose(logits, np.log(0.5), atol=1e-5)
