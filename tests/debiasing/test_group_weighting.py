"""D3M's scores: what each weighting descends (by autodiff on a toy), its limits and invariances, and the guards."""

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from d3mjax.debiasing import group_weighting

N, G = 11, 3
LOSSES = jnp.array([0.3, 1.7, 0.9], jnp.float32)
COLUMNS = planted.normal(0, N, G) * jnp.float32([[1, 2, 3]]) + jnp.float32([[0.5, -1, 2]])

WEIGHTINGS = {
    "softmax": group_weighting.softmax_weights,
    "loss": group_weighting.loss_weights,
    "uniform": group_weighting.uniform_weights,
    "worst": group_weighting.worst_weights,
}


def _toy_losses(weight):
    """Group losses [G] of a 'model' that depends smoothly on the example weights."""
    features, targets = np.random.default_rng(1).normal(size=(2, N, 4))
    theta = jnp.tanh(weight @ jnp.asarray(features, jnp.float32))
    groups = jnp.asarray(targets[:G] * [[1], [2], [0.5]], jnp.float32)
    return jnp.logaddexp(0.0, groups @ theta) + jnp.array([0.1, 0.8, 0.2])


POTENTIALS = {
    "softmax 0.5": (lambda v: group_weighting.softmax_weights(v, beta=0.5), lambda v: jax.nn.logsumexp(0.5 * v) / 0.5),
    "softmax 3": (lambda v: group_weighting.softmax_weights(v, beta=3.0), lambda v: jax.nn.logsumexp(3 * v) / 3),
    "loss": (group_weighting.loss_weights, lambda v: (v**2).sum() / (2 * G)),
    "uniform": (group_weighting.uniform_weights, lambda v: v.mean()),
    "worst": (group_weighting.worst_weights, lambda v: v.max()),
}


@pytest.mark.parametrize("name", POTENTIALS)
def test_scores_are_minus_the_gradient_of_what_the_weighting_descends(name):
    weighting, potential = POTENTIALS[name]
    weight = jnp.asarray(np.random.default_rng(2).uniform(0, 0.5, N), jnp.float32)
    columns = -jax.jacobian(_toy_losses)(weight).T  # output = negative loss: B[i, g] = -d loss_g / d weight_i
    got = group_weighting.scores(columns, weighting(_toy_losses(weight)))
    expected = -jax.grad(lambda w: potential(_toy_losses(w)))(weight)
    assert np.abs(expected).max() > 0.05
    planted.close(got, expected, terms=N * 4)


def test_weights_by_hand():
    e = np.exp(2 * np.array([0.3, 1.7, 0.9]))
    planted.close(group_weighting.softmax_weights(LOSSES, beta=2.0), e / e.sum(), terms=G)
    planted.close(group_weighting.loss_weights(LOSSES), np.array([0.1, 1.7 / 3, 0.3]))
    planted.close(np.float32(group_weighting.uniform_weights(LOSSES)), np.full(3, 1 / 3))
    np.testing.assert_array_equal(group_weighting.worst_weights(LOSSES), [0, 1, 0])
    np.testing.assert_array_equal(group_weighting.worst_weights(jnp.array([1.0, 2, 2])), [0, 1, 0])


def test_beta_runs_from_the_mean_to_the_worst_column():
    at = lambda beta: group_weighting.scores(COLUMNS, group_weighting.softmax_weights(LOSSES, beta=beta))
    planted.close(at(0.0), COLUMNS.mean(1), terms=G, scale=np.abs(COLUMNS).max())
    planted.close(at(1e3), COLUMNS[:, 1])
    assert np.abs(at(1.0) - COLUMNS.mean(1)).max() > 0.1


