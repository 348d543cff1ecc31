"""Many models are each the model alone: against a Python loop, for any width, any number of devices, any companions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from d3mjax.networks import dense
from d3mjax.training import ensemble, masks, objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Split

N = 24
RNG = np.random.default_rng(1)
SPLIT = Split(RNG.normal(size=(N, 3)).astype(np.float32), RNG.integers(0, 2, N), np.zeros(N, int), np.arange(N))
ROOT = jax.random.key(0)
TRAINER = make_trainer(
    dense.mlp((5,), 2), objectives.cross_entropy(), optax.adam(0.03), sampling.resampled(), batch_size=6
)


def _mesh(devices=8):
    return jax.make_mesh((devices,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def fit(key, weights):
    state, info = TRAINER.run(TRAINER.init(key, SPLIT.x[:1]), SPLIT, weights, 12)
    return state.variables["params"], info.loss


def _arguments(ids):
    ids = jnp.asarray(ids)
    return ensemble.model_keys(ROOT, ids), masks.bernoulli(ROOT, ids, N, 0.5).astype(jnp.float32)


def _fit_all(ids, **options):
    return jax.jit(ensemble.map_models(fit, **options))(*_arguments(ids))


def _close(got, expected):
    # Not bitwise: XLA picks other kernels, with other orders of summation, for other batch shapes. Adam divides small
    # gradients by their own size, so 12 steps turn an error of 1e-7 into some 1e-6.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, expected)


@pytest.fixture(scope="module")
def alone():
    """Models 0..9 by a Python loop."""
    one = jax.jit(fit)
    rows = [one(key, weights) for key, weights in zip(*_arguments(range(10)), strict=True)]
    params, loss = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    for layer in params.values():  # biases start at zero, and tell the models apart in the end
        assert np.abs(layer["bias"][1:] - layer["bias"][:-1]).max(axis=1).min() > 1e-3
    return params, loss


@pytest.mark.parametrize("width", [1, 3, 8])  # 10 models: remainders of 1 and 2
def test_map_is_a_python_loop_for_any_width(alone, width):
    _close(_fit_all(range(10), width=width), alone)


@pytest.mark.parametrize(
    ("devices", "width"), [(1, 3), (8, 1), (8, 3)]
)  # two models a device: 3 is wider than its share
def test_map_is_a_python_loop_on_any_mesh(alone, devices, width):
    got = _fit_all(range(10), width=width, mesh=_mesh(devices))  # 8 does not divide 10
    assert got[1].shape == (10, 12)
    _close(got, alone)


@pytest.mark.parametrize("mesh", [None, _mesh()])
def test_shared_arguments_come_first_wherever_they_lie(alone, mesh):
    def of_split(split, key, weights):
        state, info = TRAINER.run(TRAINER.init(key, split.x[:1]), split, weights, 12)
        return state.variables["params"], info.loss * jax.nn.one_hot(split.y, 2).max()  # refused if closed over

    split = SPLIT if mesh is None else jax.device_put(SPLIT, jax.NamedSharding(mesh, jax.P()))
    fit_all = jax.jit(lambda split, *a: ensemble.map_models(of_split, width=2, mesh=mesh, shared=(split,))(*a))
    _close(fit_all(split, *_arguments(range(10))), alone)


def test_parameters_that_start_equal_on_all_devices_are_not_tied_together():
    # Biases start at zero and depend on no argument that differs by device; autodiff inside shard_map then sums their
    # gradient over devices unless told otherwise. One step of SGD from zero shows the gradient itself.
    targets = jnp.arange(1.0, 9.0)

    def step(target):
        return -jax.grad(lambda bias: 0.5 * (bias - target) ** 2)(jnp.zeros(()))

    got = jax.jit(ensemble.map_models(step, width=1, mesh=_mesh()))(targets)
    np.testing.assert_array_equal(got, targets)  # summed over devices, all would be 36


def test_models_do_not_depend_on_their_companions(alone):
    got = _fit_all([5, 9], width=2)
    _close(got, jax.tree.map(lambda a: a[jnp.array([5, 9])], alone))


def test_keys_come_from_identity():
    data = jax.random.key_data(ensemble.model_keys(ROOT, jnp.array([9, 5])))
    np.testing.assert_array_equal(data[0], jax.random.key_data(jax.random.fold_in(ROOT, 9)))
    np.testing.assert_array_equal(data[1], jax.random.key_data(jax.random.fold_in(ROOT, 5)))


def test_pytree_arguments_and_results():
    def fn(arrays, factor):
        return {"sum": arrays["x"].sum() * factor, "pair": (arrays["y"], factor)}

    x, y, factor = jnp.arange(15.0).reshape(5, 3), jnp.arange(5), jnp.array([1.0, -1, 2, 0, 3])
    got = ensemble.map_models(fn, width=2, mesh=_mesh())({"x": x, "y": y}, factor)
    np.testing.assert_allclose(got["sum"], x.sum(1) * factor)
    np.testing.assert_array_equal(got["pair"][0], y)
    np.testing.assert_array_equal(got["pair"][1], factor)


def test_bad_width_and_mismatched_models_are_named():
    with pytest.raises(ValueError, match="width: found 0"):
        ensemble.map_models(fit, width=0)
    with pytest.raises(ValueError, match=r"args: found leading axes \[3, 4\]"):
        ensemble.map_models(lambda a, b: a + b, width=2)(jnp.ones(3), jnp.ones(4))


def test_other_weights_do_not_retrace():
    traces = []

    def counted(key, weights):
        traces.append(weights)
        return fit(key, weights)[1]

    run = jax.jit(ensemble.map_models(counted, width=2, mesh=_mesh(2)))
    first = run(*_arguments(range(4)))
    count = len(traces)
    assert not np.array_equal(first, run(*_arguments(range(4, 8))))
    assert len(traces) == count, f"retraced: a shape, dtype or weak type differs between:\n{traces}"


def test_check_losses_names_models_and_first_steps():
    loss = np.ones((9, 4))
    ensemble.check_losses(loss, np.arange(9))
    loss[2, 1:] = np.nan
    loss[4, 3] = np.inf
    with pytest.raises(FloatingPointError, match=r"models 120 \(step 1\), 140 \(step 3\); lower"):
        ensemble.check_losses(jnp.asarray(loss), 100 + 10 * jnp.arange(9))
    loss[:, 0] = np.nan
    with pytest.raises(FloatingPointError, match=r"4 \(step 0\) and 4 more"):
        ensemble.check_losses(loss, np.arange(9))


def test_a_mesh_with_explicit_axes_as_jax_makes_them_by_default_will_do():
    mesh = jax.make_mesh((8,), ("model",))
    mapped = ensemble.map_models(lambda a: a * 2, width=1, mesh=mesh)
    np.testing.assert_array_equal(jax.jit(mapped)(jnp.arange(11)), 2 * np.arange(11))
    np.testing.assert_array_equal(mapped(jnp.arange(11)), 2 * np.arange(11))
