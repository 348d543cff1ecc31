"""Datamodels come back bit by bit, and SciPy reads the weights without this package."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

from d3mjax.runtime.linear import load_linear, save_linear
from d3mjax.types import Linear

WEIGHT = np.where(np.arange(24) % 5 == 1, np.arange(24, dtype=np.float32) / 7, np.float32(0)).reshape(2, 3, 4)


@pytest.mark.parametrize("weight", [WEIGHT, WEIGHT[0], 0 * WEIGHT[1]])
def test_datamodels_come_back(tmp_path, weight):
    bias = np.arange(weight.shape[-2], dtype=np.float32) * np.ones(weight.shape[:-1], np.float32)
    save_linear(tmp_path / "a.npz", Linear(jnp.asarray(weight), jnp.asarray(bias)))
    found = load_linear(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.weight, weight)
    np.testing.assert_array_equal(found.bias, bias)
    assert (found.weight.dtype, found.bias.dtype) == (weight.dtype, bias.dtype)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]


def test_only_what_is_not_zero_is_stored(tmp_path):
    weight = jnp.zeros((500, 600)).at[3, 7].set(2.0)
    save_linear(tmp_path / "a.npz", Linear(weight, jnp.zeros(500)))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    rows = scipy.sparse.load_npz(tmp_path / "a.npz")
    assert (rows.shape, rows.nnz, rows[3, 7]) == ((500, 600), 1, 2.0)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "a.npz"
    save_linear(path, Linear(jnp.asarray(WEIGHT), jnp.ones((2, 3))))
    whole = path.read_bytes()
    for content in (whole[:100], b"", whole[:200] + b"x" + whole[201:]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.npz holds no datamodels"):
            load_linear(path)
    np.savez(path, other=np.ones(2))
    with pytest.raises(ValueError, match=r"a\.npz holds no datamodels"):
        load_linear(path)
