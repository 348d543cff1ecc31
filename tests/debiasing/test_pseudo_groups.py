"""AUTO-D3M on planted targets: numpy's SVD, brute-force cuts, and groups that neither losses nor rows tell alone."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from d3mjax.debiasing import group_weighting, pseudo_groups

EPS = float(np.finfo(np.float32).eps)


def planted(cosine, share, major, minor, *, seed, t=80, n=300):
    """Rows around two unit means at an angle, with isotropic noise of the given norms; the minority is True."""
    rng = np.random.default_rng(seed)
    means = np.zeros((2, n))
    means[0, 0], means[1, 0], means[1, 1] = 1, cosine, np.sqrt(1 - cosine**2)
    attribute = np.arange(t) < round(share * t)
    noise = rng.normal(size=(t, n)) / np.sqrt(n) * np.where(attribute, minor, major)[:, None]
    return (means[attribute.astype(int)] + noise).astype(np.float32), attribute


def svd(tau, num):
    unit = tau / np.linalg.norm(tau, axis=1, keepdims=True)
    _, values, v = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    return unit @ v[:num].T, values[:num] ** 2 / (values**2).sum()


def test_components_are_the_principal_components_of_unit_rows():
    tau, _ = planted(0.5, 0.3, 0.5, 0.9, seed=0)
    tau *= np.linspace(0.1, 30, len(tau), dtype=np.float32)[:, None]  # norms must not matter
    scores, share = svd(tau.astype(np.float64), 3)
    rows = pseudo_groups.gram(np.array_split(tau, 7, axis=1))
    norms = np.linalg.norm(tau.astype(np.float64), axis=1)
    error = rows - tau.astype(np.float64) @ tau.T.astype(np.float64)
    assert np.abs(error / np.outer(norms, norms)).max() < 300 * EPS  # n products an entry
    found = pseudo_groups.components(rows, 3)
    got = np.asarray(found.scores)
    # Eigenvectors of a unit Gram of trace t: errors grow by its norm over the gap to the next eigenvalue.
    np.testing.assert_allclose(got * np.sign((got * scores).sum(0)), scores, atol=1000 * EPS)
    np.testing.assert_allclose(found.share, share, rtol=1000 * EPS)


def test_rows_of_low_rank_and_of_norm_zero_are_padded_with_zeros():
    tau = np.zeros((12, 5), np.float32)
    tau[:6, 0], tau[6:11, 1] = 2, 3
    found = pseudo_groups.components(tau @ tau.T, 4)
    np.testing.assert_array_equal(found.scores[11], 0)
    np.testing.assert_allclose(found.scores[:, 2:], 0, atol=100 * EPS)
    for members in (slice(0, 6), slice(6, 11)):
        np.testing.assert_allclose(np.ptp(found.scores[members], axis=0), 0, atol=100 * EPS)
    assert abs(found.scores[0, 0] - found.scores[6, 0]) > 1
    np.testing.assert_allclose(found.share.sum(), 1, rtol=100 * EPS)


@pytest.mark.parametrize(
    ("cosine", "share", "major", "minor"),
    [(0.9, 0.1, 0.5, 0.5), (0.9, 0.1, 0.5, 1.5), (0.9, 0.1, 1.5, 0.5), (0.95, 0.3, 0.3, 1.5), (0.6, 0.1, 1.5, 0.5)],
)
def test_two_means_finds_the_planted_attribute(cosine, share, major, minor):
    right = []
    for seed in range(20):
        tau, attribute = planted(cosine, share, major, minor, seed=seed)
        score = pseudo_groups.components(tau @ tau.T, 1).scores[:, 0]
        side = np.asarray(pseudo_groups.two_means(score, np.zeros(len(score))))
        right.append(max(np.mean(side == attribute), np.mean(side != attribute)))
    assert np.mean(right) >= 0.95


def squares(score, side):
    return sum(((part - part.mean()) ** 2).sum() for part in (score[side], score[~side]))


def test_two_means_is_the_best_of_all_cuts():
    rng = np.random.default_rng(2)
    for _ in range(20):
        score = rng.integers(0, 9, 14) / 4
        cuts = np.unique(score)
        side = np.asarray(pseudo_groups.two_means(score, score))
        assert squares(score, side) == pytest.approx(min(squares(score, score > cut) for cut in cuts[:-1]), abs=1e-5)
        assert score[side].min() > score[~side].max()
    assert not np.any(pseudo_groups.two_means(np.ones(6), np.ones(6)))


def test_the_other_splits_by_hand():
    score, losses = np.array([-3.0, -1, 0, 1, 2, 9]), np.array([5.0, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(pseudo_groups.zero(score, losses), [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(pseudo_groups.median(score, losses), [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(pseudo_groups.tails(score, losses, q=0.2), [1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(pseudo_groups.tails(score, losses[::-1], q=0.2), [0, 0, 0, 0, 1, 1])


def test_between_share_is_the_squared_correlation():
    rng = np.random.default_rng(3)
    values, side = rng.normal(size=50), rng.uniform(size=50) > 0.7
    np.testing.assert_allclose(
        pseudo_groups.between_share(values, side), np.corrcoef(values, side)[0, 1] ** 2, rtol=1e-5
    )
    assert np.isnan(pseudo_groups.between_share(values, np.ones(50, bool)))
    cut = rng.normal(size=20_000)
    np.testing.assert_allclose(
        pseudo_groups.between_share(cut, pseudo_groups.two_means(cut, cut)), pseudo_groups.ONE_GAUSSIAN, atol=0.01
    )


def test_loss_direction_is_the_least_squares_fit():
    tau, _ = planted(0.5, 0.3, 1.0, 1.0, seed=4)
    losses = np.random.default_rng(4).uniform(size=80)
    found = pseudo_groups.components(tau @ tau.T, 3)
    design = np.c_[np.ones(80), found.scores]
    fit = design @ np.linalg.lstsq(design, losses, rcond=None)[0]
    np.testing.assert_allclose(pseudo_groups.loss_direction(found, losses), fit - fit.mean(), atol=1e-5)


def hidden(seed=0, t=200, n=300):
    """Two classes; an even split of no consequence leads, 5 % of each class fail, and as many labels are wrong."""
    rng = np.random.default_rng(seed)
    y = np.repeat([0, 1], t)
    even, minority, wrong = np.arange(2 * t) % 2, np.arange(2 * t) % t < t // 20, np.arange(2 * t) % t >= t - t // 20
    tau = rng.normal(size=(2 * t, n)) / np.sqrt(n)
    tau[:, 0] += 2 * even
    tau[:, 1] += 2 * minority
    tau[:, 2] += 4 * y - 2
    failed = np.where(minority, rng.uniform(size=2 * t) < 0.7, wrong)
    return tau.astype(np.float32), y, failed.astype(np.float32), minority, even


def test_a_rare_group_is_found_behind_a_larger_split_and_among_wrong_labels():
    tau, y, failed, minority, even = hidden()
    found = pseudo_groups.pseudo_groups(tau @ tau.T, y, failed, 2)
    np.testing.assert_array_equal(found.group, 2 * y + minority)
    assert found.split.all()
    for c in (0, 1):
        assert pseudo_groups.attribute_auc(found.score[y == c], minority[y == c]) == 1
    published = pseudo_groups.pseudo_groups(
        tau @ tau.T, y, failed, 2, direction=pseudo_groups.leading, min_loss_share=0.0
    )
    bit = published.group - 2 * y
    assert all(np.mean(bit[y == c] == even[y == c]) in (0, 1) for c in (0, 1))
    assert np.all(published.loss_share < 0.05)  # which is how to notice
    refused = pseudo_groups.pseudo_groups(tau @ tau.T, y, failed, 2, direction=pseudo_groups.leading)
    assert not refused.split.any()
    np.testing.assert_array_equal(refused.group, 2 * y)


def test_evidence_is_the_mean_over_classes_and_decides_for_all():
    tau, y, failed, minority, _ = hidden()
    strong = np.where(y == 1, minority, failed).astype(np.float32)  # class 1 fails exactly where it should
    found = pseudo_groups.pseudo_groups(tau @ tau.T, y, strong, 2)
    assert found.loss_share[1] > 0.99 > 1.5 * found.loss_share[0]
    bound = found.loss_share.mean()
    split = lambda b: pseudo_groups.pseudo_groups(tau @ tau.T, y, strong, 2, min_loss_share=b).split.tolist()
    assert [split(bound - 1e-6), split(bound + 1e-6)] == [[True, True], [False, False]]
    tiny = lambda score, losses: np.where(losses.sum() > 10.5, np.arange(len(score)) < 4, score > 0.5)
    assert losses_by_class(strong, y)[0] > 10.5 > losses_by_class(strong, y)[1]
    one = pseudo_groups.pseudo_groups(tau @ tau.T, y, strong, 2, split=tiny)
    np.testing.assert_array_equal(one.split, [False, True])  # a class too small to split counts as no evidence


def losses_by_class(losses, y):
    return np.bincount(y, losses)


def test_swapping_bits_changes_no_alignment():
    rng = np.random.default_rng(5)
    tau, group, losses = rng.normal(size=(40, 30)), np.arange(40) % 4, rng.uniform(size=40)

    def aligned(group):
        member = np.eye(4)[group]
        columns = tau.T @ member / member.sum(0)
        return group_weighting.scores(columns, group_weighting.softmax_weights(losses @ member / member.sum(0)))

    np.testing.assert_allclose(aligned(group), aligned(group ^ 1), atol=1e-6)


def test_a_class_whose_smaller_side_is_tiny_or_empty_stays_whole():
    tau, y, failed, _, _ = hidden()
    one_sided = lambda score, losses: np.arange(len(score)) < 4
    for split in (one_sided, lambda score, losses: np.zeros(len(score), bool)):
        found = pseudo_groups.pseudo_groups(tau @ tau.T, y, failed, 2, split=split)
        np.testing.assert_array_equal(found.group, 2 * y)
        assert not found.split.any()
    nothing = pseudo_groups.pseudo_groups(np.zeros((400, 400)), y, failed, 2)
    assert not nothing.split.any()
    few = pseudo_groups.pseudo_groups(np.eye(9), np.zeros(9, int), np.ones(9), 3)
    np.testing.assert_array_equal(few.group, 0)
    assert np.isnan(few.separation).all()


def test_auc_is_that_of_scikit_learn_on_the_better_side():
    rng = np.random.default_rng(6)
    for shift in (-1, 1):
        attribute = rng.uniform(size=60) > 0.6
        score = np.round(rng.normal(size=60) + shift * attribute, 1)
        auc = roc_auc_score(attribute, score)
        np.testing.assert_allclose(pseudo_groups.attribute_auc(score, attribute), max(auc, 1 - auc), rtol=1e-5)


def test_bad_input_is_named():
    eye, y = np.eye(12), np.zeros(12, int)
    with pytest.raises(ValueError, match="found labels 0 to 2, expected 0 to 1"):
        pseudo_groups.pseudo_groups(eye, np.arange(12) % 3, np.ones(12), 2)
    with pytest.raises(FloatingPointError, match="not finite"):
        pseudo_groups.pseudo_groups(eye, y, np.full(12, np.nan), 1)
