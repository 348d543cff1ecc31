"""Counterfactual bias and its removal against refits, in float64, on an attribute that a linear model picks up."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from d3mjax.attribution import influence
from d3mjax.networks import dense
from d3mjax.types import Pairs, Split
from d3mjax.unlearning import edits

DAMPING, N, P = 0.02, 120, 60
EXACT = influence.by_dense()
close = np.testing.assert_allclose
MODEL = dense.mlp((), 2)


@pytest.fixture(autouse=True)
def doubles():
    with jax.enable_x64(True):
        yield


def planted(n, seed, *, agrees=0.8):
    """One true feature, one spurious attribute +-1 that mostly agrees with the label, a constant one."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    attribute = np.where(rng.random(n) < agrees, 2 * y - 1, 1 - 2 * y)
    x = np.stack([(2 * y - 1) * 0.5 + rng.normal(size=n), attribute, np.full(n, 0.3)], 1)
    return Split(x, y, (attribute > 0).astype(int), np.arange(n))


def flipped(split):
    """Pairs whose first side agrees with the label."""
    aligned, conflicting = (np.array(split.x) for _ in range(2))
    aligned[:, 1], conflicting[:, 1] = 2 * split.y - 1, 1 - 2 * split.y
    return Pairs(aligned, conflicting, split.y)


TRAIN, PAIRS, REPORT = planted(N, 0), flipped(planted(P, 1)), flipped(planted(P, 2))


def problem_at(weights=None, train=TRAIN, **options):
    """The softmax-linear model at the minimum of its objective; the same damping whatever the weights."""
    weights = jnp.ones(len(train.y)) if weights is None else jnp.asarray(weights)
    variables = jax.tree.map(lambda a: 0.0 * a.astype(float), MODEL.init(jax.random.key(0), train.x[:1]))
    options = influence.Options(**{"damping": DAMPING * N / weights.sum(), **options})
    return edits.refit(influence.problem_of(MODEL, variables, train, weights=weights, options=options), EXACT)


def bias(problem: influence.Problem, pairs: Any = REPORT) -> Any:
    return jax.device_get(edits.measure(MODEL, {"params": problem.params}, pairs))


def flat(problem):
    return np.asarray(ravel_pytree(problem.params)[0])


def test_refit_reaches_the_minimum_and_elsewhere_editing_is_refused():
    problem = problem_at()
    assert np.abs(edits.objective_gradient(problem)).max() < 1e-10
    edits.check_stationary(problem)
    off = problem._replace(params=jax.tree.map(lambda a: 2 * a, problem.params))
    with pytest.raises(ValueError, match=r"found a gradient of norm .* refit the edited parameters first"):
        edits.check_stationary(off)


def test_bias_is_its_definition():
    problem = problem_at()
    w, b = (np.asarray(problem.params["Dense_0"][name]) for name in ("kernel", "bias"))
    p = lambda x: np.asarray(jax.nn.softmax(x @ w + b))[np.arange(P), REPORT.y]
    d = p(REPORT.x) - p(REPORT.flipped)
    found = bias(problem)
    close([found.absolute, found.signed], [np.abs(d).mean(), d.mean()])
    close(found.flips, np.mean((REPORT.x @ w + b).argmax(1) != (REPORT.flipped @ w + b).argmax(1)))
    assert found.signed > 0.1  # the planted attribute was picked up


@pytest.mark.parametrize("measure", [edits.signed_bias, edits.counterfactual_bias])
def test_influence_on_bias_is_what_refits_show(measure):
    options = influence.Options(damping=DAMPING, inverse=EXACT)
    here = {"params": problem_at().params}
    found, info = edits.influence_on(MODEL, measure, here, TRAIN, PAIRS, options=options)
    assert info.residual.max() < 1e-10
    value = lambda i, step: measure(MODEL, {"params": problem_at(1.0 + step * np.eye(N)[i]).params}, PAIRS)
    changed = range(0, N, 20)
    actual = [(value(i, 1e-3) - value(i, -1e-3)) / 2e-3 for i in changed]
    close(found[jnp.asarray(changed)], actual, rtol=1e-4, atol=1e-9)
    options = options._replace(inverse=influence.by_cg(rtol=1e-13))
    cg, _ = edits.influence_on(MODEL, measure, here, TRAIN, PAIRS, options=options)
    close(cg, found, atol=1e-10)


