"""Datamodel matching: predicted margins, and models trained to them; the divergence that judges them."""

import jax
import numpy as np
import planted
import pytest
from scipy import special

import d3mjax
from d3mjax import metrics
from d3mjax.attribution import outputs
from d3mjax.networks import dense
from d3mjax.unlearning import matching

KEY = jax.random.key(0)
DATA = d3mjax.planted_shortcut(seed=0, train=80, target=40)


def test_klom_is_the_divergence_of_histograms():
    rng = np.random.default_rng(0)
    oracle, unlearned = rng.normal(size=(300, 3)), rng.normal([0, 1, 0], [1, 1, 3], size=(200, 3))
    got = metrics.klom(oracle.astype(np.float32), unlearned.astype(np.float32), bins=7, floor=1e-4)
    for j in range(3):
        p, q = oracle[:, j].astype(np.float32), unlearned[:, j].astype(np.float32)
        edges = np.linspace(min(p.min(), q.min()), max(p.max(), q.max()), 8)
        share = np.histogram(p, edges)[0] / 300
        other = np.maximum(np.histogram(q, edges)[0] / 200, 1e-4)
        expected = special.rel_entr(share, other).sum()
        np.testing.assert_allclose(got[j], expected, rtol=2e-2)  # one example at an edge moves by one bin
    assert got[1] > 5 * metrics.klom(oracle[:150], oracle[150:], bins=7)[1]


def test_klom_of_equal_and_of_apart():
    same = np.ones((5, 2), np.float32)
    assert metrics.klom(same, same).tolist() == [0, 0]
    np.testing.assert_allclose(metrics.klom(same, 3 * same), -np.log(1e-5), rtol=1e-5)


def test_predicted_margins_are_those_without_the_sum():
    rng = np.random.default_rng(1)
    tau, margins, forgotten = rng.normal(size=(4, 6)), rng.normal(size=4), np.arange(6) % 2 == 0
    got = matching.without(margins.astype(np.float32), tau.astype(np.float32), forgotten)
    planted.close(got, (margins - tau[:, forgotten].sum(1)).astype(np.float32), terms=6)
    twice = matching.without(np.stack([margins, 2 * margins]).astype(np.float32), tau.astype(np.float32), forgotten)
    planted.close(twice[1], (2 * margins - tau[:, forgotten].sum(1)).astype(np.float32), terms=6)


def test_a_linear_model_is_matched_to_margins_of_another():
    model = dense.linear(2)
    one, other = (model.init(key, DATA.train.x[:1]) for key in jax.random.split(KEY))
    wanted = outputs.soft_margins(model, other, DATA.train)
    found = matching.match(KEY, model, one, DATA.train, wanted, steps=800, rate=0.05, batch_size=40)
    np.testing.assert_allclose(outputs.soft_margins(model, found, DATA.train), wanted, atol=0.05)
    before = np.abs(outputs.soft_margins(model, one, DATA.train) - wanted).mean()
    assert before > 0.5


def test_margins_of_another_number_are_refused():
    model = dense.linear(2)
    with pytest.raises(ValueError, match="margins: found 3, expected one for each of 80"):
        matching.match(KEY, model, model.init(KEY, DATA.train.x[:1]), DATA.train, np.zeros(3))
