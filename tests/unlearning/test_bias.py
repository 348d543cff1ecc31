"""Counterfactual bias and the influence of train examples on it, against their definitions and refits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from planted_attribute import DAMPING, EXACT, MODEL, PAIRS, REPORT, TRAIN, N, P, measured, planted, problem_at

from d3mjax.attribution import influence, metagradient, projections, trak
from d3mjax.networks import dense
from d3mjax.training import objectives, sampling, trainer
from d3mjax.types import Split
from d3mjax.unlearning import bias

pytestmark = pytest.mark.usefixtures("doubles")

close = np.testing.assert_allclose


def test_bias_is_its_definition():
    problem = problem_at()
    w, b = (np.asarray(problem.params["Dense_0"][name]) for name in ("kernel", "bias"))
    p = lambda x: np.asarray(jax.nn.softmax(x @ w + b))[np.arange(P), REPORT.y]
    d = p(REPORT.x) - p(REPORT.flipped)
    one, other = ((x @ w + b).argmax(1) for x in (REPORT.x, REPORT.flipped))
    at = measured(problem)
    close([at.absolute, at.signed], [np.abs(d).mean(), d.mean()])
    close(
        [at.flips, at.accuracy, at.flipped_accuracy],
        [np.mean(a) for a in (one != other, one == REPORT.y, other == REPORT.y)],
    )
    assert at.signed > 0.1  # the planted attribute was picked up


@pytest.mark.parametrize("measure", [bias.signed_bias, bias.counterfactual_bias])
def test_influence_on_bias_is_that_of_refits(measure):
    variables, options = {"params": problem_at().params}, influence.Options(damping=DAMPING, inverse=EXACT)
    scores, info = bias.influence_on(MODEL, measure, variables, TRAIN, PAIRS, options=options)
    assert info.residual.max() < 1e-10
    value = lambda i, step: measure(MODEL, {"params": problem_at(1.0 + step * np.eye(N)[i]).params}, PAIRS)
    changed = range(0, N, 20)
    actual = [(value(i, 1e-3) - value(i, -1e-3)) / 2e-3 for i in changed]
    close(scores[jnp.asarray(changed)], actual, rtol=1e-4, atol=1e-9)


def descent(rate, steps, **options):
    """Full-batch descent on the objective of `planted_attribute`, and the metagradients on both biases."""
    tx = optax.chain(optax.add_decayed_weights(DAMPING), optax.sgd(rate))
    double = MODEL._replace(init=lambda *args: jax.tree.map(lambda a: a.astype(float), MODEL.init(*args)))
    full = trainer.make_trainer(double, objectives.cross_entropy(), tx, sampling.shuffled(), batch_size=N)
    arguments = (jax.random.key(4), MODEL, full, TRAIN, PAIRS, steps)
    scores, info = bias.metagradients_on_biases(*arguments, options=metagradient.Options(**options))
    metagradient.check(info)
    return full, scores


def test_metagradients_on_biases_are_changes_of_the_same_training():
    full, scores = descent(0.5, 7)

    def biases(i, step):
        factors = 1.0 + step * np.eye(N)[i]
        at = bias.measure(MODEL, metagradient.rerun(jax.random.key(4), full, TRAIN, 7, factors), PAIRS)
        return np.array([at.absolute, at.signed])

    changed = range(0, N, 40)
    actual = [(biases(i, 1e-4) - biases(i, -1e-4)) / 2e-4 for i in changed]
    close(scores[jnp.asarray(changed)], actual, rtol=1e-5, atol=1e-10)


def test_metagradients_of_a_long_training_are_influence_on_bias():
    _, scores = descent(0.5, 4000, segments=50)
    variables, options = {"params": problem_at().params}, influence.Options(damping=DAMPING, inverse=EXACT)
    for column, measure in enumerate((bias.counterfactual_bias, bias.signed_bias)):
        expected, _ = bias.influence_on(MODEL, measure, variables, TRAIN, PAIRS, options=options)
        close(scores[:, column], expected, rtol=1e-6, atol=1e-9)


def test_removing_until_the_predicted_signed_bias_is_zero():
    on_bias, on_signed = np.array([0.1, 0.5, -0.2, 0.3, 0.2]), np.array([0.1, 0.4, -0.2, 0.3, 0.2])
    count = lambda signed: int(bias.removal_count(on_bias, on_signed, jnp.asarray(signed)))
    # in the order .4, .3, .2, .1 of those that raise the bias
    assert [count(s) for s in (0.39, 0.41, 0.75, 0.95, -0.2, 2.0)] == [1, 2, 3, 4, 4, 4]


def test_removing_the_most_influential_lowers_the_bias_and_random_rows_do_not():
    train = planted(N, 0, agrees=0.65)
    problem = problem_at(train=train)
    variables, options = {"params": problem.params}, influence.Options(damping=DAMPING, inverse=EXACT)
    measures = (bias.counterfactual_bias, bias.signed_bias)
    scores = [bias.influence_on(MODEL, m, variables, train, PAIRS, options=options)[0] for m in measures]
    by_bias, by_signed = scores
    few = int(bias.removal_count(by_bias, by_signed, bias.signed_bias(MODEL, variables, PAIRS)))
    without = lambda rows: measured(problem_at(1.0 - np.isin(np.arange(N), rows), train)).absolute
    before = measured(problem).absolute
    assert without(np.argsort(-scores[0])[:few]) < 0.6 * before
    assert abs(without(np.random.default_rng(0).permutation(N)[:few]) / before - 1) < 0.3


def test_trak_on_biases_is_the_mean_over_single_sides():
    model = dense.mlp((8,), 2)
    variables, key = model.init(jax.random.key(0), TRAIN.x[:1]), jax.random.key(1)
    options = trak.Options(projections.sjlt(32))
    at_first = jax.random.fold_in(key, 0)  # as `trak.scores` projects the first checkpoint
    scores = bias.trak_on_biases(at_first, model, variables, TRAIN, PAIRS, options=options)
    single = options._replace(target_output=bias.probability_output)
    y = np.tile(PAIRS.y, 2)
    sides = Split(np.concatenate([PAIRS.x, PAIRS.flipped]), y, y, y)
    stacked = jax.tree.map(lambda a: a[None], variables)
    one, other = jnp.split(trak.scores(key, model, stacked, TRAIN, sides, options=single).tau, 2)
    sign = jnp.sign(bias.differences(model, variables, PAIRS))
    expected = np.stack([(sign[:, None] * (one - other)).mean(0), (one - other).mean(0)], 1)
    # Parameters are float32: means over p pairs of differences of terms of size max |tau|.
    close(scores, expected, atol=float(100 * np.finfo(np.float32).eps * jnp.abs(one).max()))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (PAIRS._replace(flipped=PAIRS.flipped[:-1]), "sides of shapes"),
        (PAIRS._replace(y=PAIRS.y[:-1]), r"pairs.y: found 59 labels for \[60\] pairs"),
        (PAIRS._replace(y=PAIRS.y + 1), "found labels 1..2, expected 0..1"),
        (jax.tree.map(lambda a: a[:0], PAIRS), "found none, expected some"),
        (PAIRS._replace(flipped=PAIRS.x), "both sides equal everywhere"),
    ],
)
def test_pairs_that_cannot_be_right_raise(pairs, message):
    with pytest.raises(ValueError, match=message):
        bias.check_pairs(pairs, 2)
    bias.check_pairs(PAIRS, 2)


def test_few_pairs_warn_with_the_error_of_their_bias():
    few = jax.tree.map(lambda a: a[:16], PAIRS)
    with pytest.warns(RuntimeWarning, match=r"found 16, expected at least 20: the standard error .* may be 0\.12"):
        bias.check_pairs(few, 2)
