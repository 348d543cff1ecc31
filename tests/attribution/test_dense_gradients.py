"""Factors of gradients of dense kernels against the gradients themselves."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from flax import linen

from d3mjax.attribution import dense_gradients, gradients, projections, trak
from d3mjax.networks import adapt, dense
from d3mjax.types import Split

close = partial(planted.close, terms=25)  # widths of layers and rows of a batch

KEY = jax.random.key(3)


class _Tokens(linen.Module):
    """Dense layers over positions, one of them used twice; an embedding, a norm and a convolution without factors."""

    @linen.compact
    def __call__(self, x):
        h = linen.Embed(9, 4)(x)
        twice = linen.Dense(4, name="twice")
        h = h + linen.gelu(twice(linen.LayerNorm()(h)))
        h = h + linen.Conv(4, (3,))(jnp.tanh(twice(h)))
        return linen.Dense(3, use_bias=False)(h.mean(-2))


def _split(x):
    n = len(x)
    return Split(jnp.asarray(x), jnp.arange(n) % 3, jnp.arange(n) % 2, jnp.arange(n))


X = np.random.default_rng(0).normal(size=(13, 6)).astype(np.float32)
CASES = {  # model, examples, number of factored kernels
    "MLP": (dense.mlp((7, 5), 3), _split(X), 3),
    "tokens": (adapt.from_linen(_Tokens()), _split(np.random.default_rng(1).integers(9, size=(13, 5))), 2),
    "functions": (
        adapt.from_functions(lambda key, x: jax.random.normal(key, (6, 3)), lambda w, x: x @ w),
        _split(X),
        0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_factors_multiply_out_to_the_gradients(case):
    model, split, num_factored = CASES[case]
    variables = model.init(KEY, split.x[:1])
    output, params = gradients.margin_output(model, variables), variables["params"]
    values, found = jax.jit(lambda p, s: dense_gradients.value_and_factors(output, p, s))(params, split)
    exact = gradients.per_example(output, params, split)
    close(values, jax.vmap(output, (None, 0))(params, split))
    kernels = [leaf for leaf in dense_gradients.leaves(found) if isinstance(leaf, dense_gradients.Factors)]
    assert len(kernels) == num_factored
    whole = [
        leaf.matrix() if isinstance(leaf, dense_gradients.Factors) else leaf for leaf in dense_gradients.leaves(found)
    ]
    for ours, theirs in zip(whole, jax.tree.leaves(exact), strict=True):
        close(ours, theirs)


def test_only_the_parameters_that_are_attributed_are_factored():
    model, split, _ = CASES["MLP"]
    variables = model.init(KEY, split.x[:1])
    output, chosen = gradients.subset(
        gradients.margin_output(model, variables), variables["params"], lambda path: "Dense_1" in path
    )
    _, found = dense_gradients.value_and_factors(output, chosen, split)
    assert [type(leaf) is dense_gradients.Factors for leaf in dense_gradients.leaves(found)] == [False, True]
    assert dense_gradients.leaves(found)[1].inputs.shape == (13, 1, 7)


def test_trak_never_forms_the_gradients_and_scores_the_same():
    model, split, _ = CASES["MLP"]
    checkpoints = jax.vmap(lambda key: model.init(key, split.x[:1]))(jax.random.split(KEY, 2))
    sketch = projections.tensor_sketch(5)

    def explicit(key, params):
        return sketch(key, params)._replace(factored=False)

    run = lambda projection: trak.scores(
        KEY, model, checkpoints, split, split, options=trak.Options(projection, microbatch=4)
    )
    close(run(sketch).tau, run(explicit).tau, terms=2500)  # K of condition p / damping = 50 at most
    wide, narrow = (
        jax.jit(lambda s, p=p: trak.scores(KEY, model, checkpoints, s, s, options=trak.Options(p)).tau)
        .lower(split)
        .as_text()
        for p in (explicit, sketch)
    )
    assert "tensor<13x6x7xf32>" in wide
    assert "tensor<13x6x7xf32>" not in narrow
