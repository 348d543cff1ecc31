"""Tangents of a dense layer against gradients by JAX, and K-FAC against its dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.attribution import ekfac, influence, tangents
from d3mjax.attribution.dense_gradients import Factors
from d3mjax.networks import decoders
from d3mjax.training import preferences
from d3mjax.types import Split

CONFIG = decoders.LlamaConfig(
    vocabulary=11, width=8, blocks=2, heads=4, key_heads=2, inner=10, positions=12, base=100.0
)
PATHS = [("block_1", name) for name in ("down", "gate", "output")]
TOKENS = {
    "ids": np.random.default_rng(0).integers(11, size=(3, 6)).astype(np.int32),
    "mask": np.arange(6)[None] < np.array([[6], [4], [3]]),
}
TOKENS["response"] = TOKENS["mask"] & (np.arange(6)[None] >= np.array([[1], [2], [1]]))


@pytest.fixture(scope="module")
def network():
    model = decoders.log_probs(CONFIG, chunk=4)
    return model, model.init(jax.random.key(0), TOKENS)


def part_of(params):
    return {"block_1": {name: {"kernel": params["block_1"][name]["kernel"]} for _, name in PATHS}}


def matrices(factors):
    return jax.tree.map(lambda a: a.matrix(), factors, is_leaf=lambda a: isinstance(a, Factors))


def drawn_like(part, scale=1.0):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), jnp.float32), part)


def assert_close(*trees, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerances), *trees)


def test_factors_are_the_gradients(network):
    model, variables = network
    values, factors = tangents.of_layers(model, variables, PATHS, TOKENS)
    zeros = jax.tree.map(jnp.zeros_like, part_of(variables["params"]))
    by_change = lambda change: model.apply(tangents.with_change(variables, change), TOKENS)[0]
    np.testing.assert_allclose(values, by_change(zeros), rtol=1e-6)
    assert_close(matrices(factors), jax.jacrev(by_change)(zeros), atol=1e-6)


def test_positions_before_responses_are_enough(network):
    """Above the attention of the last block only the positions that a counted token follows have deltas."""
    model, variables = network
    values, factors = tangents.of_layers(model, variables, PATHS, TOKENS)
    before = np.roll(TOKENS["response"], -1, axis=1)
    rows = tangents.as_rows(values, factors, before, 5)
    assert rows["factors"]["block_1"]["down"]["kernel"].inputs.shape == (3, 5, 10)
    compact = jax.tree.map(jnp.asarray, rows["factors"])
    assert_close(matrices(compact), matrices(factors), atol=1e-6)
    with pytest.raises(ValueError, match="found 5 in a row, expected at most 4"):
        tangents.as_rows(values, factors, before, 4)


def test_tangent_touches_the_network(network):
    """The error of first order falls by 4 where the change halves; at 0 there is none."""
    model, variables = network
    values, factors = tangents.of_layers(model, variables, PATHS, TOKENS)
    rows = tangents.as_rows(values, factors, np.ones((3, 6), bool), 6)
    linear = tangents.tangent()
    start = linear.init(jax.random.key(0), rows)
    np.testing.assert_allclose(linear.apply(start, rows)[0], values)

    def error(scale):
        change = drawn_like(part_of(variables["params"]), scale)
        exact = model.apply(tangents.with_change(variables, change), TOKENS)[0]
        return exact - linear.apply({"params": change}, rows)[0]

    np.testing.assert_allclose(error(0.02), 4 * error(0.01), rtol=0.2, atol=1e-5)
    assert float(jnp.abs(error(0.02)).max()) > 1e-5


def test_a_layer_that_is_not_there(network):
    model, variables = network
    with pytest.raises(ValueError, match="found 0 calls of a layer at block_1/dawn, expected one"):
        tangents.of_layers(model, variables, [*PATHS, ("block_1", "dawn")], TOKENS)


def test_kronecker_is_the_inverse_of_its_matrix():
    rng = np.random.default_rng(2)
    inputs, deltas = rng.normal(size=(2, 7, 4)), rng.normal(size=(2, 7, 3))
    deltas[0, 5:] = 0  # padding
    factors = {"layer": {"kernel": Factors(jnp.asarray(inputs), jnp.asarray(deltas))}}
    a, d = (part.reshape(14, -1)[[*range(5), *range(7, 14)]] for part in (inputs, deltas))
    matrix = np.kron(a.T @ a / 12, d.T @ d / 12)
    model = preferences.bradley_terry(tangents.tangent())
    empty = Factors(jnp.zeros((5, 1, 4)), jnp.zeros((5, 1, 3)))
    side = {"values": np.zeros(5), "factors": {"layer": {"kernel": empty}}}
    rows = {"first": side, "second": side}
    variables = model.init(jax.random.key(0), rows)
    examples = Split(rows, np.zeros(5, int), np.zeros(5, int), np.arange(5))
    problem = influence.problem_of(model, variables, examples, options=influence.Options(damping=0.1, microbatch=5))
    vector = rng.normal(size=12).astype(np.float32)
    solved = ekfac.by_fisher(lambda _: tangents.kronecker(factors))(problem)(jnp.asarray(vector)).value
    np.testing.assert_allclose(solved, np.linalg.solve(5 * matrix + 0.5 * np.eye(12), vector), rtol=1e-4, atol=1e-5)
