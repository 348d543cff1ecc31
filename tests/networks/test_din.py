"""DIN and DIEN: padding and its contents change nothing, the recurrence is that of a loop, embeddings can be frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3mjax.attribution import curvatures, gradients
from d3mjax.diagnosis import vectors
from d3mjax.networks import din
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Split

SIZES = din.Sizes(5, 30, (3, 4))
WIDTHS = din.Widths(embedding=3, attention=(4,), hidden=(6, 5))
MODELS = {"din": din.din(SIZES, widths=WIDTHS), "dien": din.dien(SIZES, widths=WIDTHS)}


def made(n=8, length=6, seed=0):
    rng = np.random.default_rng(seed)
    history = rng.integers(0, 30, (n, length)).astype(np.int32)
    history[np.arange(length)[None] >= rng.integers(1, length + 1, n)[:, None]] = -1
    return {
        "user": rng.integers(0, 5, n).astype(np.int32),
        "item": rng.integers(0, 30, n).astype(np.int32),
        "history": history,
        "levels": rng.integers(-1, 3, (n, 2)).astype(np.int32),
        "numbers": rng.normal(size=(n, 2)).astype(np.float32),
        "members": rng.integers(0, 2, (n, 4)).astype(np.int8),
        "history_members": rng.integers(0, 2, (n, length, 4)).astype(np.int8)
        * (history >= 0)[:, :, None].astype(np.int8),
    }


@pytest.fixture(params=MODELS)
def case(request):
    """A model away from its start, where biases are not 0."""
    model, x = MODELS[request.param], made()
    variables = model.init(jax.random.key(0), x)
    noise = lambda a: a + 0.3 * jax.random.normal(jax.random.key(1), a.shape)
    return model, {**variables, "params": jax.tree.map(noise, variables["params"])}, x


def logits(model, variables, x):
    return np.asarray(model.apply(variables, x)[0])


def test_padding_and_its_contents_change_nothing(case):
    model, variables, x = case
    expected = logits(model, variables, x)
    assert expected.shape == (8, 2)
    longer = {**x, "history": np.pad(x["history"], ((0, 0), (0, 5)), constant_values=-1)}
    longer["history_members"] = np.pad(x["history_members"], ((0, 0), (0, 5), (0, 0)), constant_values=1)
    np.testing.assert_allclose(logits(model, variables, longer), expected, atol=1e-5)
    garbage = {**x, "history": np.where(x["history"] < 0, -7, x["history"])}
    garbage["history_members"] = np.where((x["history"] < 0)[:, :, None], 1, x["history_members"]).astype(np.int8)
    np.testing.assert_allclose(logits(model, variables, garbage), expected, atol=1e-5)
    for i in range(8):
        alone = jax.tree.map(lambda a, i=i: a[i : i + 1], x)
        length = (alone["history"] >= 0).sum()
        alone |= {name: alone[name][:, :length] for name in ("history", "history_members")}
        np.testing.assert_allclose(logits(model, variables, alone)[0], expected[i], atol=1e-5)


def test_an_empty_history_is_finite_and_history_matters(case):
    model, variables, x = case
    empty = {**x, "history": np.full_like(x["history"], -1)}
    without = logits(model, variables, empty)
    assert np.isfinite(without).all()
    assert not np.allclose(without, logits(model, variables, x))
    slope = jax.grad(lambda p: model.apply({**variables, "params": p}, empty)[0].sum())(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_unknown_ids_have_no_embedding(case):
    model, variables, x = case
    unknown = {**x, "user": np.full_like(x["user"], -1), "levels": np.full_like(x["levels"], -1)}
    named = [name for name in variables["params"] if name.startswith(("user", "level"))]
    assert len(named) == 3
    zeroed = {
        **variables["params"],
        **{name: jax.tree.map(jnp.zeros_like, variables["params"][name]) for name in named},
    }
    expected = logits(model, {**variables, "params": zeroed}, x)
    np.testing.assert_allclose(logits(model, variables, unknown), expected, atol=1e-6)


def test_order_matters_to_dien_alone():
    x = made()
    x["history"] = np.abs(x["history"])
    backwards = {**x, **{name: x[name][:, ::-1] for name in ("history", "history_members")}}
    for name, model in MODELS.items():
        variables = model.init(jax.random.key(0), x)
        first, second = (logits(model, variables, a) for a in (x, backwards))
        assert np.allclose(first, second, atol=1e-6) == (name == "din")


def test_the_recurrent_unit_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    x, attention = jnp.asarray(rng.normal(size=(1, 5, 3)), jnp.float32), jnp.asarray(rng.random((1, 5)), jnp.float32)
    mask = np.array([[True, True, False, True, True]])
    unit = din._Recurrent(3)
    variables = unit.init(jax.random.key(0), x, mask, attention)
    bias = rng.normal(size=9).astype(np.float32)
    params = {**variables["params"], "bias": bias}
    states = np.asarray(unit.apply({"params": params}, x, mask, attention))
    of_input, of_state = np.float64(params["input"]), np.float64(params["state"])
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    h = np.zeros(3)
    for t in range(5):
        gate = lambda k, h, t=t: np.split(x[0, t] @ of_input + bias, 3)[k] + h @ np.split(of_state, 3, axis=1)[k]
        update, reset = sigmoid(gate(0, h)), sigmoid(gate(1, h))
        share = attention[0, t] * update
        proposed = np.tanh(gate(2, reset * h))
        h = (1 - share) * h + share * proposed if mask[0, t] else h
        np.testing.assert_allclose(states[0, t], h, atol=1e-5)


def test_influence_without_embeddings_is_that_of_explicit_gradients(case):
    model, variables, x = case
    y = np.arange(8, dtype=np.int32) % 2
    split = Split(x, y, np.full(8, -1, np.int32), np.arange(8))
    seen, parts = din.without_embeddings(model, variables)
    np.testing.assert_array_equal(logits(seen, parts, x), logits(model, variables, x))
    whole = gradients.logits_of(model, variables)
    output = lambda params, example: curvatures.cross_entropy(whole(params, example), example.y)
    grads = gradients.per_example(output, variables["params"], split, microbatch=None)
    dense = [leaf.reshape(8, -1) for path, leaf in jax.tree.leaves_with_path(grads) if "embedding" not in str(path)]
    assert len(dense) < len(jax.tree.leaves(grads))
    g = np.concatenate(dense, axis=1).astype(np.float64)
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors.gram(seen, parts, split, split), unit @ unit.T, atol=1e-4)
    np.testing.assert_allclose(vectors.norms(seen, parts, split), np.linalg.norm(g, axis=1), rtol=1e-3)


def test_training_learns_from_histories_and_drops_units(case):
    model, _, _ = case
    x = made(200, seed=1)
    y = (x["history_members"][:, :, 0].sum(1) > x["history_members"][:, :, 1].sum(1)).astype(np.int32)
    split = Split(x, y, np.full(200, -1, np.int32), np.arange(200))
    trainer = make_trainer(model, objectives.cross_entropy(), optax.adam(0.02), sampling.shuffled(), batch_size=50)
    state = trainer.init(jax.random.key(0), jax.tree.map(lambda a: a[:1], x))
    state, info = jax.jit(lambda s: trainer.run(s, split, jnp.ones(200), 150))(state)
    assert np.isfinite(info.loss).all()
    right = logits(model, state.variables, x).argmax(1) == y
    assert right.mean() > max(y.mean(), 1 - y.mean()) + 0.05
    assert {"dropout"} <= set(state.variables["rngs"])
