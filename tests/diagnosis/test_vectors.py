"""Influence vectors against explicit gradients, and what is exactly true of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax.flatten_util import ravel_pytree

from d3mjax.attribution import curvatures, gradients
from d3mjax.diagnosis import vectors
from d3mjax.networks import adapt, dense, ft_transformer
from d3mjax.types import Split


class TwoPositions(linen.Module):
    """A wide layer at two positions, where inner products cost less than gradients."""

    @linen.compact
    def __call__(self, x):
        hidden = linen.relu(linen.Dense(40)(jnp.stack([x, x**2], axis=1)))
        return linen.Dense(3)(hidden[:, 0] - hidden[:, 1])


COLUMNS = (slice(0, 1), slice(1, 4), slice(4, 9))
MODELS = {
    "linear": dense.linear(3),
    "mlp": dense.mlp((7, 5), 3),
    "positions": adapt.from_linen(TwoPositions()),
    "ft": ft_transformer.ft_transformer(COLUMNS, 3, width=8),
}


# A gradient of about a hundred sums, in float32 and in two orders of summation, has an error of some tens of roundings
# of its norm; so have inner products, relative to the product of both norms, however small they are themselves.
ROUNDING = 64 * float(np.finfo(np.float32).eps)


def assert_products(products, expected, a, b):
    """Inner products of rows of ``a`` and ``b``, up to rounding of the gradients."""
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]
    assert (np.abs(np.asarray(products, np.float64) - expected) <= ROUNDING * norms).all()


def split(n, seed, classes=3):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n).astype(np.int32)
    return Split(rng.normal(size=(n, 9)).astype(np.float32), y, np.zeros(n, np.int32), np.arange(n, dtype=np.int32))


def explicit(model, variables, rows, loss=curvatures.cross_entropy):
    output = lambda p, e: loss(gradients.logits_of(model, variables)(p, e), e.y)
    tree = gradients.per_example(output, variables["params"], jax.tree.map(jnp.asarray, rows))
    return np.asarray(jax.vmap(lambda g: ravel_pytree(g)[0])(tree), np.float64)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("normalise", [True, False])
def test_products_are_those_of_gradients(name, normalise):
    model, train, held = MODELS[name], split(23, 0), split(6, 1)
    variables = model.init(jax.random.key(2), train.x)
    a, b = (explicit(model, variables, rows) for rows in (train, held))
    if normalise:
        a, b = (g / np.linalg.norm(g, axis=1, keepdims=True) for g in (a, b))
    products = vectors.gram(model, variables, train, held, normalise=normalise, microbatch=8)
    assert_products(products, a @ b.T, a, b)
    norms = vectors.norms(model, variables, train, microbatch=5)
    np.testing.assert_allclose(norms, np.linalg.norm(explicit(model, variables, train), axis=1), rtol=ROUNDING)


def test_the_tensor_has_all_channels_whatever_the_microbatch():
    model, train, held = MODELS["mlp"], split(23, 0), split(6, 1)
    variables = model.init(jax.random.key(2), train.x)
    made = [vectors.tensor(model, variables, train, held, microbatch=size) for size in (4, 23, None)]
    assert made[0].shape == (23, len(vectors.CHANNELS), 6)
    assert made[0].dtype == jnp.float16
    half = float(np.finfo(np.float16).eps)  # rounding of float32 may tip the last bit of half precision
    for other in made[1:]:
        np.testing.assert_allclose(np.float32(other), np.float32(made[0]), rtol=half, atol=ROUNDING)
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = [
        -np.asarray(vectors.gram(model, variables, train, held)),
        unit(train.x) @ unit(held.x).T,
        train.y[:, None] == held.y[None],
        np.broadcast_to(vectors.losses(model, variables, train)[:, None], (23, 6)),
    ]
    np.testing.assert_allclose(np.float32(made[0]), np.stack(expected, 1).astype(np.float32), rtol=half, atol=ROUNDING)


def test_losses_of_numbers():
    model, train, held = dense.mlp((5,), 1), split(11, 0), split(4, 1)
    train, held = (s._replace(y=s.x[:, 0] * 2 + 1) for s in (train, held))
    variables = model.init(jax.random.key(3), train.x)
    a, b = (explicit(model, variables, rows, curvatures.squared_error) for rows in (train, held))
    products = vectors.gram(model, variables, train, held, loss=curvatures.squared_error, normalise=False)
    assert_products(products, a @ b.T, a, b)
    same = vectors.agreement(train.y, held.y)
    np.testing.assert_allclose(same, 1 / (1 + np.abs(train.y[:, None] - held.y[None])), rtol=ROUNDING)


def test_a_row_and_its_copy():
    model, train = MODELS["mlp"], split(9, 0)
    variables = model.init(jax.random.key(4), train.x)
    found = vectors.tensor(model, variables, train, train)
    np.testing.assert_allclose(np.diagonal(np.float32(found[:, 0])), -1, atol=1e-3)
    np.testing.assert_allclose(np.diagonal(np.float32(found[:, 1])), 1, atol=1e-3)


def test_of_two_classes_the_cosine_knows_the_label_and_not_how_well_it_fits():
    """Relabelling a row turns the sign of all its entries, exactly, and the sign is label agreement."""
    model, train, held = dense.mlp((7, 5), 2), split(40, 0, 2), split(15, 1, 2)
    variables = model.init(jax.random.key(5), train.x)
    found = vectors.gram(model, variables, train, held)
    flipped = vectors.gram(model, variables, train._replace(y=1 - train.y), held)
    np.testing.assert_allclose(flipped, -found, atol=ROUNDING)
    # The sign of the tangent kernel is one of the network, and positive for a linear one with non-negative features.
    linear = dense.linear(2)
    positive = [s._replace(x=np.abs(s.x)) for s in (train, held)]
    products = vectors.gram(linear, linear.init(jax.random.key(6), train.x), *positive)
    same = np.asarray(vectors.agreement(train.y, held.y)) > 0
    assert (np.asarray(products > 0) == same).all()


def test_a_linear_model_adds_nothing_to_features_and_labels():
    """Its influence is the cosine of (x, 1), with the sign of label agreement."""
    model, train, held = dense.linear(2), split(30, 0, 2), split(8, 1, 2)
    variables = model.init(jax.random.key(7), train.x)
    one = lambda x: np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)
    sign = 2 * np.asarray(vectors.agreement(train.y, held.y)) - 1
    expected = np.asarray(vectors.cosine(one(train.x), one(held.x))) * sign
    np.testing.assert_allclose(vectors.gram(model, variables, train, held), expected, atol=ROUNDING)


def test_an_attribution_is_transposed_with_the_sign_of_demix():
    tau = np.random.default_rng(8).normal(size=(4, 9)).astype(np.float32)
    np.testing.assert_allclose(vectors.from_attribution(tau), -tau.T / np.abs(tau).max(), rtol=ROUNDING)


def test_what_half_precision_cannot_hold_is_cut_off():
    model, train = dense.mlp((5,), 1), split(11, 0)
    train = train._replace(y=1e4 * train.x[:, 0])
    variables = model.init(jax.random.key(9), train.x)
    found = vectors.tensor(model, variables, train, train, loss=curvatures.squared_error, normalise=False)
    assert np.isfinite(found).all()
    assert found[:, 3].max() == np.finfo(np.float16).max
