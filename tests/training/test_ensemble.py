"""Each of many models is the model alone: against a Python loop, for any width, devices and companions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest

from d3mjax.networks import dense
from d3mjax.training import ensemble, masks, objectives, sampling
from d3mjax.training.trainer import make_trainer

N, STEPS, BATCH = 24, 12, 6
SPLIT = planted.split_of(np.asarray(planted.normal(1, N, 3)), np.random.default_rng(2).integers(0, 2, N))
ROOT = jax.random.key(0)
MODEL = dense.mlp((5,), 2)
# Plain SGD: Adam divides small gradients by their own size, and with them the rounding errors.
TRAINER = make_trainer(MODEL, objectives.cross_entropy(), optax.sgd(0.3), sampling.resampled(), batch_size=BATCH)


def fit(key, weights):
    state, info = TRAINER.run(TRAINER.init(key, SPLIT.x[:1]), SPLIT, weights, STEPS)
    return state.variables["params"], info.loss


def _arguments(ids):
    ids = jnp.asarray(ids)
    return ensemble.model_keys(ROOT, ids), masks.bernoulli(ROOT, ids, N, 0.5).astype(jnp.float32)


def _fit_all(ids, **options):
    return jax.jit(ensemble.map_models(fit, **options))(*_arguments(ids))


def _close(got, expected):
    # Not bitwise: XLA picks other kernels, with other orders of summation, for other batch shapes.
    planted.close(got, expected, terms=STEPS * BATCH)


@pytest.fixture(scope="module")
def alone():
    """Models 0..9 by a Python loop."""
    one = jax.jit(fit)
    rows = [one(key, weights) for key, weights in zip(*_arguments(range(10)), strict=True)]
    params, loss = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    for layer in params.values():  # biases start at zero, and tell the models apart in the end
        assert np.abs(layer["bias"][1:] - layer["bias"][:-1]).max(axis=1).min() > 1e-4
    return params, loss


@pytest.mark.parametrize("width", [1, 3, 8])  # 10 models: remainders of 1 and 2
def test_map_is_a_python_loop_for_any_width(alone, width):
    _close(_fit_all(range(10), width=width), alone)


@pytest.mark.parametrize(
    ("devices", "width"), [(1, 3), (8, 1), (8, 3)]
)  # two models a device: 3 is wider than its share
def test_map_is_a_python_loop_on_any_mesh(alone, devices, width):
    got = _fit_all(range(10), width=width, mesh=planted.mesh_of(devices))  # 8 does not divide 10
    assert got[1].shape == (10, STEPS)
    _close(got, alone)


@pytest.mark.parametrize("mesh", [None, planted.mesh_of(8)])
def test_shared_arguments_come_first_wherever_they_lie(alone, mesh):
    def of_split(split, key, weights):
        state, info = TRAINER.run(TRAINER.init(key, split.x[:1]), split, weights, STEPS)
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

    got = jax.jit(ensemble.map_models(step, width=1, mesh=planted.mesh_of(8)))(targets)
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
    got = ensemble.map_models(fn, width=2, mesh=planted.mesh_of(8))({"x": x, "y": y}, factor)
    np.testing.assert_array_equal(got["sum"], x.sum(1) * factor)  # small integers are exact
    np.testing.assert_array_equal(got["pair"][0], y)
    np.testing.assert_array_equal(got["pair"][1], factor)


def test_bad_width_and_mismatched_models_are_named():
    with pytest.raises(ValueError, match="width: found 0"):
        ensemble.map_models(fit, width=0)
    with pytest.raises(ValueError, match=r"args: found leading axes \[3, 4\]"):
        ensemble.map_models(lambda a, b: a + b, width=2)(jnp.ones(3), jnp.ones(4))


def test_other_weights_do_not_retrace():
    counted, traces = planted.count_traces(lambda *args: fit(*args)[1])
    run = jax.jit(ensemble.map_models(counted, width=2, mesh=planted.mesh_of(2)))
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


def _look(variables, target, rows, offset):
    """Reads of a model: a shared target set, and two arrays of each model."""
    logits, _ = MODEL.apply(variables, target)
    return {"logits": logits, "picked": logits[rows] + offset[None, None]}


TARGET = np.asarray(planted.normal(3, 7, 3))
EACH = np.arange(10).reshape(5, 2) % 7, np.linspace(-1, 1, 5, dtype=np.float32)


def _train_five(split, weights, **options):
    keys, looks = ensemble.model_keys(ROOT, np.arange(5)), {"look": _look, "shared": (TARGET,), "each": EACH}
    train = lambda keys, split, weights: ensemble.train_many(TRAINER, keys, split, weights, STEPS, **looks, **options)
    return jax.jit(train)(keys, split, weights)


def _loop(splits, weights):
    """The same by a Python loop over the models, with a split and weights for each."""
    rows = []
    run = jax.jit(lambda key, part, weight: TRAINER.run(TRAINER.init(key, part.x[:1]), part, weight, STEPS))
    for j, (part, weight) in enumerate(zip(splits, weights, strict=True)):
        state, info = run(jax.random.fold_in(ROOT, j), part, jnp.asarray(weight))
        rows.append((_look(state.variables, TARGET, EACH[0][j], EACH[1][j]), info.loss))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


WEIGHTS = np.random.default_rng(4).uniform(size=(5, N)).astype(np.float32)


@pytest.mark.parametrize(("width", "devices"), [(1, None), (3, None), (1, 1), (2, 8)])
def test_train_many_is_a_python_loop(width, devices):
    mesh = None if devices is None else planted.mesh_of(devices)
    looked, losses = _train_five(SPLIT, WEIGHTS, width=width, mesh=mesh)
    assert losses.shape == (5, STEPS)
    _close((looked, losses), _loop([SPLIT] * 5, WEIGHTS))


def test_one_row_of_weights_serves_all_models():
    together, rows = (_train_five(SPLIT, weights) for weights in (WEIGHTS[0], np.tile(WEIGHTS[:1], (5, 1))))
    _close(together, rows)
    assert not np.allclose(together[1], _train_five(SPLIT, WEIGHTS)[1])


@pytest.mark.parametrize("mesh", [None, planted.mesh_of(8)])
def test_each_model_may_have_labels_and_groups_of_its_own(mesh):
    labels = np.random.default_rng(5).integers(0, 2, (5, N))
    got = _train_five(SPLIT._replace(y=labels), WEIGHTS, width=2, mesh=mesh)
    _close(got, _loop([SPLIT._replace(y=y) for y in labels], WEIGHTS))
    dro = make_trainer(MODEL, objectives.group_dro(2, eta=1.0), optax.sgd(0.3), sampling.shuffled(), batch_size=BATCH)
    keys = ensemble.model_keys(ROOT, np.arange(5))
    by_group = lambda group: ensemble.train_many(dro, keys, SPLIT._replace(group=group), WEIGHTS, STEPS, mesh=mesh)[1]
    mixed = by_group(labels)
    _close(mixed, jnp.stack([by_group(group)[j] for j, group in enumerate(labels)]))
    assert not np.allclose(mixed, by_group(np.ones(N, int)))


def test_each_model_may_have_examples_of_its_own():
    x = np.asarray(planted.normal(6, 5, N, 3))
    splits = [SPLIT._replace(x=rows, id=SPLIT.id + N * j) for j, rows in enumerate(x)]
    stacked = SPLIT._replace(x=x, id=np.stack([part.id for part in splits]))
    _close(_train_five(stacked, WEIGHTS, width=2), _loop(splits, WEIGHTS))


def test_train_many_without_look_returns_all_variables():
    keys = ensemble.model_keys(ROOT, np.arange(2))
    variables, _ = ensemble.train_many(TRAINER, keys, SPLIT, np.ones(N, np.float32), 3)
    assert jax.tree.map(jnp.shape, variables["params"]["Dense_0"]) == {"kernel": (2, 3, 5), "bias": (2, 5)}


def test_train_many_compiles_once_for_one_shape():
    look, traces = planted.count_traces(lambda variables: variables["params"]["Dense_0"]["bias"])
    train = lambda keys, split, weights: ensemble.train_many(
        TRAINER, keys, split, weights, STEPS, look=look, width=2, mesh=planted.mesh_of(2)
    )
    run, keys = jax.jit(train), ensemble.model_keys(ROOT, np.arange(4))
    first, _ = run(keys, SPLIT, np.ones(N, np.float32))
    count = len(traces)
    for arguments in ((keys[::-1], SPLIT), (keys, SPLIT._replace(x=-SPLIT.x)), (keys, SPLIT._replace(y=1 - SPLIT.y))):
        assert not np.array_equal(first, run(*arguments, np.ones(N, np.float32))[0])
    assert len(traces) == count


def test_train_many_names_models_that_do_not_match():
    keys = ensemble.model_keys(ROOT, np.arange(3))
    wrong: list[dict[str, Any]] = [{"each": (np.zeros(4),)}, {"width": 0}]
    for options in wrong:
        with pytest.raises(ValueError, match=r"leading axes \[3, 4\]|width: found 0"):
            ensemble.train_many(TRAINER, keys, SPLIT, np.ones(N, np.float32), 2, look=lambda v, *a: v, **options)
