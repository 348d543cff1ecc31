"""One run: against a NumPy loop, against itself in two halves, and with examples that must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest

from d3mjax.networks import dense
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Model

N, B = 30, 8
KEY = jax.random.key(7)
SPLIT = planted.split_of(np.asarray(planted.normal(0, N, 4)), np.random.default_rng(1).integers(0, 3, N))
SPREAD = np.random.default_rng(2).uniform(0.5, 2, N)
WEIGHTS = jnp.asarray(SPREAD * (np.arange(N) % 5 > 0), jnp.float32)  # six examples of weight 0
TX = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))


def _trainer(model=None, tx=TX, sampler=None):
    model = dense.mlp((6,), 3) if model is None else model
    sampler = sampling.shuffled() if sampler is None else sampler
    return make_trainer(model, objectives.cross_entropy(), tx, sampler, batch_size=B)


def _fit(trainer, key, split, weights, num_steps):
    return trainer.run(trainer.init(key, jax.tree.map(lambda a: a[:1], split.x)), split, weights, num_steps)


fit = jax.jit(_fit, static_argnums=(0, 4))
TRAINER = _trainer()


@pytest.mark.parametrize("sampler", [sampling.shuffled(), sampling.resampled()], ids=["shuffled", "resampled"])
def test_resuming_is_bitwise_the_uninterrupted_run(sampler):
    trainer = _trainer(tx=optax.adam(0.01), sampler=sampler)
    run = jax.jit(trainer.run, static_argnums=3)
    start = trainer.init(KEY, SPLIT.x)
    whole, info = run(start, SPLIT, WEIGHTS, 20)
    half, first = run(start, SPLIT, WEIGHTS, 10)
    resumed, second = run(half, SPLIT, WEIGHTS, 10)
    assert int(whole.step) == int(resumed.step) == 20
    planted.equal((whole.variables, whole.opt_state), (resumed.variables, resumed.opt_state))
    np.testing.assert_array_equal(info.loss, jnp.concatenate([first.loss, second.loss]))
    assert not np.array_equal(first.loss, second.loss)


def test_sgd_with_momentum_and_decay_by_hand():
    trainer = _trainer(dense.linear(3))
    state, info = fit(trainer, KEY, SPLIT, WEIGHTS, 25)
    sampler = sampling.shuffled()
    index, weight = sampler.draw(jax.random.fold_in(KEY, 1), sampler.prepare(WEIGHTS), jnp.arange(25), B)
    layer = trainer.init(KEY, SPLIT.x).variables["params"]["Dense_0"]
    w, b = np.asarray(layer["kernel"], float), np.asarray(layer["bias"], float)
    velocity = [np.zeros_like(w), np.zeros_like(b)]
    losses = []
    for i, v in zip(np.asarray(index), np.asarray(weight, float), strict=True):
        x, one_hot = SPLIT.x[i].astype(float), np.eye(3)[SPLIT.y[i]]
        p = np.exp(x @ w + b)
        p /= p.sum(1, keepdims=True)
        losses.append(-(v * np.log((p * one_hot).sum(1))).sum() / B)
        residual = v[:, None] * (p - one_hot) / B
        for j, (param, grad) in enumerate(((w, x.T @ residual), (b, residual.sum(0)))):
            velocity[j] = 0.9 * velocity[j] + grad + 0.01 * param
            param -= 0.1 * velocity[j]
    planted.close(info.loss, np.array(losses), terms=25 * B)
    planted.close(state.variables["params"]["Dense_0"], {"kernel": w, "bias": b}, terms=25 * B)


def test_an_example_of_weight_zero_changes_nothing():
    expected = fit(TRAINER, KEY, SPLIT, WEIGHTS, 15)[0].variables
    x, y = SPLIT.x.copy(), SPLIT.y.copy()
    x[5], y[5] = np.nan, 2  # weight 0; not even a NaN may leak
    planted.equal(fit(TRAINER, KEY, SPLIT._replace(x=x, y=y), WEIGHTS, 15)[0].variables, expected)
    longer = jax.tree.map(lambda a: np.concatenate([a, a[-1:]]), SPLIT)
    planted.equal(fit(TRAINER, KEY, longer, jnp.append(WEIGHTS, 0.0), 15)[0].variables, expected)
    x[6] = 0  # weight > 0: the comparison above can fail
    changed = fit(TRAINER, KEY, SPLIT._replace(x=x, y=y), WEIGHTS, 15)[0].variables
    assert not np.array_equal(changed["params"]["Dense_0"]["kernel"], expected["params"]["Dense_0"]["kernel"])


def test_a_mask_trains_like_the_smaller_split():
    mask = np.asarray(WEIGHTS) > 0
    masked = fit(TRAINER, KEY, SPLIT, jnp.asarray(mask, jnp.float32), 15)
    gathered = fit(TRAINER, KEY, jax.tree.map(lambda a: a[mask], SPLIT), jnp.ones(mask.sum(), jnp.float32), 15)
    planted.equal(masked[0].variables, gathered[0].variables)
    np.testing.assert_array_equal(masked[1].loss, gathered[1].loss)


def test_other_values_of_the_same_shape_do_not_retrace():
    counted, traces = planted.count_traces(lambda key, split, weights: _fit(TRAINER, key, split, weights, 4)[1].loss)
    run = jax.jit(counted)
    first = run(KEY, SPLIT, WEIGHTS)
    assert not np.array_equal(first, run(jax.random.key(8), SPLIT, WEIGHTS))
    assert not np.array_equal(first, run(KEY, SPLIT, (WEIGHTS > 0).astype(jnp.float32)))
    assert not np.array_equal(first, run(KEY, SPLIT._replace(x=-SPLIT.x), WEIGHTS))
    run(KEY, SPLIT, jnp.zeros(N, jnp.float32))
    assert len(traces) == 1, f"retraced {len(traces)} times; a shape, dtype or weak type differs between:\n{traces}"


def test_batches_carry_every_leaf_of_a_pytree_input():
    pair = SPLIT._replace(x={"a": SPLIT.x[:, :2], "b": SPLIT.x[:, 2:]})
    join = lambda x: jnp.concatenate([x["a"], x["b"]], axis=-1)
    linear = dense.linear(3)
    model = Model(
        lambda key, x: linear.init(key, join(x)),
        lambda variables, x, **options: linear.apply(variables, join(x), **options),
    )
    trainer = _trainer(model)
    state, _ = fit(trainer, KEY, pair, WEIGHTS, 5)
    planted.equal(state.variables, fit(_trainer(linear), KEY, SPLIT, WEIGHTS, 5)[0].variables)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="batch_size: found 0"):
        make_trainer(dense.linear(3), objectives.cross_entropy(), optax.sgd(0.1), sampling.shuffled(), batch_size=0)
    bare = Model(lambda key, x: {"weights": x}, lambda variables, x, *, train=False: (x, variables))
    with pytest.raises(ValueError, match=r"model\.init: found variables with keys \['weights'\]"):
        _trainer(bare).init(KEY, SPLIT.x)
