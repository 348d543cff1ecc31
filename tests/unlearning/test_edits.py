"""Newton steps that remove, replace and unlearn, against refits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_attribute import DAMPING, EXACT, MODEL, PAIRS, SAME, TRAIN, N, flat, measured, problem_at

from d3mjax.attribution import curvatures, influence
from d3mjax.networks import dense
from d3mjax.types import Pairs, Split
from d3mjax.unlearning import bias, edits

pytestmark = pytest.mark.usefixtures("doubles")

close = np.testing.assert_allclose


def test_refit_reaches_the_minimum_and_elsewhere_edits_raise():
    problem = problem_at()
    assert np.abs(edits.objective_gradient(problem)).max() < 1e-10
    edits.check_stationary(edits.stationarity(problem))
    off = problem._replace(params=jax.tree.map(lambda a: 2 * a, problem.params))
    with pytest.raises(ValueError, match=r"found a gradient of .* refit the edited parameters first"):
        edits.check_stationary(edits.stationarity(off))


def test_one_step_is_near_the_refit_and_nearer_with_the_edited_curvature():
    problem, rows = problem_at(), np.isin(np.arange(N), [3, 17, 40, 41])
    refitted = flat(problem_at(1.0 - rows))
    errors = [
        np.linalg.norm(flat(edits.remove(problem, EXACT, rows, edited=edited)) - refitted) for edited in (True, False)
    ]
    moved = np.linalg.norm(refitted - flat(problem))
    assert errors[0] < errors[1] < 0.3 * moved
    assert errors[0] < 0.1 * moved

    index = np.flatnonzero(rows)
    others = jax.tree.map(lambda a: np.asarray(a)[index], TRAIN)
    others = others._replace(x=others.x * [1, -1, 1])
    whole = TRAIN._replace(x=np.array(TRAIN.x))
    whole.x[index] = others.x
    refitted = flat(problem_at(train=whole))
    found = edits.replace(problem, EXACT, index, others)
    assert np.linalg.norm(flat(found) - refitted) < 0.2 * np.linalg.norm(refitted - flat(problem))
    close(found.examples.x, whole.x)


def test_a_step_from_pairs_lowers_the_bias_of_other_pairs_and_its_negative_raises_it():
    problem = problem_at()
    before, start = measured(problem).absolute, flat(problem)
    step = lambda pairs=PAIRS, **options: edits.from_pairs(problem, EXACT, pairs, **options)
    # 60 pairs at weight .2 beside 120 examples
    assert measured(step(eta=0.2)).absolute < 0.8 * before < before < measured(step(eta=0.2, sign=-1)).absolute
    np.testing.assert_array_equal(flat(step(eta=0.0)), start)
    swapped = flat(step(Pairs(PAIRS.flipped, PAIRS.x, PAIRS.y), eta=0.3))
    close(swapped - start, start - flat(step(eta=0.3)), atol=1e-12)
    close(swapped, flat(step(eta=0.3, sign=-1)), atol=1e-12)
    np.testing.assert_array_equal(flat(step(SAME, eta=5.0)), start)


def test_a_step_that_keeps_the_objective_is_newton_on_it_where_pairs_say_nothing():
    """Damped Newton steps with pairs of equal sides reach the minimum; without ``keep`` they stay."""
    start = problem_at()
    off = start._replace(params=jax.tree.map(lambda a: 1.1 * a, start.params))
    stepped = off
    for _ in range(8):
        stepped = edits.from_pairs(stepped, EXACT, SAME, keep=1.0)
    close(flat(stepped), flat(start), atol=1e-8)
    close(flat(edits.from_pairs(off, EXACT, SAME)), flat(off), rtol=0, atol=0)


def test_newton_on_the_bias_goes_down_its_gradient():
    problem = problem_at()
    variables = {"params": problem.params}
    step = lambda pairs: edits.newton_on_bias(MODEL, variables, problem, EXACT, pairs, eta=0.2)
    assert measured(step(PAIRS)).absolute < measured(problem).absolute
    assert bias.counterfactual_bias(MODEL, variables, SAME) == 0
    np.testing.assert_array_equal(flat(step(SAME)), flat(problem))


def test_the_last_layer_alone_can_be_edited():
    model = dense.mlp((4,), 2)
    variables = jax.tree.map(lambda a: a.astype(float), model.init(jax.random.key(1), TRAIN.x[:1]))
    keep = lambda path: "Dense_1" in path
    options = influence.Options(damping=DAMPING, keep=keep)
    problem = edits.refit(influence.problem_of(model, variables, TRAIN, options=options), EXACT)
    after = edits.newton_on_bias(model, variables, problem, EXACT, PAIRS, eta=0.2)
    before, after = (edits.merged(variables, each.params) for each in (problem, after))
    value = lambda v: bias.counterfactual_bias(model, v, PAIRS)
    assert value(after) < value(before)
    np.testing.assert_array_equal(after["params"]["Dense_0"]["kernel"], variables["params"]["Dense_0"]["kernel"])
    gradient = bias.gradient_of(model, bias.signed_bias, before, PAIRS, keep=keep)
    assert gradient["Dense_0"]["kernel"] is None


def test_one_vs_rest_is_a_logistic_curvature_per_class():
    problem = problem_at()
    w, b = (np.asarray(problem.params["Dense_0"][name]) for name in ("kernel", "bias"))
    logits = TRAIN.x @ w + b
    s = np.asarray(jax.nn.sigmoid(logits))
    rows = np.concatenate([TRAIN.x, np.ones((N, 1))], 1)
    v = np.arange(8.0)  # bias [2], then kernel [3 2]
    by_class = np.concatenate([v[2:].reshape(3, 2), v[:2][None]])
    expected = np.stack([rows.T @ (s[:, c] * (1 - s[:, c]) * (rows @ by_class[:, c])) for c in range(2)], 1)
    found = curvatures.one_vs_rest(problem)(jnp.asarray(v))
    close(found, np.concatenate([expected[3], expected[:3].ravel()]), rtol=1e-10)


def regression(weights, *, seed=0, n=30, swap=None):
    """Ridge regression at its minimum: the problem, its data with 1 for the bias, and the damping."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(n, 3)), rng.normal(size=n)
    y = x @ [1.0, -2.0, 0.5] + 0.3 + 0.5 * noise
    if swap is not None:
        x, y = x.copy(), y.copy()
        x[swap], y[swap] = 2 * x[swap] + 1, -y[swap]
    train = Split(x, y, np.zeros(n, int), np.arange(n))
    rows, damping = np.concatenate([x, np.ones((n, 1))], 1), 0.7
    gram = (rows.T * weights) @ rows + damping * np.eye(4)
    solution = np.linalg.solve(gram, (rows.T * weights) @ y)
    model = dense.linear(1)
    params = {"Dense_0": {"kernel": jnp.asarray(solution[:3, None]), "bias": jnp.asarray(solution[3:])}}
    options = influence.Options(damping=damping / weights.sum(), loss=curvatures.squared_error)
    return influence.problem_of(model, {"params": params}, train, weights=weights, options=options), rows, gram


