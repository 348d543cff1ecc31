"""Gradients against loops and finite sums; output functions against their formulas by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from flax import linen

from d3mjax.attribution import gradients, outputs
from d3mjax.networks import adapt, dense
from d3mjax.types import Model, Split

close = partial(planted.close, terms=25)  # widths of layers and rows of a batch

X = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
SPLIT = jax.tree.map(jnp.asarray, Split(X, np.arange(7) % 3, np.arange(7) % 2, np.arange(7)))
MODEL = dense.mlp((5,), 3)
VARIABLES = MODEL.init(jax.random.key(0), X)
PARAMS = VARIABLES["params"]
OUTPUT = gradients.margin_output(MODEL, VARIABLES)
MICROBATCHES = pytest.mark.parametrize("microbatch", [None, 1, 3])


def _loop():
    rows = [jax.grad(OUTPUT)(PARAMS, jax.tree.map(lambda a, i=i: a[i], SPLIT)) for i in range(7)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


@MICROBATCHES
def test_per_example_equals_a_loop(microbatch):
    close(gradients.per_example(OUTPUT, PARAMS, SPLIT, microbatch=microbatch), _loop())


@MICROBATCHES
def test_weighted_gradients_and_jvp_are_products_with_the_per_example_ones(microbatch):
    mix = jnp.asarray(np.random.default_rng(1).normal(size=(7, 2)), jnp.float32)
    loop = _loop()
    want = jax.tree.map(lambda g: jnp.einsum("n...,nk->k...", g, mix), loop)
    close(gradients.weighted_gradients(OUTPUT, PARAMS, mix, SPLIT, microbatch=microbatch), want)
    values, derivatives = gradients.jvp(OUTPUT, PARAMS, want, SPLIT, microbatch=microbatch)
    close(values, outputs.soft_margins(MODEL, VARIABLES, SPLIT))
    flat = lambda tree: jnp.concatenate([a.reshape(a.shape[0], -1) for a in jax.tree.leaves(tree)], axis=1)
    close(derivatives, flat(loop) @ flat(want).T)


def test_a_subset_is_the_same_gradient_with_the_rest_held():
    output, chosen = gradients.subset(OUTPUT, PARAMS, lambda path: "Dense_1" in path)
    assert jax.tree.structure(chosen) == jax.tree.structure(
        {"Dense_0": {"bias": None, "kernel": None}, "Dense_1": PARAMS["Dense_1"]}
    )
    got = gradients.per_example(output, chosen, SPLIT)
    close(got["Dense_1"], _loop()["Dense_1"])
    with pytest.raises(ValueError, match="Dense_0"):
        gradients.subset(OUTPUT, PARAMS, lambda path: False)


def test_any_pytree_and_any_function():
    params = {"a": (jnp.arange(3.0), None), "b": [jnp.ones((2, 3))]}
    rows = {"x": jnp.asarray(np.random.default_rng(2).normal(size=(4, 3)), jnp.float32)}
    output = lambda p, e: (p["a"][0] * e["x"]).sum() + p["b"][0].sum() * e["x"][0]
    got = gradients.per_example(output, params, rows, microbatch=3)
    close(got["a"][0], rows["x"])
    close(got["b"][0], jnp.broadcast_to(rows["x"][:, :1, None], (4, 2, 3)))


def test_batch_statistics_are_frozen():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            return linen.Dense(3)(linen.BatchNorm(use_running_average=not train)(x))

    model = adapt.from_linen(Net())
    variables = model.init(jax.random.key(0), X)
    shifted = {**variables, "batch_stats": jax.tree.map(lambda a: a + 0.5, variables["batch_stats"])}
    for v in (variables, shifted):
        output = gradients.margin_output(model, v)
        got = gradients.per_example(output, v["params"], SPLIT)
        # One row at a time gives the same: nothing is shared over the batch; and a second look finds them unchanged.
        one = [
            gradients.per_example(output, v["params"], jax.tree.map(lambda a, i=i: a[i : i + 1], SPLIT))
            for i in range(7)
        ]
        close(got, jax.tree.map(lambda *a: jnp.concatenate(a), *one))
        assert got.keys() == v["params"].keys()
    with pytest.raises(AssertionError):
        close(got, gradients.per_example(gradients.margin_output(model, variables), variables["params"], SPLIT))


def _fixed(logits):
    """A model whose logits are its parameters, whatever the input."""
    return Model(lambda key, x: {}, lambda v, x, *, train=False: (v["params"][None], v)), {
        "params": jnp.asarray(logits)
    }


def _example(y):
    return Split(jnp.zeros(1), jnp.asarray(y), jnp.int32(0), jnp.int32(0))


def test_outputs_by_hand():
    model, v = _fixed([0.0, float(np.log(2)), float(np.log(5))])  # probabilities 1/8, 2/8, 5/8
    margin = gradients.margin_output(model, v)(v["params"], _example(1))
    np.testing.assert_allclose(margin, np.log(2 / 6), rtol=1e-6)
    np.testing.assert_allclose(gradients.logistic_factor(margin[None], None), [6 / 8], rtol=1e-6)
    loss = gradients.negative_loss_output(model, v)
    np.testing.assert_allclose(loss(v["params"], _example(1)), np.log(2 / 8), rtol=1e-6)
    gradient = jax.grad(loss)(v["params"], _example(1))
    close(gradient, 6 / 8 * jax.grad(gradients.margin_output(model, v))(v["params"], _example(1)))

    model, v = _fixed([1.5])
    for y, want in ((0, -1.5), (1, 1.5)):
        np.testing.assert_allclose(gradients.binary_margin_output(model, v)(v["params"], _example(y)), want)
    np.testing.assert_allclose(gradients.prediction_output(model, v)(v["params"], _example(1)), 1.5)
    with pytest.raises(ValueError, match="C >= 2"):
        gradients.margin_output(model, v)(v["params"], _example(0))
    residual = gradients.residual_factor(jnp.array([1.5]), _example(jnp.array([2.0])))
    np.testing.assert_allclose(residual, [0.5])

    model, v = _fixed(np.log([[1.0, 3.0], [1.0, 1.0], [4.0, 1.0]]).astype(np.float32))
    tokens = gradients.token_margin_output(model, v)
    np.testing.assert_allclose(tokens(v["params"], _example([1, -1, 1])), (np.log(3) - np.log(4)) / 2, rtol=1e-5)
    gradient = jax.grad(tokens)(v["params"], _example([1, -1, 1]))
    assert np.array_equal(gradient[1], [0, 0])  # a masked token contributes exactly nothing
    assert tokens(v["params"], _example([-1, -1, -1])) == 0


def test_logistic_factor_keeps_small_numbers():
    np.testing.assert_allclose(gradients.logistic_factor(jnp.array([60.0]), None), [np.exp(-60.0)], rtol=1e-4)
