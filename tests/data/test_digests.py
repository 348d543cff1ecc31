"""Digests do not change: stored data and results are found by them."""

import jax
import numpy as np

from d3mjax.data.digests import digest


def test_digests_are_those_of_stored_results():
    assert digest({"x": np.arange(3)}) == "f19f8fe6c7139acb8c9606a5e68a6ce193bb583ecc4e2f6f9cd21bb25fe0559d"
    arrays = {"b": np.arange(6, dtype=np.int32).reshape(2, 3), "a": np.ones(3)[::2], "s": np.array(["xx", "y"])}
    expected = "658a1ddc088259203bb3e39e7befe7e316c48b08c195d02bb3cf0d86ecda1bd9"
    assert digest(arrays, header="{name} {dtype} {shape}") == expected


def test_every_part_counts():
    trees = [
        {"x": np.arange(4)},
        {"y": np.arange(4)},
        {"x": np.arange(4).reshape(2, 2)},
        {"x": np.arange(4, dtype=np.int32)},
        {"x": np.array([0, 1, 2, 4])},
        {"x": jax.random.key(0)},
        {"x": jax.random.key(1)},
    ]
    assert len({digest(tree) for tree in trees}) == len(trees)
