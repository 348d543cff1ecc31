"""Blocks change nothing but memory; a divergence stops the sweep and names its model."""

import jax
import numpy as np
import pytest

from d3mjax.runtime.sweep import sweep


def run(ids):
    return {"square": ids**2, "pair": np.stack([ids, -ids], 1)}, np.ones((len(ids), 3))


@pytest.mark.parametrize("block", [1, 3, 5, 7])
def test_any_block_size_gives_the_same_outputs_in_order(block):
    ids = np.array([5, 2, 9, 11, 3])
    done = []
    outputs = sweep(run, ids, block=block, progress=done.append)
    jax.tree.map(np.testing.assert_array_equal, outputs, run(ids)[0])
    assert sum(done) == 5


def test_every_block_has_the_same_shape_so_that_nothing_compiles_twice():
    shapes = set()
    sweep(lambda ids: (shapes.add(ids.shape), run(ids))[1], np.arange(7), block=3)
    assert shapes == {(3,)}


def test_a_diverging_model_is_named_before_the_next_block_starts():
    started = []

    def diverging(ids):
        started.append(ids)
        losses = np.ones((len(ids), 4))
        losses[ids == 12, 2] = np.nan
        return ids, losses

    with pytest.raises(FloatingPointError, match=r"models 12 \(step 2\)"):
        sweep(diverging, np.array([3, 12, 5, 6]), block=2)
    assert len(started) == 1


def test_nothing_to_do_is_an_error():
    with pytest.raises(ValueError, match="block of 2 for 0 models"):
        sweep(run, np.arange(0), block=2)
    with pytest.raises(ValueError, match="block of 0 for 3 models"):
        sweep(run, np.arange(3), block=0)
