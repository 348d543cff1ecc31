"""Training-free scores against loops, scikit-learn and cleanlab, and on planted errors."""

import jax
import numpy as np
import pytest
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from d3mjax.diagnosis import baseline_scores, claims


def planted(n=60, t=40, *, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y, validation_y = rng.integers(0, classes, n), rng.integers(0, classes, t)
    p = rng.dirichlet(np.ones(classes), n) + 1.5 * np.eye(classes)[rng.permutation(y) if seed else y]
    return y, validation_y, (p / p.sum(1, keepdims=True)).astype(np.float32), rng


def test_ranks_are_shares_of_rows_below():
    values = np.array([3, 1, 1, 2], np.float32)
    expected = (stats.rankdata(values) - 0.5) / 4
    np.testing.assert_allclose(baseline_scores.loss_rank(values), expected)
    np.testing.assert_allclose(baseline_scores.self_influence_rank(values), expected)
    np.testing.assert_allclose(baseline_scores.margin_rank(-values), expected)


def test_the_rare_class_is_suspected_of_minority():
    np.testing.assert_array_equal(baseline_scores.rare_class(np.array([0, 1, 0, 0]), 2), [0, 1, 0, 0])
    np.testing.assert_array_equal(
        baseline_scores.rare_class(np.array([1, 0, 1, 1]), 3), [0, 1, 0, 0]
    )  # class 2 does not occur
    np.testing.assert_array_equal(baseline_scores.rare_class(np.array([1, 0]), 2), [1, 0])


@pytest.mark.parametrize("neighbours", [1, 4])
def test_disagreement_with_neighbours_is_that_of_scikit_learn(neighbours):
    y, _, _, rng = planted()
    x = rng.normal(size=(60, 3)).astype(np.float32)
    near = NearestNeighbors(n_neighbors=neighbours).fit(x).kneighbors(return_distance=False)
    expected = (y[near] != y[:, None]).mean(1)
    for microbatch in (None, 7):
        got = baseline_scores.knn_disagreement(x, y, neighbours=neighbours, microbatch=microbatch)
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    order = rng.permutation(60)
    got = baseline_scores.knn_disagreement(x[order], y[order], neighbours=neighbours)
    np.testing.assert_allclose(got, expected[order], rtol=1e-5)
    with pytest.raises(ValueError, match="neighbours"):
        baseline_scores.knn_disagreement(x, y, neighbours=60)


def test_equally_near_rows_all_count():
    x = np.array([[0], [1], [-1], [5]], np.float32)
    np.testing.assert_allclose(
        baseline_scores.knn_disagreement(x, np.array([0, 0, 1, 1]), neighbours=1), [1 / 2, 0, 1, 1]
    )


def test_outliers_are_the_largest_z_over_columns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)).astype(np.float32)
    x[3, 1], x[:, 2], x[7, 0] = 30, 2, np.nan
    got = np.asarray(baseline_scores.outliers(x))
    with np.errstate(invalid="ignore"):
        z = np.abs(x - np.nanmean(x, 0)) / np.nanstd(x, 0)
    np.testing.assert_allclose(got, np.nanmax(z, 1), rtol=1e-5)
    assert got.argmax() == 3


def test_errors_of_a_model():
    logits = np.array([[2, 1], [0, 1], [3, 0]], np.float32)
    np.testing.assert_array_equal(baseline_scores.jtt_errors(logits, np.array([0, 0, 1])), [0, 1, 1])


@pytest.mark.parametrize(("classes", "seed"), [(2, 1), (2, 2), (4, 3), (4, 4)])
def test_confident_errors_are_those_of_a_loop_and_of_cleanlab(classes, seed):
    y, _, p, _ = planted(200, classes=classes, seed=seed)
    got = np.asarray(baseline_scores.confident_errors(p, y))
    thresholds = [p[y == k, k].mean() for k in range(classes)]
    for i in range(len(y)):
        counted = [k for k in range(classes) if p[i, k] >= thresholds[k]]
        guess = p[i].argmax() if len(counted) > 1 else counted[0] if counted else y[i]
        assert got[i] == (guess != y[i] and p[i].argmax() != y[i])
    assert 0 < got.sum() < len(y)
    cleanlab = pytest.importorskip("cleanlab.filter")  # AGPL, a dependency of tests alone
    np.testing.assert_array_equal(got, cleanlab.find_label_issues(y, p, filter_by="confident_learning"))


