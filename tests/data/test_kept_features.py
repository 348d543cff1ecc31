"""Outputs of frozen networks: equal to one pass, computed once, found by content, and whole after a kill."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.data import cache
from d3mjax.networks import dense

MODEL = dense.mlp((4,), 3)


class Config(NamedTuple):
    heads: int = 3
    epsilon: float = 1e-12
    activation: Callable = jnp.tanh


X = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    return MODEL.init(jax.random.key(0), X[:1])


def stored(directory):
    return {path.relative_to(directory): path.stat().st_mtime_ns for path in directory.rglob("*.npy")}


def counted(calls):
    def batches(x):
        for rows, batch in cache.in_order(x, size=4):
            calls.append(len(rows))
            yield rows, batch

    return batches


def features(directory, variables, x=X, **options):
    options = {"name": "mlp", "config": Config(), "block": 10, **options}
    return cache.make_features(MODEL, variables, directory, **options)(x)


def test_features_are_those_of_one_pass(tmp_path, variables):
    expected, done = MODEL.apply(variables, jnp.asarray(X))[0], []
    for batches in (cache.in_order, counted([])):
        made = features(tmp_path / str(len(done)), variables, batches=batches, progress=done.append)
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)
    assert done == [10, 10, 3] * 2


def test_stored_features_are_read(tmp_path, variables):
    calls = []
    first = features(tmp_path, variables, batches=counted(calls))
    assert calls == [4, 4, 2] * 2 + [3]
    files = stored(tmp_path)
    assert len(files) == 3
    np.testing.assert_array_equal(features(tmp_path, variables, batches=counted(calls)), first)
    assert len(calls) == 7
    assert stored(tmp_path) == files


def test_missing_and_damaged_blocks_are_computed_again(tmp_path, variables):
    calls = []
    first = features(tmp_path, variables, batches=counted(calls))
    a, b, c = sorted(tmp_path.rglob("*.npy"))
    a.unlink()
    b.write_bytes(b.read_bytes()[:-40])
    before = c.stat().st_mtime_ns
    np.testing.assert_array_equal(features(tmp_path, variables, batches=counted(calls)), first)
    assert sum(calls) == 23 + 20
    assert c.stat().st_mtime_ns == before


def test_other_weights_data_names_and_options_are_other_features(tmp_path, variables):
    features(tmp_path, variables)
    other = jax.tree.map(lambda a: a + 1e-3, variables)
    changes = [{"variables": other}, {"x": X[::-1].copy()}, {"name": "other"}]
    changes += [{"config": config} for config in (Config(heads=6), Config(epsilon=1e-5), Config(activation=jnp.sin))]
    for number, change in enumerate(changes, start=2):
        features(tmp_path, **{"variables": variables, **change})
        assert len(stored(tmp_path)) == 3 * number


def test_parts_of_the_data_share_one_program(tmp_path, variables):
    traced = []

    def apply(variables, x):
        traced.append(x.shape)
        return MODEL.apply(variables, x)

    model = MODEL._replace(apply=apply)
    in_parts = cache.make_features(model, variables, tmp_path, name="mlp", config=(), block=10)
    parts = [in_parts(X[first : first + 10]) for first in range(0, len(X), 10)]
    np.testing.assert_array_equal(np.concatenate(parts), features(tmp_path, variables, config=()))
    assert traced == [(64, 5)]


def test_outputs_that_are_not_finite_are_named_and_not_written(tmp_path, variables):
    bad = X.copy()
    bad[13] = np.nan
    with pytest.raises(FloatingPointError, match="mlp: found an output that is not finite in row 13"):
        features(tmp_path, variables, bad)
    assert [path.name for path in tmp_path.rglob("*.npy")] == ["000000000.npy"]
