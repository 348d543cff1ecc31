"""Weights by descent: steps in closed form, exact derivatives, nearest examples, and a planted shortcut."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest

import d3mjax
from d3mjax.attribution import outputs
from d3mjax.debiasing import d3m, reweighting

KEY, STEPS = jax.random.key(0), 60
DATA = d3mjax.planted_shortcut(seed=0, train=300, target=80, selection=40, test=400)
MODEL = d3mjax.linear(2)
SMOOTH, PLAIN = (
    d3mjax.make_trainer(
        MODEL, d3mjax.cross_entropy(smoothing=s), optax.sgd(0.1, momentum=0.9), d3mjax.shuffled(), batch_size=50
    )
    for s in (0.2, 0.0)
)
ALONE = np.arange(300)[:, None]


def descend(data=DATA, neighbours: Any = ALONE, **options):
    weights = options.pop("weights", None)
    arguments = (KEY, MODEL, SMOOTH, data.train, data.target, 4, STEPS)
    return reweighting.descend(
        *arguments, neighbours=neighbours, weights=weights, options=reweighting.Options(**options)
    )


def test_nearest_of_class_by_brute_force():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)).astype(np.float32), np.r_[rng.integers(0, 3, 38), 3, 3]
    got = reweighting.nearest_of_class(x, y, count=4, microbatch=7)
    for i in range(40):
        others = [j for j in range(40) if y[j] == y[i] and j != i]
        others.sort(key=lambda j: np.sum((x[i].astype(float) - x[j]) ** 2))
        expected = [i, *others[:3], *[i] * 3][:4]
        assert got[i].tolist() == expected


def test_a_step_in_closed_form():
    options = reweighting.Options(rate=0.1, most=0.2)
    derivative, weights = np.r_[np.linspace(-1, 1, 10), 9.0], np.ones(11)
    scale = np.quantile(np.abs(derivative), 0.9)
    momentum = np.full(11, 0.5) / 2 + np.clip(derivative / scale, -3, 3)
    moved = np.exp(np.clip(0.1 * momentum, -0.2, 0.2))
    got = reweighting.step(derivative, np.full(11, 0.5), weights, options)
    planted.close(got, (momentum.astype(np.float32), (moved / moved.mean()).astype(np.float32)), terms=11)


def test_first_step_follows_the_derivative_by_the_weights():
    """Central differences of the loss over groups, of the same trainings, by one weight at a time."""
    start = np.linspace(0.5, 1.5, 300).astype(np.float32)
    result = descend(rounds=1, models=2, weights=start, rate=0.01, most=10.0)
    w = result.weights[0]
    log = np.log(np.asarray(result.weights[1]) / np.asarray(w))
    keys = d3mjax.model_keys(jax.random.fold_in(KEY, 0), np.arange(2))

    @jax.jit
    def objective(key, factors):
        state = SMOOTH.init(key, DATA.train.x[:1])
        index, weight = SMOOTH.draw(state, w, STEPS)
        split = jax.tree.map(jnp.asarray, DATA.train)
        run = lambda state, draw: SMOOTH.step(state, split, draw[0], draw[1] * factors[draw[0]])
        variables = jax.lax.scan(run, state, (index, weight))[0].variables
        losses = outputs.losses(MODEL, variables, DATA.target)
        return -jax.nn.logsumexp(d3mjax.metrics.group_means(losses, DATA.target.group, 4))

    size, some = 0.3, np.arange(0, 300, 60)
    ones, slopes = np.ones(300, np.float32), []
    for i in some:
        e = np.eye(300, dtype=np.float32)[i]
        moved = [float(np.mean([objective(key, ones + sign * size * e) for key in keys])) for sign in (1, -1)]
        slopes.append((moved[0] - moved[1]) / (2 * size) / float(w[i]))
    # The step is linear in the derivative up to one constant, the mean weight's, where nothing is clipped.
    inside = np.abs(log - np.median(log)) < 0.029
    assert inside[some].all()
    fit = np.polyfit(slopes, log[some], 1)
    np.testing.assert_allclose(np.polyval(fit, slopes), log[some], atol=0.02 * np.ptp(log[some]))
    assert fit[0] > 0


def test_lifts_the_worst_group_of_a_planted_shortcut_without_removal():
    train = DATA.train
    near = reweighting.nearest_of_class(train.x, train.y, count=5)
    result = descend(neighbours=near, rounds=5, models=2)
    last = np.asarray(result.weights[-1])
    planted.close(result.weights.mean(1), np.ones(6, np.float32), terms=300)
    assert (last > 0.05).all()
    minority = train.group % 2 != train.y
    assert last[minority].mean() > 1.5 * last[~minority].mean()
    rows = np.stack([np.ones(300), last]).astype(np.float32)
    keys = d3mjax.model_keys(jax.random.key(5), np.arange(2))
    before, after = d3m.retrain(keys, MODEL, PLAIN, train, DATA, rows, 4, STEPS).test.min(1)
    assert after > before + 0.05


def test_bad_input():
    with pytest.raises(ValueError, match="neighbours: found 3 rows, expected one for each of 300"):
        descend(neighbours=ALONE[:3])
    nobody = DATA.target._replace(group=np.full(len(DATA.target.y), -1))
    with pytest.raises(ValueError, match="no target has a group"):
        descend(data=DATA._replace(target=nobody))
