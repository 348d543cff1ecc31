"""Programs of a task copy its data to the devices once, and compile once."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.runtime import hosts
from d3mjax.training import ensemble, sampling
from experiments.d3m import engine
from experiments.datamodels import common
from experiments.tasks import PATCH

TASK = replace(PATCH, steps=3)
KEYS = ensemble.model_keys(jax.random.key(0), np.arange(2))


@pytest.fixture
def copies(monkeypatch):
    """Shapes of all arrays that are copied to devices of a mesh."""
    shapes = []

    def copying(shape, *rest, original=jax.make_array_from_callback):
        shapes.append(shape)
        return original(shape, *rest)

    monkeypatch.setattr(jax, "make_array_from_callback", copying)
    return shapes


@pytest.fixture
def traces(monkeypatch):
    """One entry whenever a program that looks at margins is traced."""
    found = []

    def tracing(*args, original=engine.outputs.hard_margins, **options):
        found.append(1)
        return original(*args, **options)

    monkeypatch.setattr(engine.outputs, "hard_margins", tracing)
    return found


def test_placed_data_are_neither_copied_again_nor_traced_again(copies, traces):
    data, devices = TASK.read(0, smoke=True), hosts.local_mesh()
    fit = engine.make_fit(TASK, devices, sampling.shuffled(), steps=TASK.steps)
    here, weights = hosts.place(data, devices), jnp.ones((2, 600))
    first = fit(here.train, here, KEYS, weights)
    leaves, traced = len(jax.tree.leaves(data)), len(traces)
    assert len(copies) == leaves
    with jax.transfer_guard_host_to_device("disallow_explicit"):
        again = fit(here.train, here, KEYS, weights)
    host = fit(data.train, data, KEYS, weights)
    assert len(copies) == leaves + len(jax.tree.leaves((data.train, data)))
    assert len(traces) == traced > 0  # whether the program copies or its caller has, it is compiled once
    for other in (again, host):
        jax.tree.map(np.testing.assert_array_equal, other, first)


def test_checkpoint_columns_leave_placed_data_alone(copies, traces):
    data, devices = TASK.read(0, smoke=True), hosts.local_mesh()
    attribute = lambda key, variables, data: (jnp.zeros((1, 600, 4)), jnp.ones((1, 600)), ())
    columns = engine.make_checkpoint_columns(TASK, devices, 2, attribute, lambda info, data: {})
    here = hosts.place(data, devices)
    for _ in range(2):
        columns(here, jax.random.key(0), lambda count: None)
    assert len(copies) == len(jax.tree.leaves(data))
    assert len(traces) == 1


def test_blocks_of_datamodels_and_of_retraining_share_one_copy(copies):
    data = TASK.read(0, smoke=True)
    leaves = len(jax.tree.leaves(data))
    bank = engine.Bank(models=24, block=8, steps=2)
    columns = engine.make_datamodel_columns(TASK, hosts.local_mesh(), bank)
    b = columns(data, jax.random.key(0), lambda count: None)[0]
    assert b.shape == (1, 600, 4)
    assert len(copies) == leaves
    retrain = common.make_retrain(TASK)
    found = retrain(data, jax.random.key(1), np.ones((2, 600)), repeats=150)  # two blocks
    assert found.shape == (2, 150, len(data.target.y), 2)
    assert len(copies) == 2 * leaves
