"""Paths of edits against single steps, what selection chooses, and `unlearn`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from planted_attribute import (
    DAMPING,
    EXACT,
    MODEL,
    PAIRS,
    REPORT,
    TRAIN,
    N,
    P,
    flat,
    flipped,
    measured,
    planted,
    problem_at,
)

from d3mjax.attribution import curvatures, influence, inverses
from d3mjax.networks import dense
from d3mjax.unlearning import bias, edits, fmd, paths
from d3mjax.unlearning.bias import Bias

close = np.testing.assert_allclose
pytestmark = pytest.mark.usefixtures("doubles")
SELECTION = flipped(planted(P, 3))


def editable():
    problem = problem_at()
    return paths.Editable(MODEL, {"params": problem.params}, problem, EXACT)


def at(params, i):
    return np.asarray(ravel_pytree(jax.tree.map(lambda a: a[i], params))[0])


def test_one_shot_is_every_size_of_one_step():
    start = editable()
    params = paths.one_shot(start, PAIRS, etas=(0.1, 0.4), sign=-1.0)
    for i, eta in enumerate((0.1, 0.4)):
        close(at(params, i), flat(edits.from_pairs(start.problem, EXACT, PAIRS, eta=eta, sign=-1.0)), atol=1e-12)


def test_rounds_are_steps_one_after_the_other():
    start = problem = editable()
    params, problem = paths.in_rounds(start, PAIRS, etas=(0.1, 0.2, 0.1), aligned=0.5), start.problem
    newton, other = paths.newton(start, PAIRS, eta=0.2, rounds=3), start.problem
    for i, eta in enumerate((0.1, 0.2, 0.1)):
        problem = edits.from_pairs(problem, EXACT, PAIRS, eta=eta, aligned=0.5)
        other = edits.newton_on_bias(MODEL, {"params": other.params}, other, EXACT, PAIRS, eta=0.2)
        close(at(params, i), flat(problem), atol=1e-12)
        close(at(newton, i), flat(other), atol=1e-12)
    assert measured(other).absolute < 0.5 * measured(start.problem).absolute


def test_baselines_on_the_same_pairs_lower_the_bias():
    start, before = editable(), measured(problem_at()).absolute
    descended = paths.fine_tuned(start, PAIRS, rate=0.05, steps=40, keep=4)
    biases = paths.measure_each(MODEL, start.variables, descended, REPORT)
    assert biases.absolute.shape == (4,)
    assert biases.absolute[-1] < 0.5 * before
    heads = paths.dfr(jax.random.key(0), start, PAIRS, 2, strengths=jnp.array([1.0, 10.0]))
    assert paths.measure_each(MODEL, start.variables, heads, REPORT).absolute.max() < 0.5 * before


def test_the_step_is_the_best_allowed_or_none():
    def tried(absolute, accuracy, flipped_accuracy):
        absolute, accuracy, other = map(jnp.asarray, (absolute, accuracy, flipped_accuracy))
        return Bias(absolute, absolute, absolute, accuracy, other)

    start, least = tried(0.3, 0.8, 0.7), partial(paths.least_bias, tolerance=0.005)
    three = tried([0.2, 0.1, 0.05], [0.795, 0.8, 0.5], [0.7, 0.695, 0.9])
    assert least(three, start) == 1  # the third loses 5 points over both sides
    assert paths.best_worse_side(three, start) == -1  # .7, then .7, .695 and .5
    assert paths.best_worse_side(tried([0.2, 0.1], [0.75, 0.78], [0.76, 0.9]), start) == 1
    worse = tried([0.4], [0.8], [0.6])
    assert least(worse, start) == paths.best_worse_side(worse, start) == -1


@pytest.fixture
def network():
    """A network of two layers whose last layer is at the minimum of its objective."""
    model = dense.mlp((6,), 2)
    variables = jax.tree.map(lambda a: a.astype(float), model.init(jax.random.key(1), TRAIN.x[:1]))
    options = influence.Options(damping=DAMPING, keep=lambda path: "Dense_1" in path)
    problem = edits.refit(influence.problem_of(model, variables, TRAIN, options=options), EXACT)
    return model, edits.merged(variables, problem.params)


def test_unlearn_edits_the_last_layer_and_measures_what_it_returns(network):
    model, variables = network
    result = fmd.unlearn(model, variables, TRAIN, PAIRS, SELECTION, options=fmd.Options(tolerance=0.05))
    for which, returned in ((variables, result.before), (result.variables, result.after)):
        jax.tree.map(partial(close, atol=1e-6), bias.measure(model, which, SELECTION), returned)  # softmax is float32
    assert result.info.step >= 0
    np.testing.assert_array_equal(result.after.absolute, result.info.tried.absolute[result.info.step])
    kernel = lambda v: v["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel(result.variables), kernel(variables))
    report = lambda v: bias.counterfactual_bias(model, v, REPORT)
    assert report(result.variables) < 0.5 * report(variables)


def test_unlearn_returns_the_network_itself_where_no_step_is_allowed(network):
    model, variables = network
    result = fmd.unlearn(model, variables, TRAIN, PAIRS, SELECTION, options=fmd.Options(tolerance=-1.0))
    assert result.info.step == -1
    jax.tree.map(np.testing.assert_array_equal, result.variables, variables)


def test_weight_0_is_absence(network):
    model, variables = network
    rows = np.arange(N) % 3 > 0
    part = jax.tree.map(lambda a: a[rows], TRAIN)
    results = [
        fmd.unlearn(model, variables, TRAIN, PAIRS, SELECTION, weights=rows.astype(float)),
        fmd.unlearn(model, variables, part, PAIRS, SELECTION),
    ]
    jax.tree.map(partial(close, rtol=1e-6, atol=1e-9), *(result.variables for result in results))


def test_a_last_layer_that_was_not_refitted_raises(network):
    model, variables = network
    with pytest.raises(ValueError, match="refit the edited parameters first"):
        fmd.unlearn(model, variables, TRAIN, PAIRS, SELECTION, options=fmd.Options(refits=0))


def test_the_network_is_curved_by_a_part_that_counts_as_all(network):
    model, variables = network
    v = jax.random.normal(jax.random.key(1), ravel_pytree(variables["params"])[0].shape)

    def problem(most):
        return fmd.network_of(model, variables, TRAIN, inverses.by_cg(), damping=0.01, most=most).problem

    part, whole, more = (np.asarray(curvatures.ggn(problem(most))(v)) for most in (40, N, 10 * N))
    np.testing.assert_array_equal(whole, more)
    close([problem(most).weights.sum() for most in (40, N)], N)
    close([problem(most).damping for most in (40, N)], 0.01 * N)
    first = jax.tree.map(lambda a: a[:40], TRAIN)
    alone = curvatures.ggn(influence.problem_of(model, variables, first))(v)
    close(part, N / 40 * np.asarray(alone), atol=1e-12)