def test_confident_learning_ranks_suspects_first_then_margins():
    y, _, p, rng = planted(200, classes=3)
    wrong = rng.random(200) < 0.2
    y = np.where(wrong, (y + 1) % 3, y)
    score = np.asarray(baseline_scores.confident_learning(p, y))
    suspects = np.asarray(baseline_scores.confident_errors(p, y))
    np.testing.assert_array_equal(score > 1, suspects)
    own = p[np.arange(200), y]
    others = np.where(np.eye(3, dtype=bool)[y], -1, p).max(1)
    for some in (suspects, ~suspects):
        np.testing.assert_allclose(stats.rankdata(score[some]), stats.rankdata((others - own)[some]), atol=0.51)
    assert claims.average_precision(score, wrong) > 0.9
    missing = baseline_scores.confident_errors(np.pad(p, ((0, 0), (0, 1))), y)  # no row is assigned to an empty class
    np.testing.assert_array_equal(missing, suspects)


def linear(y, x, p, validation_y, validation_x, validation_p):
    """Helpful-positive influence of a softmax regression's rows: inner products of gradients, for any labels."""
    eye = np.eye(p.shape[1], dtype=np.float32)
    return lambda labels: ((eye[np.asarray(labels)] - p) @ (eye[validation_y] - validation_p).T) * (x @ validation_x.T)


def planted_influence(classes=3, seed=0):
    y, validation_y, p, rng = planted(30, 25, classes=classes, seed=seed)
    q = rng.dirichlet(np.ones(classes), 25).astype(np.float32)
    x, z = (rng.normal(size=(k, 4)).astype(np.float32) + 1 for k in (30, 25))
    return y, validation_y, linear(y, x, p, validation_y, z, q)


@pytest.mark.parametrize("classes", [2, 3])
def test_glitch_signals_are_those_of_a_loop(classes):
    y, validation_y, influence = planted_influence(classes)
    dirty, cnci, pcid = influence(y), [], []
    helped = lambda row: np.array([row[(validation_y == c) & (row > 0)].sum() for c in range(classes)])
    harmed = lambda row: np.array([-row[(validation_y == c) & (row < 0)].sum() for c in range(classes)])
    for i, row in enumerate(dirty):
        labels = y.copy()
        labels[i] = harmed(row).argmax()
        cnci.append(-harmed(influence(labels)[i])[y[i]])
        labels[i] = np.argsort(-helped(row), kind="stable")[1]
        pcid.append(helped(row).sum() * np.abs(helped(row) - helped(influence(labels)[i])).max())
    pcid = 1 / np.maximum(pcid, 1e-30)
    every = jax.numpy.stack([influence(np.full(30, c)) for c in range(classes)])
    looked_up = lambda labels: every[labels, np.arange(30)]  # NumPy cannot be traced
    got = jax.jit(baseline_scores.glitches, static_argnums=(0, 3))(looked_up, y, validation_y, classes)
    np.testing.assert_allclose(got.cnci, cnci, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.minimum(got.pcid, 1e30), pcid, rtol=1e-3)  # a difference of sums in its denominator
    label, feature = ((stats.rankdata(signal) - 0.5) / len(y) for signal in (cnci, pcid))
    expected = np.stack([np.where(label >= feature, label, 0), np.where(label < feature, feature, 0)], 1)
    np.testing.assert_allclose(got.cfrank, expected, rtol=1e-5)
    own = [harmed(row)[y[i]] for i, row in enumerate(dirty)]
    np.testing.assert_allclose(
        baseline_scores.own_class_harm(dirty, y, validation_y, classes), own, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(baseline_scores.mean_harm(dirty), -dirty.mean(1), rtol=1e-4, atol=1e-6)


def test_with_two_classes_and_unit_gradients_another_label_is_another_sign():
    rng = np.random.default_rng(0)
    y, validation_y = rng.integers(0, 2, 20), rng.integers(0, 2, 15)
    kernel = rng.uniform(0, 1, (20, 15)).astype(np.float32)
    influence = lambda labels: kernel * np.where(np.asarray(labels)[:, None] == validation_y[None], 1, -1)
    np.testing.assert_array_equal(influence(1 - y), -influence(y))
    np.testing.assert_array_equal(
        baseline_scores.own_class_harm(influence(y), y, validation_y, 2), 0
    )  # no row harms its own class


def test_wrong_labels_are_suspected_by_influence():
    y, validation_y, _ = planted_influence()
    rng = np.random.default_rng(1)
    centre = rng.normal(size=(3, 6)).astype(np.float32) * 2
    x, z = centre[y] + rng.normal(size=(30, 6)), centre[validation_y] + rng.normal(size=(25, 6))
    p, q = (np.exp(a @ centre.T / 4) / np.exp(a @ centre.T / 4).sum(1, keepdims=True) for a in (x, z))
    wrong = np.arange(30) < 6
    dirty = np.where(wrong, (y + 1) % 3, y)
    influence = linear(dirty, x.astype(np.float32), p.astype(np.float32), validation_y, z.astype(np.float32), q)
    harm = baseline_scores.mean_harm(np.asarray(influence(dirty), np.float32))
    assert claims.average_precision(harm, wrong) > 0.6
