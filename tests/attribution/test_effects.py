"""Applications on planted linear worlds, where retraining is arithmetic, and against scikit-learn and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

from d3mjax.attribution import effects

pytestmark = pytest.mark.usefixtures("doubles")
TAU = np.array([[5.0, -1, 3, 2, 0], [0.5, 0.25, -4, 1, 2], [-1, -2, -3, -4, -5]])


def planted(t=6, n=40, seed=0):
    """Weights with a mean away from zero, and the margins of models trained on everything."""
    rng = np.random.default_rng(seed)
    tau = rng.normal(size=(t, n)) + 0.3
    return tau, rng.uniform(4, 9, size=t)


def test_largest_takes_the_largest_with_ties_by_position():
    assert effects.largest(TAU, 2).astype(int).tolist() == [[1, 0, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 0, 0, 0]]
    counts = effects.largest(TAU, np.array([1, -1, 99]))
    assert counts.sum(1).tolist() == [1, 0, 5]
    assert effects.largest(np.zeros(4), 2).tolist() == [True, True, False, False]


def test_effects_are_those_of_a_linear_learner():
    tau, margins = planted()
    learn = lambda keep: margins - tau.sum(1) + (keep * tau).sum(1)
    removed = np.stack([effects.largest(tau, k) for k in (3, 10)], 1)
    predicted = effects.predicted_effects(tau, removed)
    for k in range(2):
        np.testing.assert_allclose(predicted[:, k], learn(~removed[:, k]) - learn(np.ones_like(tau)))
        np.testing.assert_allclose(effects.predicted_effects(tau, removed[:, k]), predicted[:, k])
    assert (predicted < 0).all()  # what helps was removed
    assert (effects.predicted_effects(tau, effects.largest(-tau, 3)) > 0).all()


def test_agreement_equals_scipy_over_one_pool():
    rng = np.random.default_rng(1)
    predicted = rng.normal(size=(7, 3))
    actual = 0.5 * predicted + rng.normal(size=(7, 3)) + 2
    found = effects.agreement(predicted, actual)
    x, y = predicted.ravel(), actual.ravel()
    ranks = [stats.rankdata(a) for a in (x, y)]
    expected = (np.corrcoef(x, y)[0, 1], np.corrcoef(*ranks)[0, 1], np.polyfit(x, y, 1)[0])
    np.testing.assert_allclose(np.stack(found), expected, rtol=1e-10)
    assert effects.agreement(-predicted, actual).slope < 0


def test_support_is_the_analytic_one():
    # Largest first: 5, 3, 2 | 2, 1, .5, .25 | none positive.
    sizes = lambda *margins, **options: effects.support_sizes(TAU, np.array(margins), **options).tolist()
    assert sizes(5.0, 3.75, 1.0) == [1, 4, -1]
    assert sizes(5.01, 3.76, -0.5) == [2, -1, 0]
    assert sizes(8.5, 3.2, 0.0, inflate=1.2) == [4, 4, 0]  # 3 and 3 before
    assert sizes(9.5, 3.7, 2.0, inflate=2.0) == [5, 5, -1]  # never more than there are
    assert effects.support_sizes(np.ones((1, 20)), np.array([4.5]), inflate=1.2).tolist() == [6]


def test_removing_the_support_flips_and_one_example_less_does_not():
    tau, margins = planted()
    sizes = np.asarray(effects.support_sizes(tau, margins))
    assert (sizes > 1).all()
    left = lambda k: margins + effects.predicted_effects(tau, effects.largest(tau, k))
    assert (left(sizes) <= 0).all()
    assert (left(sizes - 1) > 0).all()
    for z, size in enumerate(sizes):  # no smaller set of any kind does it
        assert margins[z] - np.sort(tau[z])[::-1][: size - 1].sum() > 0


def test_crossed_support_takes_the_order_from_one_half_and_the_worth_from_the_other():
    first, second = np.array([[3.0, 2, 1, -1]]), np.array([[1.0, 4, 0.5, 9]])
    # Order of the first: worth 1, 4, .5, none. Order of the second: worth -1, 2, 3, 1. Mean: 0, 3, 1.75, .5.
    halves = np.stack([first, second])
    sizes = lambda m, **options: effects.crossed_support_sizes(halves, np.array([m]), **options).tolist()
    assert [sizes(m) for m in (-1.0, 0.1, 3.0, 3.01, 4.75, 5.25, 5.3)] == [[0], [2], [2], [3], [3], [4], [-1]]
    assert sizes(3.0, inflate=1.2) == [3]


def test_crossed_support_has_no_winners_curse():
    """Noise of many weights is taken for worth by `support_sizes`, and is not by the other."""
    rng = np.random.default_rng(5)
    true = np.sort(rng.exponential(size=(40, 300)), axis=1)[:, ::-1]
    halves = true[None] + rng.normal(size=(2, 40, 300))
    margins = true[:, :30].sum(1)
    chosen = halves.mean(0)
    gone = lambda sizes: (np.asarray(effects.largest(chosen, np.asarray(sizes))) * true).sum(1) >= margins
    assert gone(effects.support_sizes(chosen, margins)).mean() < 0.1
    assert gone(effects.crossed_support_sizes(halves, margins)).mean() > 0.9


def test_relabelling_touches_the_chosen_examples_only():
    logits = np.array([[3.0, 1, 2], [0, 5, 4]])
    assert effects.runner_up(logits, np.array([0, 2])).tolist() == [2, 1]  # the second target is misclassified
    chosen = np.array([[True, False, True], [False, False, False]])
    assert effects.relabelled(np.array([0, 1, 0]), chosen, np.array([2, 1])).tolist() == [[2, 1, 2], [0, 1, 0]]


def test_neighbours_by_id():
    ids = np.array([10, 11, 12, 13, 14])
    similar, opposed = effects.neighbours(TAU, ids, num=2)
    assert similar.id.tolist() == [[10, 12], [14, 13], [10, 11]]
    assert similar.weight.tolist() == [[5, 3], [2, 1], [-1, -2]]
    assert opposed.id.tolist() == [[11, 14], [12, 11], [14, 13]]
    assert opposed.weight.tolist() == [[-1, 0], [-4, 0.25], [-5, -4]]


def test_leakage_finds_planted_duplicates_first():
    rng = np.random.default_rng(2)
    tau = rng.normal(size=(30, 50)) * 0.1
    targets, examples = np.array([3, 17, 29]), np.array([40, 2, 11])
    tau[targets, examples] = 3.0
    found = effects.leakage(tau)
    assert found.example[targets].tolist() == examples.tolist()
    relevant = np.isin(np.arange(30), targets)
    for score in (found.weight, found.share, found.lead):
        result = effects.retrieval(score, relevant)
        assert result.precision[:3].tolist() == [1, 1, 1]
        assert result.recall[2] == 1
        assert result.average_precision == 1
    assert effects.retrieval(-found.weight, relevant).average_precision < 0.2
    np.testing.assert_allclose(found.share[3], 3 / np.maximum(tau[3], 0).sum())
    second = np.sort(tau[3])[-2]
    np.testing.assert_allclose(found.lead[3], 3 - second, rtol=1e-6)
    tau[:, 7] += 20  # an example that matters to all
    assert effects.leakage(tau).example.tolist() == [7] * 30
    assert effects.leakage(effects.specific(tau)).example[targets].tolist() == examples.tolist()
    assert effects.specific(np.array([[3.0, 0], [4, 0]])).tolist() == [[3 / 12.5**0.5, 0], [4 / 12.5**0.5, 0]]
    nothing = effects.leakage(-np.ones((1, 3)))
    assert (nothing.weight.tolist(), nothing.share.tolist()) == ([-1], [0])


def test_retrieval_equals_sklearn():
    rng = np.random.default_rng(3)
    scores, relevant = rng.normal(size=40), rng.random(40) < 0.3
    result = effects.retrieval(scores, relevant)
    np.testing.assert_allclose(result.average_precision, average_precision_score(relevant, scores))
    assert result.recall[-1] == 1
    assert result.precision[-1] == relevant.mean()
    assert np.isnan(effects.retrieval(scores, np.zeros(40, bool)).average_precision)


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_pca_equals_sklearn_up_to_signs(shape):
    rows = np.random.default_rng(4).normal(size=shape) * np.geomspace(4, 0.1, shape[1])
    found, expected = effects.pca(rows, num=5), PCA(5, svd_solver="full").fit(rows)
    np.testing.assert_allclose(found.explained, expected.explained_variance_ratio_, rtol=1e-8)
    np.testing.assert_allclose(np.abs(found.direction), np.abs(np.asarray(expected.components_)), atol=1e-8)
    np.testing.assert_allclose(np.abs(found.coordinate), np.abs(expected.transform(rows)), atol=1e-8)
    np.testing.assert_allclose(found.coordinate, (rows - rows.mean(0)) @ found.direction.T, atol=1e-8)
    assert (np.max(found.coordinate, 0) == np.max(np.abs(found.coordinate), 0)).all()
    np.testing.assert_allclose(effects.explained(rows, found.direction), found.explained, rtol=1e-8)
    again = effects.pca(rows[::-1], num=5)
    np.testing.assert_allclose(again.direction, found.direction, atol=1e-8)


def test_pca_refuses_more_components_than_there_are():
    with pytest.raises(ValueError, match="num: found 3, expected 1 to 2"):
        effects.pca(TAU, num=3)


def test_embeddings_have_unit_length_and_zeros_stay():
    rows = effects.normalised(np.array([[3.0, 4], [0, 0]]))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]])


def test_residual_is_orthogonal_and_blind_to_scale():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 8, 20))
    left = effects.residual(a, b)
    np.testing.assert_allclose((left * b).sum(1), 0, atol=1e-12)
    np.testing.assert_allclose(effects.residual(7 * a, -3 * b), left, atol=1e-12)
    np.testing.assert_allclose(effects.residual(2 * b, b), 0, atol=1e-12)
    np.testing.assert_allclose(effects.residual(a, 0 * b), effects.normalised(a))


def test_difference_of_learners_finds_the_planted_one():
    rng = np.random.default_rng(6)
    shared, cue = rng.normal(size=(60, 100)), np.zeros(100)
    cue[7] = 1.0
    uses = rng.choice([-8.0, 8.0], 60)  # for or against each target
    found = effects.difference(shared + uses[:, None] * cue, shared + 0.05 * rng.normal(size=(60, 100)), num=4)
    assert np.abs(found.components.direction[0, 7]) > 0.95
    assert found.in_first[0] > 10 * found.in_second[0]
    assert (np.diff(found.in_first - found.in_second) <= 0).all()
    assert abs(np.corrcoef(found.components.coordinate[:, 0], uses)[0, 1]) > 0.95


def test_all_of_it_can_be_compiled():
    tau, margins = (jnp.asarray(a, jnp.float32) for a in planted())
    compiled = jax.jit(lambda tau: (effects.support_sizes(tau, margins), effects.pca(tau, num=2)))
    np.testing.assert_array_equal(compiled(tau)[0], effects.support_sizes(tau, margins))
    assert compiled(tau)[1].direction.dtype == jnp.float32
