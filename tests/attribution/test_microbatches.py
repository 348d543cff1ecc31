"""Microbatches keep every row in order, and their default size is bounded by bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import close

from d3mjax.attribution import gradients, influence, inverses, microbatches, per_checkpoint, trak
from d3mjax.linalg import products
from d3mjax.networks import dense
from d3mjax.types import Split


def test_microbatches_of_pytrees_keep_every_row_in_order():
    x = {"a": jnp.arange(7.0), "b": jnp.arange(14).reshape(7, 2)}
    first, second = microbatches.map_microbatches(lambda p: (p["b"] + 1, p["a"] * 2), x, microbatch=3)
    np.testing.assert_array_equal(first, x["b"] + 1)
    np.testing.assert_array_equal(second, x["a"] * 2)


def test_scan_pads_with_rows_that_do_not_count():
    step = lambda s, part, valid: (s + jnp.where(valid, part, 0).sum(), 2 * part)
    total, rows = microbatches.scan_microbatches(step, jnp.zeros(()), jnp.arange(7.0), microbatch=3)
    assert total == 21
    np.testing.assert_array_equal(rows, 2 * np.arange(7.0))
    with pytest.raises(ValueError, match="microbatch: found 0"):
        microbatches.scan_microbatches(lambda s, *_: (s, None), 0, jnp.arange(7.0), microbatch=0)


@pytest.fixture
def problem():
    x = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    split = Split(x, np.arange(12, dtype=np.int32) % 2, np.arange(12) // 6, np.arange(12))
    model = dense.mlp((5,), 2)
    return model, per_checkpoint.stack_checkpoints([model.init(jax.random.key(0), x[:1])]), split


def test_the_default_counts_the_bytes_of_a_gradient_and_of_the_backward_pass(problem, monkeypatch):
    model, checkpoints, split = problem
    variables = jax.tree.map(lambda a: a[0], checkpoints)
    output = gradients.margin_output(model, variables)
    count = lambda: microbatches.default_microbatch(output, variables["params"], split)
    size = 4 * (3 * 5 + 5 + 5 * 2 + 2)  # bytes of a gradient; the backward pass keeps the kernels and activations
    assert count() == products.LARGEST
    monkeypatch.setattr(microbatches, "BUDGET", 400 * size)
    assert 100 < count() < 400
    monkeypatch.setattr(microbatches, "BUDGET", 1)
    assert count() == 1


@pytest.mark.parametrize(
    ("method", "options"), [(trak, trak.Options()), (influence, influence.Options(inverse=inverses.by_dense()))]
)
def test_results_do_not_depend_on_the_budget(problem, monkeypatch, method, options):
    model, checkpoints, split = problem
    run = lambda: method.group_scores(jax.random.key(1), model, checkpoints, split, split, 2, options=options).columns
    whole = run()
    monkeypatch.setattr(microbatches, "BUDGET", 2000)
    close(run(), whole, terms=2500)  # the condition of the damped matrices is some 1e3
