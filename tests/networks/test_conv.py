"""Both convolutions against each other and Flax, the networks' sizes, and batch statistics under masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest
from flax import linen

from d3mjax.networks import adapt, conv
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer

BOTH = [conv.convolve_lax, conv.convolve_shifted]
CASES = [  # kernel size, stride, padding
    (3, 1, ((1, 1), (1, 1))),
    (3, 1, ((1, 0), (1, 1))),
    (3, 1, ((0, 0), (0, 0))),
    (5, 2, ((2, 2), (2, 2))),
]


def _apply(module, params, x):
    return jnp.asarray(module.apply({"params": params}, x))


@pytest.mark.parametrize(("size", "stride", "padding"), CASES)
def test_both_convolutions_and_flax_agree_with_all_gradients(size, stride, padding):
    x, kernel = planted.normal(0, 3, 7, 6, 5), planted.normal(1, size, size, 3, 4)
    flax = linen.Conv(4, (size, size), (stride, stride), padding, use_bias=False)
    by_flax = lambda x, k: jnp.transpose(_apply(flax, {"kernel": k}, x.transpose(3, 1, 2, 0)), (3, 1, 2, 0))
    calls = [lambda x, k, c=c: c(x, k, stride=stride, padding=padding) for c in BOTH]
    expected, pullback = jax.vjp(by_flax, x, kernel)
    cotangent = planted.normal(2, *expected.shape)
    for call in calls:
        got, pull = jax.vjp(call, x, kernel)
        planted.close(got, expected, terms=size**2 * 3)
        planted.close(pull(cotangent), pullback(cotangent), terms=expected.size)


@pytest.mark.parametrize("convolve", BOTH)
def test_convolutions_vectorise_over_models(convolve):
    x, kernels = planted.normal(3, 2, 4, 5, 3), planted.normal(4, 3, 3, 3, 2, 4)
    together = jax.vmap(lambda k: convolve(x, k))(kernels)
    planted.close(together, jnp.stack([convolve(x, k) for k in kernels]), terms=3**2 * 2)


def _count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_cnn_by_flax_layers():
    x = np.asarray(planted.normal(6, 5, 14 * 14))
    model = conv.cnn((16, 32), 2, image=(14, 14, 1))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    params = variables["params"]
    # 9 * 16 + 16, 9 * 16 * 32 + 32, and 3 * 3 * 32 features for 2 classes: pooling makes 7 x 7, then 3 x 3
    assert _count(params) == 160 + 4640 + 578
    h = x.reshape(5, 14, 14, 1)
    for i, width in enumerate((16, 32)):
        h = _apply(linen.Conv(width, (3, 3)), params[f"_Convolution_{i}"], h)
        h = linen.avg_pool(linen.relu(h), (2, 2), (2, 2))
    features = h.transpose(3, 1, 2, 0).reshape(-1, 5).T
    expected = features @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"][None]
    planted.close(model.apply(variables, x)[0], expected, terms=9 + 9 * 16 + 288)  # lengths of sums
    np.testing.assert_array_equal(model.apply(variables, x.reshape(5, 14, 14, 1))[0], model.apply(variables, x)[0])


@pytest.mark.parametrize("convolve", BOTH)
def test_cnn_reads_colour_images_and_ends_in_float32(convolve):
    x = np.asarray(planted.normal(7, 2, 5, 7, 3))
    single, half = (conv.cnn((4,), 3, image=(5, 7, 3), convolve=convolve, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    variables = jax.jit(half.init)(jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, exact = half.apply(variables, x)[0], single.apply(variables, x)[0]
    assert logits.dtype == jnp.float32
    terms = 9 * 3 + 6 * 4
    np.testing.assert_allclose(logits, exact, atol=terms * float(jnp.finfo(jnp.bfloat16).eps) * np.abs(exact).max())
    assert not np.array_equal(logits, exact)
    swapped = x.copy()
    swapped[0, 0, 1], swapped[0, 1, 0] = x[0, 1, 0], x[0, 0, 1]  # rows and columns must not be mixed up
    flat = single.apply(variables, x.reshape(2, -1))[0]
    np.testing.assert_array_equal(flat, exact)
    assert not np.array_equal(single.apply(variables, swapped)[0], exact)


@pytest.mark.parametrize("norm", [conv.batch_norm(), conv.group_norm(16)])
def test_resnet9_has_the_parameters_of_the_paper(norm):
    model = conv.resnet9(10, norm=norm)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 32, 32, 3)))
    kernels = 9 * 3 * 64 + 25 * 64 * 128 + 9 * (2 * 128 * 128 + 128 * 256 + 2 * 256 * 256 + 256 * 128)
    assert kernels + 2 * (64 + 3 * 128 + 3 * 256 + 128) + 10 * 128 == 2_274_880
    assert _count(shapes["params"]) == 2_274_880
    logits = jax.eval_shape(lambda v, x: model.apply(v, x, train=True)[0], shapes, jnp.zeros((4, 32 * 32 * 3)))
    assert logits.shape == (4, 10)


def test_resnet9_is_the_same_by_both_convolutions_and_moves_only_its_statistics():
    x = np.asarray(planted.normal(8, 2, 11, 11, 3))
    one, two = (conv.resnet9(2, norm=conv.batch_norm(), image=(11, 11, 3), convolve=c) for c in BOTH)
    variables = jax.jit(one.init)(jax.random.key(0), x)
    (logits, after), (other, _) = (jax.jit(functools.partial(m.apply, train=True))(variables, x) for m in (one, two))
    planted.close(logits, other, terms=8 * 9 * 256)  # eight convolutions
    jax.tree.map(np.testing.assert_array_equal, after["params"], variables["params"])
    first = variables["params"]["_Convolution_0"]["kernel"]
    hidden = conv.convolve_lax(jnp.asarray(x.transpose(3, 1, 2, 0)), first)
    statistics = after["batch_stats"]["BatchNorm_0"]
    # running values: 0.9 of the start (mean 0, variance 1) and 0.1 of the batch
    planted.close(statistics["mean"], 0.1 * hidden.mean((1, 2, 3)), terms=27 + 242, scale=1)
    planted.close(statistics["var"], 0.9 + 0.1 * hidden.var((1, 2, 3)), terms=27 + 242)


def test_group_norm_is_that_of_each_example():
    x = planted.normal(5, 6, 2, 3, 4)
    module = conv.group_norm(2)(True, jnp.float32)
    got, _ = module.init_with_output(jax.random.key(0), x)
    blocks = np.asarray(x).reshape(2, 3, 2, 3, 4)
    centred = blocks - blocks.mean((1, 2, 3), keepdims=True)
    expected = centred / np.sqrt(blocks.var((1, 2, 3), keepdims=True) + 1e-5)
    planted.close(got, expected.reshape(x.shape), terms=18)  # pixels of a block


class _Normed(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        normed = conv.batch_norm(momentum=0.5)(train, jnp.float32)(x.T[:, None, None])
        return linen.Dense(2)(normed[:, 0, 0].T)


@pytest.mark.parametrize("sampler", [sampling.shuffled(), sampling.resampled()], ids=["shuffled", "resampled"])
def test_batch_statistics_are_of_kept_examples_even_where_fewer_are_kept_than_a_batch_holds(sampler):
    x = np.asarray(planted.normal(9, 12, 3)) + 1
    weights = jnp.asarray(np.arange(12) < 5, jnp.float32)
    x[5:] = np.nan  # not even one dropped example may be seen
    split = planted.split_of(x, np.arange(12) % 2)
    model, key = adapt.from_linen(_Normed()), jax.random.key(3)
    trainer = make_trainer(model, objectives.cross_entropy(), optax.sgd(0.1), sampler, batch_size=8)
    state, _ = trainer.run(trainer.init(key, x[:1]), split, weights, 4)
    index, weight = sampler.draw(jax.random.fold_in(key, 1), sampler.prepare(weights), jnp.arange(4), 8)
    assert np.all(weight > 0), "padding rows would count in the statistics"
    mean, var = np.zeros(3), np.ones(3)
    for rows in np.asarray(index):
        mean, var = 0.5 * mean + 0.5 * x[rows].mean(0), 0.5 * var + 0.5 * x[rows].var(0)
    statistics = state.variables["batch_stats"]["BatchNorm_0"]
    planted.close(statistics["mean"], mean, terms=4 * 8)
    planted.close(statistics["var"], var, terms=4 * 8)
    logits, _ = model.apply(state.variables, x[:2])  # by the running statistics: one row does not change another's
    planted.close(logits[:1], model.apply(state.variables, x[:1])[0], terms=3)


def test_models_side_by_side_train_as_one_by_one():
    x = np.asarray(planted.normal(10, 20, 16))
    split = planted.split_of(x, np.arange(20) % 2)
    model = conv.cnn((3,), 2, image=(4, 4, 1))
    tx = optax.sgd(0.1, momentum=0.9)
    trainer = make_trainer(model, objectives.cross_entropy(), tx, sampling.shuffled(), batch_size=6)
    fit = lambda key: trainer.run(trainer.init(key, x[:1]), split, jnp.ones(20), 5)[1].loss
    keys = jax.random.split(jax.random.key(0), 3)
    one = jax.jit(fit)
    planted.close(jax.jit(jax.vmap(fit))(keys), jnp.stack([one(k) for k in keys]), terms=5 * 6 * 9)


def test_images_too_small_are_refused():
    with pytest.raises(ValueError, match=r"found \(14, 3, 1\), expected at least 4"):
        conv.cnn((16, 32), 2, image=(14, 3, 1))
    with pytest.raises(ValueError, match="expected at least 11"):
        conv.resnet9(2, norm=conv.batch_norm(), image=(10, 12, 3))
