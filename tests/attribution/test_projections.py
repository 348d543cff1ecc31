"""Projections: adjoint pairs, exact integers, kept inner products, and randomness that derives from identity alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from d3mjax.attribution import dense_gradients
from d3mjax.attribution.projections import (
    default_size,
    gaussian,
    identity,
    rademacher,
    sjlt,
    tensor_sketch,
)
from d3mjax.linalg.products import integer_product

close = partial(planted.close, terms=25)  # 39 parameters

KEY = jax.random.key(0)
PARAMS = {"a": jnp.zeros((5, 7)), "b": {"c": jnp.zeros(3), "d": jnp.zeros(())}}  # d = 39
MAKERS = [
    rademacher(6),
    rademacher(6, block=4),
    gaussian(6, block=8),
    sjlt(6),
    sjlt(6, nonzeros=3),
    sjlt(50),
    rademacher(6, block=4, digits=3),
    tensor_sketch(6),
    identity(),
]
NAMES = ["rademacher", "rademacher blocks", "gaussian", "sjlt", "sjlt 3", "sjlt wide", "rademacher digits"]
NAMES += ["tensor sketch", "identity"]
DENSE_AND_SPARSE = pytest.mark.parametrize("make", MAKERS[:-1], ids=NAMES[:-1])


def _grads(seed, b=4, params=PARAMS):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=(b, *p.shape))), params)


def _matrix(make, key=KEY, params=PARAMS):
    """P' as a matrix, from the images of the unit vectors."""
    d = sum(p.size for p in jax.tree.leaves(params))
    return jax.jit(lambda key: make(key, params).project(identity()(key, params).unproject(jnp.eye(d))))(key)


@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_unproject_is_the_adjoint(make):
    with jax.enable_x64(True):
        g = _grads(0)
        phi = jax.jit(lambda g: make(KEY, PARAMS).project(g))(g)
        u = jnp.asarray(np.random.default_rng(1).normal(size=(3, phi.shape[1])))
        left, back = phi @ u.T, jax.jit(lambda u: make(KEY, PARAMS).unproject(u))(u)
        assert jax.tree.map(lambda a, p: a.shape == (3, *p.shape), back, PARAMS)
        right = sum(
            a.reshape(4, -1) @ b.reshape(3, -1).T for a, b in zip(*map(jax.tree.leaves, (g, back)), strict=True)
        )
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-6)  # entries of sjlt are float32


@pytest.mark.parametrize("make", MAKERS, ids=NAMES)
def test_linear_and_independent_of_the_batch(make):
    projection, g = jax.jit(lambda g: make(KEY, PARAMS).project(g)), _grads(2)
    whole = projection(g)
    row = projection(jax.tree.map(lambda a: a[1:2], g))
    close(whole[1:2], row)
    mixed = projection(jax.tree.map(lambda a: 2 * a[:1] - 3 * a[1:2], g))
    close(mixed[0], 2 * whole[0] - 3 * row[0])


@DENSE_AND_SPARSE
def test_the_mean_of_p_pt_is_the_identity(make):
    num_keys = 400
    outer = jax.jit(jax.vmap(lambda k: (lambda m: m @ m.T)(_matrix(make, k))))(jax.random.split(KEY, num_keys))
    mean, spread = np.asarray(outer.mean(0)), np.asarray(outer.std(0))
    assert np.all(np.abs(mean - np.eye(39)) < 5 * spread / num_keys**0.5 + 1e-5)
    assert spread.max() > 0.1  # and it is no constant


@pytest.mark.parametrize("make", [rademacher(256), gaussian(256), sjlt(256), sjlt(256, nonzeros=2), tensor_sketch(256)])
def test_inner_products_are_kept_as_johnson_and_lindenstrauss_say(make):
    params = {"w": jnp.zeros((40, 50)), "b": jnp.zeros(50)}
    g = _grads(3, 30, params)
    flat = np.asarray(identity()(KEY, params).project(g))
    phi = np.asarray(jax.jit(lambda g: make(KEY, params).project(g))(g))
    lengths = np.linalg.norm(flat, axis=1)
    error = (phi @ phi.T - flat @ flat.T) / np.outer(lengths, lengths)
    off = ~np.eye(30, dtype=bool)
    assert np.abs(np.diag(error)).max() < 5 * (2 / 256) ** 0.5
    assert np.abs(error[off]).max() < 5 * (1 / 256) ** 0.5
    assert 0.7 < error[off].std() * 256**0.5 < 1.3


