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
PATH = ("block_1", "down")
TOKENS = {
    "ids": np.random.default_rng(0).integers(11, size=(3, 6)).astype(np.int32),
    "mask": np.arange(6)[None] < np.array([[6], [4], [3]]),
}
TOKENS["response"] = TOKENS["mask"] & (np.arange(6)[None] >= np.array([[1], [2], [1]]))


@pytest.fixture(scope="module")
def network():
    model = decoders.log_probs(CONFIG, chunk=4)
    return model, model.init(jax.random.key(0), TOKENS)


def test_factors_are_the_gradients(network):
    model, variables = network
    values, factors = tangents.of_layer(model, variables, PATH, TOKENS)

    def by_kernel(kernel):
        params = variables["params"]
        block = {**params["block_1"], "down": {"kernel": kernel}}
        return model.apply({"params": {**params, "block_1": block}}, TOKENS)[0]

    kernel = variables["params"]["block_1"]["down"]["kernel"]
    np.testing.assert_allclose(values, by_kernel(kernel), rtol=1e-6)
    np.testing.assert_allclose(factors.matrix(), jax.jacrev(by_kernel)(kernel), atol=1e-6)


def test_positions_before_responses_are_enough(network):
    """In the last block only the positions that a counted token follows have deltas."""
    model, variables = network
    values, factors = tangents.of_layer(model, variables, PATH, TOKENS)
    before = np.roll(TOKENS["response"], -1, axis=1)
    rows = tangents.as_rows(values, factors, before, 5)
    assert rows["inputs"].shape == (3, 5, 10)
    compact = Factors(jnp.asarray(rows["inputs"]), jnp.asarray(rows["deltas"]))
    np.testing.assert_allclose(compact.matrix(), factors.matrix(), atol=1e-6)
    with pytest.raises(ValueError, match="found 5 in a row, expected at most 4"):
        tangents.as_rows(values, factors, before, 4)


def test_tangent_touches_the_network(network):
    """The error of first order falls by 4 where the change halves; at 0 there is none."""
    model, variables = network
    values, factors = tangents.of_layer(model, variables, PATH, TOKENS)
    rows = tangents.as_rows(values, factors, np.ones((3, 6), bool), 6)
    linear = tangents.tangent(10, 8)
    start = linear.init(jax.random.key(0), rows)
    np.testing.assert_allclose(linear.apply(start, rows)[0], values)
    change = jnp.asarray(np.random.default_rng(1).normal(size=(10, 8)), jnp.float32)

    def error(scale):
        exact = model.apply(tangents.with_change(variables, PATH, scale * change), TOKENS)[0]
        return exact - linear.apply({"params": {"kernel": scale * change}}, rows)[0]

    np.testing.assert_allclose(error(0.1), 4 * error(0.05), rtol=0.2, atol=1e-5)
    assert float(jnp.abs(error(0.1)).max()) > 1e-5


def test_a_layer_that_is_not_there(network):
    model, variables = network
    with pytest.raises(ValueError, match="found 0 calls of a layer at block_1/dawn, expected one"):
        tangents.of_layer(model, variables, ("block_1", "dawn"), TOKENS)


def test_kronecker_is_the_inverse_of_its_matrix():
    rng = np.random.default_rng(2)
    inputs, deltas = rng.normal(size=(2, 7, 4)), rng.normal(size=(2, 7, 3))
    deltas[0, 5:] = 0  # padding
    factors = Factors(jnp.asarray(inputs), jnp.asarray(deltas))
    a, d = (part.reshape(14, -1)[[*range(5), *range(7, 14)]] for part in (inputs, deltas))
    matrix = np.kron(a.T @ a / 12, d.T @ d / 12)
    model = preferences.bradley_terry(tangents.tangent(4, 3))
    side = {"values": np.zeros(5), "inputs": np.zeros((5, 1, 4)), "deltas": np.zeros((5, 1, 3))}
    rows = {"first": side, "second": side}
    variables = model.init(jax.random.key(0), rows)
    examples = Split(rows, np.zeros(5, int), np.zeros(5, int), np.arange(5))
    problem = influence.problem_of(model, variables, examples, options=influence.Options(damping=0.1, microbatch=5))
    vector = rng.normal(size=12).astype(np.float32)
    solved = ekfac.by_fisher(lambda _: tangents.kronecker(factors))(problem)(jnp.asarray(vector)).value
    np.testing.assert_allclose(solved, np.linalg.solve(5 * matrix + 0.5 * np.eye(12), vector), rtol=1e-4, atol=1e-5)
