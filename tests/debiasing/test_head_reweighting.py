"""GSR: heads are minimisers, weights follow the derivative through them, and a planted shortcut is lifted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import d3mjax
from d3mjax.debiasing import head_reweighting

DATA = d3mjax.planted_shortcut(seed=0, train=120, target=60, selection=40, test=400)
L2, BETA = 0.02, 2.0


def rows(split):
    return np.concatenate([np.asarray(split.x, float), np.ones((len(split.y), 1))], 1)


def losses(theta, split):
    logits = rows(split) @ theta.T
    return np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(split.y)), split.y], logits


def gradient(theta, weights, split=DATA.train):
    _, logits = losses(theta, split)
    error = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None]) - np.eye(2)[split.y]
    return (error * weights[:, None]).T @ rows(split) / len(split.y) + L2 * theta


def minimiser(weights):
    """By gradient descent, at the largest stable rate: the Hessian is at most half the largest eigenvalue of x x^T."""
    x = rows(DATA.train)
    rate = 1 / (np.linalg.eigvalsh((x * weights[:, None]).T @ x / len(x))[-1] / 2 + L2)
    theta = np.zeros((2, x.shape[1]))
    for _ in range(4000):
        theta = theta - rate * gradient(theta, weights)
    return theta


def objective(weights):
    value, _ = losses(minimiser(weights), DATA.target)
    means = [value[np.asarray(DATA.target.group) == g].mean() for g in range(4)]
    return np.log(np.exp(BETA * np.array(means)).sum()) / BETA


def descend(data=DATA, weights=None, **options):
    options = head_reweighting.Options(**{"beta": BETA, **options})
    return head_reweighting.descend(data.train, data.target, 2, 4, weights=weights, l2=L2, options=options)


def test_every_head_is_the_minimiser_under_its_weights():
    found = descend(rounds=3, rate=0.8)
    np.testing.assert_allclose(found.weights.mean(1), 1, rtol=1e-5)
    assert float(found.weights.min()) == 0  # some weights are cut
    for w, weight, bias in zip(found.weights, *found.head, strict=True):
        theta = np.concatenate([weight, np.asarray(bias)[:, None]], 1).astype(float)
        # Strongly convex: the distance to the minimum is at most the gradient over l2; float32 sums of 120 terms.
        assert np.abs(gradient(theta, np.asarray(w, float))).max() < 120 * np.finfo(np.float32).eps
    assert float(found.residual.max()) < 120 * np.finfo(np.float32).eps


def test_first_step_follows_the_derivative_through_the_fit():
    """Central differences of the loss over groups after fits in float64, by one weight at a time."""
    start = np.linspace(0.5, 1.5, 120)
    found = descend(rounds=1, rate=0.01, weights=start.astype(np.float32))
    moved = np.asarray(found.weights[1], float)
    some, size = np.arange(0, 120, 17), 1e-2
    slopes = np.array([(objective(start - e) - objective(start + e)) / (2 * size) for e in size * np.eye(120)[some]])
    # start + rate s / max |s|, over its mean: two unknown factors.
    known = np.stack([slopes, start[some]], 1)
    factors = np.linalg.lstsq(known, moved[some], rcond=None)[0]
    assert factors[0] > 0
    np.testing.assert_allclose(known @ factors, moved[some], atol=2e-3 * 0.01 + 2e-6)


def test_a_planted_shortcut_is_lifted():
    found = descend(rounds=30)

    def accuracy(round_):
        head = jax.tree.map(lambda a: a[round_], found.head)
        logits = np.asarray(DATA.test.x) @ np.asarray(head.weight).T + np.asarray(head.bias)
        return np.asarray(d3mjax.metrics.group_means(jnp.asarray(logits.argmax(1) == DATA.test.y), DATA.test.group, 4))

    assert accuracy(-1).min() > accuracy(0).min() + 0.1


def test_order_of_examples_does_not_matter():
    order = np.random.default_rng(0).permutation(120)
    shuffled = DATA._replace(train=jax.tree.map(lambda a: np.asarray(a)[order], DATA.train))
    np.testing.assert_allclose(descend(shuffled, rounds=3).weights, descend(rounds=3).weights[:, order], atol=2e-4)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="weights: found 7, expected one for each of 120"):
        descend(weights=np.ones(7))
    none = DATA.target._replace(group=np.full(60, -1))
    with pytest.raises(ValueError, match="no target has a group"):
        descend(DATA._replace(target=none))
