"""Networks over sets: blind to order and to padding, row by row; the published residual switch and sizes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.diagnosis.set_transformer import MeanPool, SetTransformer, sizes

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=(5, 4, 7)).astype(np.float32)
FULL = np.ones((5, 7), bool)
NETWORKS = [
    SetTransformer(width=8, num_inducing=3, num_heads=2, projection=6),
    SetTransformer(width=8, num_inducing=3, num_heads=2, projection=6, as_coded=True),
    SetTransformer(width=8, num_inducing=3, num_heads=4, num_blocks=1, num_seeds=2, projection=6),
    MeanPool(width=8, projection=6),
]


@functools.cache  # one program for each network and shape
def _call(network):
    variables = jax.jit(network.init)(jax.random.key(1), VALUES[:1], FULL[:1])

    @jax.jit
    def call(values, mask):
        logits, projection = network.apply(variables, values, mask)
        return jnp.concatenate([logits, jax.nn.sigmoid(logits), projection], axis=1)

    return call


def _assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("network", NETWORKS)
def test_order_of_the_set_changes_nothing_and_its_elements_do(network):
    call = _call(network)
    found = call(VALUES, FULL)
    assert found.shape == (5, 3 + 3 + 6)
    _assert_same(call(VALUES[:, :, RNG.permutation(7)], FULL), found)
    changed = VALUES.copy()
    changed[2, 1, 4] += 0.5
    differs = np.abs(np.asarray(call(changed, FULL) - found)).max(1)
    np.testing.assert_array_equal(differs > 1e-4, np.arange(5) == 2)


@pytest.mark.parametrize("network", NETWORKS)
def test_each_row_has_its_own_padding_and_what_stands_there_is_never_seen(network):
    # Upstream stacks heads before rows but repeats masks row by row: rows then get the mask of another row.
    call = _call(network)
    mask = np.zeros((5, 7), bool)
    for row, count in enumerate([7, 1, 4, 6, 2]):
        mask[row, RNG.permutation(7)[:count]] = True  # padding anywhere; row 1 has a single element
    found = call(VALUES, mask)
    for filler in (0.0, -2.0, 1e4, np.nan):
        _assert_same(call(np.where(mask[:, None], VALUES, np.float32(filler)), mask), found)
    for row in range(5):  # among rows that all have its mask
        _assert_same(call(VALUES, np.tile(mask[row], (5, 1)))[row], found[row])
    assert np.abs(np.asarray(found - call(VALUES, FULL)))[1:].max(1).min() > 1e-4


@pytest.mark.parametrize("network", NETWORKS)
def test_appended_padding_changes_nothing(network):
    mask = np.broadcast_to(np.arange(7) < 4, (5, 7))
    _assert_same(_call(network)(VALUES, mask), _call(network)(VALUES[:, :, :4], FULL[:, :4]))


@pytest.mark.parametrize("network", [NETWORKS[0], NETWORKS[-1]])
def test_a_set_of_padding_alone_is_finite_and_so_is_its_gradient(network):
    variables = jax.jit(network.init)(jax.random.key(1), VALUES[:1], FULL[:1])
    values = np.full_like(VALUES, np.nan)
    grads = jax.jit(jax.grad(lambda v: sum(a.sum() for a in network.apply(v, values, ~FULL))))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_half_precision_is_converted_inside():
    half = VALUES.astype(np.float16)
    found = _call(NETWORKS[0])(half, FULL)
    assert found.dtype == jnp.float32
    _assert_same(found, _call(NETWORKS[0])(half.astype(np.float32), FULL))


def test_as_coded_drops_the_residual_alone():
    proper, coded = NETWORKS[:2]
    shapes = [jax.eval_shape(n.init, jax.random.key(1), VALUES[:1], FULL[:1]) for n in (proper, coded)]
    assert shapes[0] == shapes[1]
    assert np.abs(np.asarray(_call(proper)(VALUES, FULL) - _call(coded)(VALUES, FULL))).max() > 0.01  # equal parameters


def test_dropout_acts_in_training_alone():
    network = NETWORKS[-1]
    variables = jax.jit(network.init)(jax.random.key(1), VALUES[:1], FULL[:1])
    train = jax.jit(lambda key: network.apply(variables, VALUES, FULL, train=True, rngs={"dropout": key})[0])
    one, again, two = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(np.asarray(one - two)).max() > 1e-3


def test_published_size():
    # Width d = 128. Embedding 4 d + d, norm 2 d, d^2 + d. Five attention blocks of 4 (d^2 + d) + 4 d; 2 * 32 inducing
    # points and one seed. Kinds: 3 (d d/2 + d/2 + d/2 + 1). Projection: d^2 + d + 32 d + 32.
    d = 128
    expected = 5 * d + 2 * d + d**2 + d + 5 * (4 * (d**2 + d) + 4 * d) + 64 * d + d
    expected += 3 * (d * 64 + 64 + 64 + 1) + d**2 + d + 32 * d + 32
    shapes = jax.eval_shape(SetTransformer().init, jax.random.key(0), VALUES[:1], FULL[:1])
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == expected


def test_sizes_make_the_same_network():
    for network in NETWORKS:
        assert type(network)(**sizes(network)) == network


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width: found 9, expected a multiple of num_heads = 2"):
        SetTransformer(width=9, num_heads=2).init(jax.random.key(0), VALUES, FULL)