def test_removing_until_the_predicted_signed_bias_is_zero():
    on_bias, on_signed = np.array([0.1, 0.5, -0.2, 0.3, 0.2]), np.array([0.1, 0.4, -0.2, 0.3, 0.2])
    count = lambda signed: int(edits.removal_count(on_bias, on_signed, jnp.asarray(signed)))
    # in the order .4, .3, .2, .1 of those that raise the bias
    assert [count(s) for s in (0.39, 0.41, 0.75, 0.95, -0.2, 2.0)] == [1, 2, 3, 4, 4, 4]

    train = planted(N, 0, agrees=0.65)
    problem = problem_at(train=train)
    here, options = {"params": problem.params}, influence.Options(damping=DAMPING, inverse=EXACT)
    scores = [
        edits.influence_on(MODEL, m, here, train, PAIRS, options=options)[0]
        for m in (edits.counterfactual_bias, edits.signed_bias)
    ]
    few = int(edits.removal_count(scores[0], scores[1], edits.signed_bias(MODEL, here, PAIRS)))
    assert 0 < few < N / 2
    without = lambda rows: problem_at(1.0 - np.isin(np.arange(N), rows), train)
    ours, random = np.argsort(-scores[0])[:few], np.random.default_rng(0).permutation(N)[:few]
    assert bias(without(ours)).absolute < 0.6 * bias(problem).absolute
    assert abs(bias(without(random)).absolute / bias(problem).absolute - 1) < 0.3


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
    before = bias(problem).absolute
    step = lambda **options: edits.from_pairs(problem, EXACT, PAIRS, **options)
    # 60 pairs at weight .2 beside 120 examples
    assert bias(step(eta=0.2)).absolute < 0.8 * before < before < bias(step(eta=0.2, sign=-1)).absolute
    assert bias(step(eta=0.2, rounds=5)).absolute < 0.8 * before
    close(flat(step(eta=0.0)), flat(problem))
    swapped = edits.from_pairs(problem, EXACT, Pairs(PAIRS.flipped, PAIRS.x, PAIRS.y), eta=0.3)
    close(flat(swapped) - flat(problem), flat(problem) - flat(step(eta=0.3)), atol=1e-12)
    close(flat(swapped), flat(step(eta=0.3, sign=-1)), atol=1e-12)
    same = edits.from_pairs(problem, EXACT, Pairs(PAIRS.x, PAIRS.x, PAIRS.y), eta=5.0)
    np.testing.assert_array_equal(flat(same), flat(problem))


def test_newton_on_the_bias_itself_removes_it():
    problem = problem_at()
    variables = {"params": problem.params}
    place = (MODEL, edits.counterfactual_bias, variables, problem, EXACT, PAIRS)
    after = [bias(edits.newton_on_bias(*place, eta=0.2, rounds=r)).absolute for r in (1, 4)]
    assert after[1] < after[0] < bias(problem).absolute
    same = Pairs(PAIRS.x, PAIRS.x, PAIRS.y)
    assert edits.counterfactual_bias(MODEL, variables, same) == 0
    np.testing.assert_array_equal(flat(edits.newton_on_bias(*place[:-1], same)), flat(problem))


def test_the_last_layer_alone_can_be_edited():
    model = dense.mlp((4,), 2)
    variables = jax.tree.map(lambda a: a.astype(float), model.init(jax.random.key(1), TRAIN.x[:1]))
    keep = lambda path: "Dense_1" in path
    problem = influence.problem_of(model, variables, TRAIN, options=influence.Options(damping=DAMPING, keep=keep))
    problem = edits.refit(problem, EXACT)
    edits.check_stationary(problem)
    after = edits.newton_on_bias(model, edits.counterfactual_bias, variables, problem, EXACT, PAIRS, eta=0.2, rounds=3)
    first, last = (edits.merged(variables, p.params) for p in (problem, after))
    value = lambda v: edits.counterfactual_bias(model, v, PAIRS)
    assert value(last) < 0.9 * value(first)
    np.testing.assert_array_equal(last["params"]["Dense_0"]["kernel"], variables["params"]["Dense_0"]["kernel"])
    gradient = edits.bias_gradient(model, edits.signed_bias, first, PAIRS, keep=keep)
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
    found = influence.one_vs_rest(problem)(jnp.asarray(v))
    close(found, np.concatenate([expected[3], expected[:3].ravel()]), rtol=1e-10)


def test_the_step_size_is_chosen_on_selection_pairs_within_a_cost():
    problem = problem_at()
    step = lambda eta: bias(edits.from_pairs(problem, EXACT, PAIRS, eta=eta), PAIRS)
    eta, found = edits.line_search((0.1, 0.3, 100.0), step, tolerance=0.05)
    assert eta in (0.1, 0.3)
    assert len(found) == 4
    assert edits.line_search((100.0,), step, tolerance=0.01)[0] == 0.0


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
def test_pairs_that_cannot_be_right_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        edits.check_pairs(pairs, 2)
    edits.check_pairs(PAIRS, 2)


def test_few_pairs_are_named_with_the_error_they_leave():
    few = jax.tree.map(lambda a: a[:16], PAIRS)
    with pytest.warns(RuntimeWarning, match=r"found 16, expected at least 20: the standard error .* may be 0\.12"):
        edits.check_pairs(few, 2)


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
    options = influence.Options(damping=damping / weights.sum(), loss=influence.squared_error)
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
    options = influence.Options(0.7 / 30, EXACT, target_output=output, loss=influence.squared_error)
    tau, info = influence.scores(model, {"params": problem.params}, train, train, options=options)
    assert info.residual.max() < 1e-12
    leverage = np.einsum("ij,jk,ik->i", rows, np.linalg.inv(gram), rows)
    without = [flat(regression(1.0 - (np.arange(30) == i))[0]) for i in range(30)]
    predicted = [rows[i, :3] @ w[1:] + w[0] for i, w in enumerate(without)]  # bias first
    here = rows @ np.roll(flat(problem), -1)
    close(-np.diag(tau) / (1 - leverage), np.array(predicted) - here, atol=1e-12)