@pytest.mark.parametrize("block", [4, 4096])
def test_rademacher_of_ones_has_the_parity_of_d(block):
    ones = jax.tree.map(lambda p: jnp.ones((1, *p.shape)), PARAMS)
    sums = jax.jit(lambda g: rademacher(6, block=block)(KEY, PARAMS).project(g))(ones)
    whole = np.asarray(sums) * 6**0.5
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-4)
    assert np.all(np.round(whole) % 2 == 1)  # 39 signs


def test_sjlt_is_balanced_and_every_coordinate_has_one_bucket():
    matrix = np.asarray(_matrix(sjlt(5), params={"w": jnp.zeros((6, 10))}))
    assert np.array_equal(np.abs(matrix).sum(1), np.ones(60))
    assert np.array_equal(np.abs(matrix).sum(0), np.full(5, 12))  # 60 coordinates in 5 buckets
    wide = np.asarray(_matrix(sjlt(50), params={"w": jnp.zeros(20)}))
    assert np.abs(wide).sum(0).max() == 1  # fewer coordinates than buckets: none collide


@pytest.mark.parametrize("nonzeros", [1, 3])
def test_sjlt_keeps_structured_inner_products_as_independent_buckets_would(nonzeros):
    """Outer products, neighbours related: the variance of signs and pairwise collisions, within its spread."""
    params, num_keys, p = {"w": jnp.zeros((12, 10))}, 4000, 16
    rng = np.random.default_rng(7)
    g, h = (np.outer(1 + rng.random(12), 1 + rng.random(10)).ravel() for _ in range(2))
    both = {"w": jnp.asarray(np.stack([g, h])).reshape(2, 12, 10)}
    phi = jax.jit(jax.vmap(lambda k: sjlt(p, nonzeros=nonzeros)(k, params).project(both)))
    inner = (lambda a: (a[:, 0] * a[:, 1]).sum(-1))(np.asarray(phi(jax.random.split(KEY, num_keys)), np.float64))
    bound = ((g @ g) * (h @ h) + (g @ h) ** 2) / p
    assert abs(inner.mean() - g @ h) < 5 * inner.std() / num_keys**0.5
    assert inner.var() < 1.15 * bound  # four standard errors of a variance are some .1
    if nonzeros == 1:
        apart = np.not_equal.outer(np.arange(120) // p, np.arange(120) // p)
        exact = np.triu(apart * (np.outer(g, h) + np.outer(h, g)) ** 2).sum() / p
        assert abs(inner.var() / exact - 1) < 0.15


@pytest.mark.parametrize("make", [*map(tensor_sketch, (5, 8, 64)), *(sjlt(p, factored=True) for p in (5, 14, 28, 84))])
def test_projections_of_factors_are_those_of_the_gradients(make):
    params = {"w": jnp.zeros((12, 7)), "b": jnp.zeros(7)}
    rng = np.random.default_rng(11)
    pair = dense_gradients.Factors(jnp.asarray(rng.normal(size=(4, 3, 12))), jnp.asarray(rng.normal(size=(4, 3, 7))))
    g = {"w": pair.matrix(), "b": pair.deltas.sum(1)}
    projection = make(KEY, params)
    assert projection.factored
    close(projection.project({**g, "w": pair}), projection.project(g))


def test_tensor_sketch_of_outer_products_spreads_like_1_over_p():
    params, num_keys, p = {"w": jnp.zeros((12, 10))}, 4000, 16
    rng = np.random.default_rng(7)
    (a, b), (c, d) = ((1 + rng.random((2, 12))), (1 + rng.random((2, 10))))
    both = {
        "w": dense_gradients.Factors(jnp.asarray(np.stack([a, b]))[:, None], jnp.asarray(np.stack([c, d]))[:, None])
    }
    phi = np.asarray(jax.vmap(lambda k: tensor_sketch(p)(k, params).project(both))(jax.random.split(KEY, num_keys)))
    inner = (phi[:, 0] * phi[:, 1]).sum(-1)
    exact = (a @ b) * (c @ d)
    assert abs(inner.mean() - exact) < 5 * inner.std() / num_keys**0.5
    assert inner.var() < 2 * ((a @ a) * (b @ b) * (c @ c) * (d @ d) + exact**2) / p


@pytest.mark.parametrize(("digits", "error"), [(1, 127), (2, 127 * 256), (3, 127 * 256**2)])
def test_digits_round_each_entry_to_a_fraction_of_the_largest(digits, error):
    rng = np.random.default_rng(8)
    rows = (rng.normal(size=(5, 300)) * 10.0 ** rng.integers(-20, 20, size=(5, 1))).astype(np.float32)
    rows[3] = 0
    product = jax.jit(lambda a: integer_product(a, jnp.eye(300, dtype=jnp.int8), digits))
    largest = np.abs(rows).max(1, keepdims=True)
    assert np.all(np.abs(product(rows) - rows) <= largest * (0.5 / error + 2e-7))
    rows[0, 3], rows[1, 4] = np.nan, np.inf
    found = np.asarray(product(rows))
    assert np.isnan(found[:2]).any(1).all()
    assert np.isfinite(found[2:]).all()


def test_three_digits_are_as_good_as_float32():
    g = _grads(9, 8, {"w": jnp.zeros((40, 50))})
    project = lambda digits: np.asarray(rademacher(64, block=512, digits=digits)(KEY, g_params).project(g))
    g_params = {"w": jnp.zeros((40, 50))}
    exact = project(None)
    for digits, error in ((1, 3e-2), (2, 2e-4), (3, 2e-6)):
        assert np.abs(project(digits) - exact).max() < error * np.linalg.norm(exact, axis=1).max()


def test_identity_is_the_flat_gradient():
    np.testing.assert_array_equal(_matrix(identity()), np.eye(39))


@DENSE_AND_SPARSE
def test_a_leaf_keeps_its_rows_whatever_else_is_projected(make):
    g = _grads(4)
    zeroed = {"a": g["a"], "b": jax.tree.map(jnp.zeros_like, g["b"])}
    both = jax.jit(lambda g: make(KEY, PARAMS).project(g))(zeroed)
    alone = jax.jit(lambda g: make(KEY, {"a": PARAMS["a"], "b": None}).project(g))({"a": g["a"], "b": None})
    close(both, alone)


@DENSE_AND_SPARSE
def test_keys_leaves_and_blocks_differ(make):
    params = {"a": jnp.zeros(8), "b": jnp.zeros(8)}
    one, other = (np.asarray(_matrix(make, jax.random.key(k), params)) for k in (0, 1))
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[:8], one[8:])  # leaves of one shape
    assert len(np.unique(one, axis=0)) > 8 or one.shape[1] == 6  # rows of different blocks


def test_low_precision_gradients_are_projected_in_float32():
    g = jax.tree.map(lambda a: a.astype(jnp.bfloat16), _grads(5))
    for make in MAKERS:
        assert jax.eval_shape(lambda g, make=make: make(KEY, PARAMS).project(g), g).dtype == jnp.float32


def test_sharded_rows_give_the_same():
    g = _grads(6, 8)
    mesh = jax.make_mesh((8,), ("b",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(g, jax.NamedSharding(mesh, jax.P("b")))
    for make in (MAKERS[1], MAKERS[3]):
        project = jax.jit(lambda g, make=make: make(KEY, PARAMS).project(g))
        close(project(spread), project(g))


def test_bad_sizes():
    for bad in (lambda: rademacher(0), lambda: sjlt(3, nonzeros=0), lambda: gaussian(3, block=0)):
        with pytest.raises(ValueError, match="at least 1"):
            bad()
    with pytest.raises(ValueError, match="1 to 3"):
        rademacher(3, digits=4)
    assert [default_size(n) for n in (10, 4000, 10**7)] == [32, 128, 4096]
