"""Every kind of network trains through the same trainer, keeps its state in training and leaves it in evaluation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest
from flax import linen, nnx

from d3mjax.networks import adapt, dense
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer


class Norm(linen.Module):
    @linen.compact
    def __call__(self, x, *, train):
        x = linen.relu(linen.BatchNorm(use_running_average=not train)(linen.Dense(8)(x)))
        return linen.Dense(3)(linen.Dropout(0.3, deterministic=not train)(x))


class Plain(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(x)


class NnxNorm(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(2, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.dropout, self.last = nnx.Dropout(0.3, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


MODELS = {
    "linen norm dropout": adapt.from_linen(Norm()),
    "linen plain": adapt.from_linen(Plain()),
    "nnx": adapt.from_nnx(NnxNorm),
    "functions": adapt.from_functions(
        lambda key, x: {"w": 0.1 * jax.random.normal(key, (x.shape[-1], 3))}, lambda params, x: x @ params["w"]
    ),
    "mlp": dense.mlp((8,), 3),
}
STATEFUL = ["linen norm dropout", "nnx"]


def _split():
    rng = np.random.default_rng(0)
    y = np.arange(48) % 3
    x = np.eye(3)[y][:, :2] * 3 + rng.normal(size=(48, 2)) + [1, -1]  # off centre, so batch means are far from 0
    return planted.split_of(x.astype(np.float32), y)


def _numbers(tree):
    """Leaves as numpy arrays, keys as their data."""
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return [np.asarray(jax.random.key_data(a) if is_key(a) else a) for a in jax.tree.leaves(tree)]


def _same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(_numbers(a), _numbers(b), strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_trains_side_by_side_and_evaluates_without_touching_anything(name):
    model, split = MODELS[name], _split()
    trainer = make_trainer(model, objectives.cross_entropy(), optax.adam(0.05), sampling.resampled(), batch_size=16)

    def fit(key):
        state, info = trainer.run(trainer.init(key, split.x), split, jnp.ones(48), 60)
        return state.variables, info.loss

    keys = jax.random.split(jax.random.key(0), 2)
    variables, loss = jax.jit(jax.vmap(fit))(keys)
    # log(3) is knowing nothing; batches and dropout move a mean over 10 steps by a few hundredths only
    assert np.all(loss[:, -10:].mean(1) < 0.8 * np.log(3)), loss
    one, two = jax.tree.map(lambda a: a[0], variables), jax.tree.map(lambda a: a[1], variables)
    assert not _same(one["params"], two["params"])
    logits, after = model.apply(one, split.x)
    assert logits.shape == (48, 3)
    assert _same(one, after)
    np.testing.assert_array_equal(logits, model.apply(one, split.x, train=False)[0])


@pytest.mark.parametrize("name", STATEFUL)
def test_training_mode_updates_state_and_draws_fresh_noise(name):
    model, x = MODELS[name], _split().x
    variables = model.init(jax.random.key(0), x)
    first, after = model.apply(variables, x, train=True)
    second, _ = model.apply({**after, "params": variables["params"]}, x, train=True)
    assert _same(after["params"], variables["params"])  # only the optimiser moves parameters
    assert not np.array_equal(first, second), "dropout drew the same noise twice"
    stats = variables["batch_stats"] if "batch_stats" in variables else variables["state"]["norm"]
    new = after["batch_stats"] if "batch_stats" in after else after["state"]["norm"]
    means = [a for path, a in jax.tree_util.tree_leaves_with_path(new) if "mean" in jax.tree_util.keystr(path)]
    assert len(means) == 1
    assert np.abs(means[0]).max() > 0.01
    assert not _same(stats, new)


def test_batch_norm_running_mean_by_hand():
    x = _split().x
    for model, layer_path, mean in (
        (MODELS["linen norm dropout"], ("params", "Dense_0"), ("batch_stats", "BatchNorm_0", "mean")),
        (MODELS["nnx"], ("params", "first"), ("state", "norm", "mean")),
    ):
        variables = model.init(jax.random.key(1), x)
        _, after = model.apply(variables, x, train=True)
        layer = variables[layer_path[0]][layer_path[1]]
        hidden = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        # running mean 0.99 * 0 + 0.01 * batch mean
        got = functools.reduce(lambda tree, name: tree[name], mean, after)
        planted.close(got, 0.01 * hidden.mean(0), terms=48, scale=0.01 * np.abs(hidden).max())


def test_init_depends_on_the_key_alone():
    x = _split().x
    for name, model in MODELS.items():
        variables = model.init(jax.random.key(5), x)
        assert _same(variables, model.init(jax.random.key(5), x)), name
        assert not _same(variables["params"], model.init(jax.random.key(6), x)["params"]), name


def test_mlp_and_linear_shapes():
    x = jnp.zeros((1, 5))
    shapes = jax.tree.map(jnp.shape, dense.mlp((7, 4), 3).init(jax.random.key(0), x))
    assert shapes == {
        "params": {
            "Dense_0": {"kernel": (5, 7), "bias": (7,)},
            "Dense_1": {"kernel": (7, 4), "bias": (4,)},
            "Dense_2": {"kernel": (4, 3), "bias": (3,)},
        }
    }
    shapes = jax.tree.map(jnp.shape, dense.linear(3).init(jax.random.key(0), x))
    assert shapes == {"params": {"Dense_0": {"kernel": (5, 3), "bias": (3,)}}}


def test_mlp_by_hand():
    x = np.asarray(planted.normal(1, 6, 5))
    model = dense.mlp((7,), 3)
    variables = model.init(jax.random.key(0), x)
    first, last = (variables["params"][name] for name in ("Dense_0", "Dense_1"))
    hidden = np.maximum(x @ np.asarray(first["kernel"]), 0)  # biases start at zero
    planted.close(model.apply(variables, x)[0], hidden @ np.asarray(last["kernel"]), terms=5 + 7)
