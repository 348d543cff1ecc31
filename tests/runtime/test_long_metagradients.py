"""Metagradients by segments on disk: equal to those in memory, and to the last bit after interruptions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from planted import close, equal

import d3mjax
from d3mjax.attribution import gradients, metagradient
from d3mjax.runtime import long_metagradients

DATA, MODEL, KEY, STEPS = d3mjax.planted_shortcut(0, train=60, target=5), d3mjax.mlp((6,), 2), jax.random.key(2), 20


def make(**options):
    tx = optax.adam(0.02, eps_root=1e-6)
    return d3mjax.make_trainer(MODEL, d3mjax.cross_entropy(), tx, d3mjax.shuffled(), batch_size=20, **options)


TRAINER = make()


def grads(variables):
    output = lambda variables, example: gradients.margin_output(MODEL, variables)(variables["params"], example)
    return gradients.per_example(output, variables, jax.tree.map(jnp.asarray, DATA.target))


def run(directory, *, trainer=TRAINER, facts=None, segments=4, width=None, **options):
    state = trainer.init(KEY, DATA.train.x[:1])
    arguments = (trainer, state, DATA.train, STEPS, grads)
    options |= {"options": metagradient.Options(segments=segments, width=width)}
    return long_metagradients.derivatives(directory, facts or {"name": "test"}, *arguments, **options)


def test_equals_the_program_in_memory(tmp_path):
    rows, losses = run(tmp_path, width=2)
    expected, info = metagradient.derivatives(KEY, TRAINER, DATA.train, STEPS, grads)
    close(rows, expected, terms=60 * STEPS)  # sums over 20 examples and 3 layers in each of the steps
    close(losses, info.losses, terms=60 * STEPS)


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_resumes_to_the_last_bit(tmp_path, stop):
    """Four segments forward and four back; the run stops after one of these eight."""
    whole, seen = run(tmp_path / "whole"), itertools.count(1)

    def interrupt(step):
        if next(seen) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "resumed", progress=interrupt)
    steps = []
    equal(run(tmp_path / "resumed", progress=steps.append), whole)
    assert steps == [5, 10, 15, 20, 15, 10, 5, 0][stop:]


def test_training_that_draws_anew_is_refused_by_its_steps(tmp_path):
    count = itertools.count()
    noise = lambda: np.float32(next(count) % 7 / 10)
    augment = lambda key, x: x + jax.pure_callback(noise, jax.ShapeDtypeStruct((), jnp.float32))
    with pytest.raises(ValueError, match="steps 15 to 20 computed again end in another state"):
        run(tmp_path, trainer=make(augment=augment))


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="segments: found 21, expected 1 to 20"):
        run(tmp_path, segments=21)
    run(tmp_path)
    with pytest.raises(ValueError, match="belongs to another configuration"):
        run(tmp_path, facts={"name": "other"})


def test_diverged_training_names_the_step(tmp_path):
    tx = optax.sgd(1e30)
    wild = d3mjax.make_trainer(MODEL, d3mjax.cross_entropy(), tx, d3mjax.shuffled(), batch_size=20)
    with pytest.raises(FloatingPointError, match="training diverged"):
        run(tmp_path, trainer=wild)