def test_softmax_does_not_see_the_level_of_the_losses_but_loss_does():
    shifted = LOSSES + 5
    planted.close(
        group_weighting.softmax_weights(shifted), group_weighting.softmax_weights(LOSSES), scale=float(shifted.max())
    )
    assert np.abs(group_weighting.loss_weights(shifted) - group_weighting.loss_weights(LOSSES)).max() > 1


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_swapping_groups_changes_nothing_and_permuting_train_permutes(name):
    a = group_weighting.scores(COLUMNS, WEIGHTINGS[name](LOSSES))
    groups, order = jnp.array([2, 0, 1]), jnp.asarray(np.random.default_rng(1).permutation(N))
    swapped = group_weighting.scores(COLUMNS[:, groups], WEIGHTINGS[name](LOSSES[groups]))
    planted.close(swapped, a, terms=G)
    planted.close(group_weighting.scores(COLUMNS[order], WEIGHTINGS[name](LOSSES)), a[order], terms=G)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_an_empty_pseudo_group_counts_nowhere(name):
    losses = jnp.insert(LOSSES, 1, jnp.nan)
    weights = WEIGHTINGS[name](losses)
    assert weights[1] == 0
    planted.close(jnp.delete(weights, 1), WEIGHTINGS[name](LOSSES), terms=G)
    columns = jnp.insert(COLUMNS, 1, jnp.nan, axis=1)  # a mean over no targets
    expected = group_weighting.scores(COLUMNS, WEIGHTINGS[name](LOSSES))
    planted.close(group_weighting.scores(columns, weights), expected, terms=G)


def test_weights_beta_and_losses_do_not_retrace():
    weigh = lambda columns, losses, beta: group_weighting.scores(
        columns, group_weighting.softmax_weights(losses, beta=beta)
    )
    counted, traces = planted.count_traces(weigh)
    fn = jax.jit(counted)
    for beta in (0.0, 1.0, 30.0):
        fn(COLUMNS * beta, LOSSES + beta, beta)
    assert len(traces) == 1, "retraced: `beta` must stay traced, look for Python branches on it"


def test_scores_map_over_many_weightings():
    betas = jnp.array([0.0, 1.0, 10.0])
    many = jax.vmap(lambda beta: group_weighting.scores(COLUMNS, group_weighting.softmax_weights(LOSSES, beta=beta)))(
        betas
    )
    for beta, row in zip(betas, many, strict=True):
        expected = group_weighting.scores(COLUMNS, group_weighting.softmax_weights(LOSSES, beta=float(beta)))
        planted.close(row, expected, terms=G)


def test_check_scores_names_groups_and_counts_examples():
    group_weighting.check_scores(COLUMNS, LOSSES)
    with pytest.raises(FloatingPointError, match=r"losses: .* groups \[0, 2\]"):
        group_weighting.check_scores(COLUMNS, jnp.array([jnp.nan, 1, jnp.inf]))
    bad = np.array(COLUMNS)
    bad[[2, 5], 1] = np.nan
    bad[5, 2] = -np.inf
    with pytest.raises(FloatingPointError, match=r"group_columns: found 2 train examples .* in groups \[1, 2\]"):
        group_weighting.check_scores(bad, np.asarray(LOSSES))


def test_effective_checkpoints_runs_from_one_to_all():
    weights = np.array([0.25, 0.75, 0.0], np.float32)
    # A level that all examples share is no spread, and a group of weight 0 does not count.
    level = np.array([[[3, 3, np.nan]]], np.float32)
    walsh = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]], np.float32)  # unrelated
    count = jax.jit(group_weighting.effective_checkpoints)
    for kappa, expected in (
        (walsh, 3.0),
        (walsh[[0, 0, 0]], 1.0),
        (walsh[:1], 1.0),
        (walsh[[0, 0, 1]], 9 / 5),  # variance of (2 a + b) / 3 is (4 + 1) / 9
        (walsh[[0, 1]] * [[1], [3]], 2.0),  # (1 + 9) / 2 over (1 + 9) / 4
    ):
        planted.close(count(kappa[..., None] + level, weights), expected, terms=4 * 3, scale=9)  # squares of 3


def test_effective_checkpoints_counts_what_two_have_in_common():
    rng = np.random.default_rng(3)
    c, n = 8, 4000
    kernel = rng.normal(size=(1, n, 1)) + 2 * rng.normal(size=(c, n, 1))  # r = 1 / (1 + 4)
    got = group_weighting.effective_checkpoints(kernel.astype(np.float32), np.ones(1, np.float32))
    # The variance over n rows of the average has a relative standard error of sqrt(2 / n), the dominant one.
    np.testing.assert_allclose(got, c / (1 + (c - 1) / 5), rtol=5 * np.sqrt(2 / n))
