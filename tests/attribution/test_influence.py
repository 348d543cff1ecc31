"""Influence functions against matrices written out, refits and explicit gradients, in float64."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy.stats import rankdata

from d3mjax.attribution import curvatures, ekfac, gradients, influence, inverses
from d3mjax.networks import dense
from d3mjax.types import Split

pytestmark = pytest.mark.usefixtures("doubles")
KEY = jax.random.key(0)
close = np.testing.assert_allclose


def split(n, *, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)) * [1, 2, 0.5, 1]
    y = (x @ rng.normal(size=(4, classes)) + 2 * rng.normal(size=(n, classes))).argmax(1)
    return Split(x, y, rng.integers(0, 2, n), np.arange(n))


TRAIN, TARGET = split(23), split(7, seed=1)
WEIGHTS = np.array([1.0, 0.0, 2.0, 0.5] * 5 + [1.0] * 3)


def network(hidden=(5,), classes=3):
    model = dense.mlp(hidden, classes)
    variables = model.init(jax.random.key(0), TRAIN.x[:1])
    return model, jax.tree.map(lambda a: a.astype(float), variables)


def attribute(model, variables, train=TRAIN, target=TARGET, *, weights: Any = WEIGHTS, **fields):
    """Scores of one checkpoint by the exact inverse, unless another is given, and its diagnostics."""
    options = influence.Options(**{"inverse": inverses.by_dense(), **fields})
    checkpoints = jax.tree.map(lambda a: a[None], variables)
    tau, info = influence.scores(KEY, model, checkpoints, train, target, weights=weights, options=options)
    return tau, jax.tree.map(lambda a: a[0], info)


def objective(model, variables, weights, flat, train=TRAIN):
    """The weighted sum of losses as a function of flat parameters."""
    _, unravel = ravel_pytree(variables["params"])
    logits, _ = model.apply({"params": unravel(flat)}, train.x)
    return -(weights * jax.nn.log_softmax(logits)[jnp.arange(len(train.y)), train.y]).sum()


def fitted(many_weights, damping, *, classes=3, train=TRAIN):
    """Softmax-linear models at the minimum of their losses and ``damping / 2`` times the squared norm."""
    model, variables = network((), classes)
    flat, unravel = ravel_pytree(variables["params"])

    def newton(weights):
        loss = lambda w: objective(model, variables, weights, w, train) + damping / 2 * w @ w
        step = lambda _, w: w - jnp.linalg.solve(jax.hessian(loss)(w), jax.grad(loss)(w))
        w = jax.lax.fori_loop(0, 20, step, jnp.zeros_like(flat))
        return unravel(w), jax.grad(loss)(w)

    params, gradient = jax.jit(jax.vmap(newton))(jnp.asarray(many_weights))
    assert np.abs(gradient).max() < 1e-10
    return model, [{"params": jax.tree.map(lambda a, i=i: a[i], params)} for i in range(len(many_weights))]


@pytest.mark.parametrize("microbatch", [None, 4])
def test_curvature_products_are_those_of_the_matrices(microbatch):
    model, variables = network()
    problem = influence.problem_of(
        model, variables, TRAIN, weights=WEIGHTS, options=influence.Options(microbatch=microbatch)
    )
    flat, unravel = ravel_pytree(variables["params"])
    exact = jax.hessian(partial(objective, model, variables, WEIGHTS))(flat)
    found = jax.vmap(curvatures.hessian(problem))(jnp.eye(len(flat)))
    close(found, exact, atol=1e-10)

    logits = lambda w: model.apply({"params": unravel(w)}, TRAIN.x)[0]
    jacobian, p = jax.jacobian(logits)(flat), jax.nn.softmax(logits(flat))
    inner = WEIGHTS[:, None, None] * (jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None])
    found = jax.vmap(curvatures.ggn(problem))(jnp.eye(len(flat)))
    close(found, jnp.einsum("ncd,nck,nke->de", jacobian, inner, jacobian), atol=1e-10)
    assert np.linalg.eigvalsh(found).min() > -1e-9 > np.linalg.eigvalsh(exact).min()


def test_the_ggn_is_the_hessian_of_a_linear_model():
    model, variables = network(())
    problem = influence.problem_of(model, variables, TRAIN)
    vectors = jax.random.normal(jax.random.key(0), (3, 15))
    for v in vectors:
        close(curvatures.ggn(problem)(v), curvatures.hessian(problem)(v), atol=1e-10)


INVERSES = {
    "cg": inverses.by_cg(rtol=1e-12),
    "cg, EK-FAC": inverses.by_cg(rtol=1e-12, precondition=ekfac.by_ekfac()),
    "cg, Nystroem": inverses.by_cg(rtol=1e-12, precondition=inverses.by_nystrom(8)),
    "lissa": inverses.by_lissa(depth=4000),
    "arnoldi": inverses.by_arnoldi(num=43, keep=43),
}


@pytest.mark.parametrize("name", INVERSES)
def test_every_inverse_ends_at_the_exact_one(name):
    model, variables = network()
    exact, info = attribute(model, variables, damping=0.05)
    assert exact.shape == (7, 23)
    assert (info.residual < 1e-10).all()
    found, info = attribute(model, variables, damping=0.05, inverse=INVERSES[name])
    close(found, exact, atol=1e-8)
    assert (info.residual < 1e-7).all()


def test_scores_are_the_formula_and_groups_their_means():
    model, variables = network()
    tau, _ = attribute(model, variables, damping=0.1, microbatch=3)
    flat, _ = ravel_pytree(variables["params"])
    rows = lambda output, part: jax.vmap(lambda g: ravel_pytree(g)[0])(
        gradients.per_example(output(model, variables), variables["params"], part)
    )
    problem = influence.problem_of(model, variables, TRAIN, weights=WEIGHTS)
    matrix = jax.vmap(curvatures.ggn(problem))(jnp.eye(len(flat))) + 0.1 * WEIGHTS.sum() * jnp.eye(len(flat))
    f, losses = rows(gradients.margin_output, TARGET), -rows(gradients.negative_loss_output, TRAIN)
    close(tau, -f @ np.linalg.solve(matrix, losses.T), atol=1e-10)

    options = influence.Options(damping=0.1, inverse=inverses.by_dense(), microbatch=3)
    columns, factor, _ = influence.group_columns(
        KEY, model, variables, TRAIN, TARGET, 3, weights=WEIGHTS, options=options
    )
    assert (factor == 1).all()
    for group in range(2):
        close(columns[:, group], tau[TARGET.group == group].mean(0), atol=1e-10)
    assert np.isnan(columns[:, 2]).all()


def margins_of(model, variables, target):
    return jax.vmap(lambda e: gradients.margin_output(model, variables)(variables["params"], e))(target)


def test_a_little_more_weight_changes_the_output_as_predicted():
    damping, changed = 0.3, (0, 1, 2, 22)
    steps = [s * np.eye(23)[i] for i in changed for s in (1e-3, -1e-3)]
    model, (here, *there) = fitted([WEIGHTS, *(WEIGHTS + step for step in steps)], damping)
    tau, _ = attribute(model, here, damping=damping / WEIGHTS.sum())
    margins = [margins_of(model, variables, TARGET) for variables in there]
    for k, i in enumerate(changed):
        close(tau[:, i], (margins[2 * k] - margins[2 * k + 1]) / 2e-3, rtol=1e-4, atol=1e-7)


def test_removal_of_one_of_many_is_predicted():
    """Leave-one-out of logistic regression: rank and slope, refitted exactly."""
    n, damping = 200, 2.0
    train, target = split(n, classes=2), split(7, classes=2, seed=1)
    model, (whole, *parts) = fitted([np.ones(n), *(1.0 - np.eye(n))], damping, classes=2, train=train)
    tau, _ = attribute(model, whole, train, target, weights=None, damping=damping / n)
    actual = np.stack([margins_of(model, v, target) for v in parts], 1) - margins_of(model, whole, target)[:, None]
    assert np.corrcoef(rankdata(-tau), rankdata(actual))[0, 1] > 0.99
    slope = np.vdot(tau, -actual) / np.vdot(tau, tau)
    assert 0.9 < slope < 1.1


@pytest.mark.parametrize("microbatch", [None, 5])
def test_ekfac_is_the_exact_fisher_of_one_layer_whose_inputs_and_errors_are_apart(microbatch):
    # Uniform predictions make the errors independent of the inputs: the Fisher is then a Kronecker product.
    model, variables = network(())
    variables = jax.tree.map(jnp.zeros_like, variables)
    scores = partial(attribute, model, variables, damping=0.2, microbatch=microbatch)
    exact, _ = scores()
    for corrected in (True, False):
        found, info = scores(inverse=ekfac.by_ekfac(corrected=corrected))
        close(found, exact, atol=1e-9)
        assert (info.residual < 1e-9).all()
        found, info = scores(inverse=inverses.by_cg(rtol=1e-9, precondition=ekfac.by_ekfac(corrected=corrected)))
        close(found, exact, atol=1e-9)
        assert (info.steps == 1).all()


def test_a_preconditioner_saves_steps_where_it_is_near():
    model, variables = network()
    solve = partial(attribute, model, variables, damping=0.001)
    steps = [
        solve(inverse=inverses.by_cg(rtol=1e-9, precondition=guess))[1].steps.max()
        for guess in (None, inverses.by_nystrom(8), inverses.by_nystrom(24), inverses.by_nystrom(43))
    ]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 2 * steps[2]
    assert steps[-1] <= 3


def test_the_correction_brings_kfac_closer_to_the_fisher():
    model, variables = network((5,))
    problem = influence.problem_of(model, variables, TRAIN, weights=WEIGHTS)._replace(damping=jnp.asarray(0.0))
    flat, unravel = ravel_pytree(variables["params"])
    exact = jax.vmap(curvatures.ggn(problem))(jnp.eye(len(flat)))

    def matrix(corrected):
        fisher = ekfac.fit(problem, corrected=corrected)
        damped = problem._replace(damping=jnp.asarray(1e-3))
        inverse = jax.vmap(lambda v: ravel_pytree(ekfac.apply(fisher, damped, unravel(v)))[0])(jnp.eye(len(flat)))
        return np.linalg.inv(inverse) - 1e-3 * np.eye(len(flat))

    errors = [np.linalg.norm(matrix(corrected) - exact) for corrected in (True, False)]
    assert errors[0] < errors[1]
    # Blocks between layers are left out; within a layer the trace is that of the Fisher.
    close(np.trace(matrix(True)), np.trace(exact), rtol=1e-6)


def test_shuffled_training_examples_are_shuffled_columns():
    model, variables = network()
    order = np.random.default_rng(0).permutation(23)
    shuffled = jax.tree.map(lambda a: np.asarray(a)[order], TRAIN)
    one, _ = attribute(model, variables)
    other, _ = attribute(model, variables, shuffled, weights=WEIGHTS[order])
    close(other, one[:, order], atol=1e-10)


def test_one_layer_alone_is_a_block_of_the_problem():
    model, variables = network()
    keep = lambda path: "Dense_1" in path
    found, _ = attribute(model, variables, weights=None, keep=keep)
    cg, _ = attribute(model, variables, weights=None, keep=keep, inverse=inverses.by_cg(rtol=1e-12))
    close(found, cg, atol=1e-9)
    problem = influence.problem_of(model, variables, TRAIN, options=influence.Options(keep=keep))
    assert len(ravel_pytree(problem.params)[0]) == 5 * 3 + 3


def test_checkpoints_are_averaged_and_groups_are_means():
    model, first = network()
    checkpoints = jax.tree.map(lambda a: jnp.stack([a, 1.5 * a]), first)
    options = influence.Options(damping=0.1, inverse=inverses.by_dense())
    args = (KEY, model, checkpoints, TRAIN, TARGET)
    tau, info = influence.scores(*args, weights=WEIGHTS, options=options)
    singles = [attribute(model, jax.tree.map(lambda a, c=c: a[c], checkpoints), damping=0.1)[0] for c in range(2)]
    close(tau, np.mean(singles, axis=0), atol=1e-10)
    assert info.residual.shape == (2, 7)
    result = influence.group_scores(*args, 2, weights=WEIGHTS, options=options)
    close(result.columns, np.stack([tau[TARGET.group == g].mean(0) for g in range(2)], 1), atol=1e-10)
    with pytest.raises(ValueError, match="expected 0 to 0"):
        influence.group_scores(*args, 1)


def test_least_squares_is_exact_leave_one_out_times_one_minus_leverage():
    """The Gauss-Newton matrix is ``X' X``, so the hat matrix gives every refit."""
    rng = np.random.default_rng(5)
    x, xt = (np.c_[rng.normal(size=(n, 3)), np.ones(n)] for n in (25, 6))
    y = x @ [1.0, -2.0, 0.5, 3.0] + rng.normal(size=25)
    inverse = np.linalg.inv(x.T @ x)
    theta = inverse @ x.T @ y
    model = dense.linear(1)
    params = {"Dense_0": {"kernel": jnp.asarray(theta[:3, None]), "bias": jnp.asarray(theta[3:])}}
    train = Split(x[:, :3], y, np.zeros(25, int), np.arange(25))
    target = Split(xt[:, :3], np.zeros(6), np.zeros(6, int), np.arange(6))
    fields = {"damping": 0.0, "loss": curvatures.squared_error}
    of = lambda output: attribute(
        model, {"params": params}, train, target, weights=None, target_output=output, **fields
    )[0]
    hat, residuals = x @ inverse @ x.T, y - x @ theta
    without = [np.linalg.lstsq(np.delete(x, i, 0), np.delete(y, i))[0] for i in range(25)]
    change = np.stack([xt @ (theta - each) for each in without], axis=1)
    close(change * (1 - np.diag(hat))[None], xt @ inverse @ x.T * residuals[None], atol=1e-10)
    predictions = of(gradients.prediction_output)
    close(predictions, change * (1 - np.diag(hat))[None], atol=1e-10)
    close(of(gradients.negative_squared_error_output), -(xt @ theta)[:, None] * predictions, atol=1e-10)