def test_removal_and_replacement_are_exact_where_the_loss_is_quadratic():
    whole, *_ = regression(np.ones(30))
    rows = np.isin(np.arange(30), [3, 11, 17])
    refit, *_ = regression(1.0 - rows)
    close(flat(edits.remove(whole, EXACT, rows)), flat(refit), atol=1e-12)
    others = jax.tree.map(lambda a: a[rows], regression(np.ones(30), swap=rows)[0].examples)
    replaced = edits.replace(whole, EXACT, np.flatnonzero(rows), others)
    close(flat(replaced), flat(regression(np.ones(30), swap=rows)[0]), atol=1e-12)
    assert np.abs(flat(edits.remove(whole, EXACT, rows, edited=False)) - flat(refit)).max() > 1e-3


def test_one_removal_with_the_old_curvature_errs_like_one_over_n_squared():
    def error(n):
        one = np.arange(n) == 5
        found = edits.remove(regression(np.ones(n), n=n)[0], EXACT, one, edited=False)
        return np.abs(flat(found) - flat(regression(1.0 - one, n=n)[0])).max()

    assert 2.5 < np.log(error(50) / error(800)) / np.log(4) < 5.5  # 16 times the data: 4 ** 4, but for chance


def test_leaving_one_out_of_a_ridge_regression():
    problem, rows, gram = regression(np.ones(30))
    train = problem.examples
    output = lambda model, variables: lambda params, example: model.apply({"params": params}, example.x[None])[0][0, 0]
    model = dense.linear(1)
    options = influence.Options(0.7 / 30, EXACT, target_output=output, loss=curvatures.squared_error)
    checkpoint = {"params": jax.tree.map(lambda a: a[None], problem.params)}
    tau, info = influence.scores(jax.random.key(0), model, checkpoint, train, train, options=options)
    assert info.residual.max() < 1e-12
    leverage = np.einsum("ij,jk,ik->i", rows, np.linalg.inv(gram), rows)
    without = [flat(regression(1.0 - (np.arange(30) == i))[0]) for i in range(30)]
    predicted = [rows[i, :3] @ w[1:] + w[0] for i, w in enumerate(without)]  # bias first
    here = rows @ np.roll(flat(problem), -1)
    close(-np.diag(tau) / (1 - leverage), np.array(predicted) - here, atol=1e-12)
