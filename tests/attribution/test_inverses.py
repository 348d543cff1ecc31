"""The last layer's curvature against products with every unit vector, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.attribution import curvatures, influence, inverses
from d3mjax.attribution.inverses import by_last_layer, last_layer_curvature
from d3mjax.networks import dense
from d3mjax.types import Split

N, P, C = 40, 3, 4


def make(**options):
    rng = np.random.default_rng(0)
    y = rng.integers(0, C, N)
    train = Split(rng.normal(size=(N, P)), y, y, np.arange(N))
    model = dense.linear(C)
    variables = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape)), model.init(jax.random.key(0), train.x[:1])
    )
    return influence.problem_of(model, variables, train, weights=rng.random(N), options=influence.Options(**options))


@pytest.mark.parametrize("kind", [curvatures.ggn, curvatures.one_vs_rest])
def test_it_is_the_matrix_that_products_make(kind):
    with jax.enable_x64(True):
        problem = make(curvature=kind, damping=0.1)
        explicit = jax.vmap(problem.curvature(problem))(jnp.eye(C * (P + 1)))
        np.testing.assert_allclose(last_layer_curvature(problem), explicit, atol=1e-12)
        vectors = jnp.asarray(np.random.default_rng(1).normal(size=(2, C * (P + 1))))
        found, want = (jax.vmap(inverse(problem))(vectors) for inverse in (by_last_layer(), inverses.by_dense()))
        np.testing.assert_allclose(found.value, want.value, rtol=1e-9)
        assert found.residual.max() < 1e-12


def test_what_is_no_last_layer_is_refused():
    with pytest.raises(ValueError, match=r"curvature: found .*hessian.*, expected curvatures.ggn or"):
        last_layer_curvature(make(curvature=curvatures.hessian))
    problem = make()
    with pytest.raises(ValueError, match=r"found parameters .*'kernel': \(3, 4\).* on x \(40, 2\), expected a kernel"):
        last_layer_curvature(problem._replace(examples=problem.examples._replace(x=problem.examples.x[:, :2])))
    with pytest.raises(ValueError, match="found parameters"):
        last_layer_curvature(problem._replace(params={"a": problem.params, "b": {"scale": jnp.ones(2)}}))
