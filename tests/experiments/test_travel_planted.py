"""Calibration by planted errors: exact maps of large planted problems, copies whose flags are what changed."""

import jax
import numpy as np
import pytest
from scipy.special import expit

from d3mjax.data.sets.shortcut_tables import TABLES
from d3mjax.diagnosis import claims
from experiments.diagnosis import travel, travel_copies, travel_planted
from experiments.diagnosis import travel_recalibrate as recalibrate
from experiments.diagnosis.travel_copies import Copy

FLAT = recalibrate.Prior(np.zeros(2), 1e-6 * np.eye(2))


def problem(numbers, undone, n=40_000, planted=10_000):
    """Log-odds whose map is ``numbers``, and of rows with planted errors: draws of wrong rows, but for those undone."""
    rng = np.random.default_rng(0)
    odds = rng.normal(-2, 3, n)
    g = expit(np.exp(numbers[0]) * odds + numbers[1])
    wrong = rng.random(n) < g
    pool = {kind: odds[wrong == kind] for kind in (True, False)}
    right = rng.random(planted) < undone * wrong.mean()
    drawn = np.where(right, rng.choice(pool[False], planted), rng.choice(pool[True], planted))
    return np.concatenate([odds, drawn]), np.arange(n + planted) >= n, np.concatenate([g, np.full(planted, g.mean())])


@pytest.mark.parametrize("undone", [0.0, 1.0])
def test_the_map_of_a_planted_problem_is_recovered(undone):
    numbers = np.array([-0.4, 0.7])
    odds, planted, _ = problem(numbers, undone)
    fitted = recalibrate.against_rest(odds, planted, undone, FLAT)
    # Ten times the error of Platt's numbers of so many rows with known flags, as presence alone tells less.
    np.testing.assert_allclose(fitted, numbers, atol=0.25)
    p, true = recalibrate.probabilities(fitted, odds[~planted]), recalibrate.probabilities(numbers, odds[~planted])
    assert abs(p - true).mean() < 0.02
    # Planted rows that are taken for the only errors are another map.
    wrong = recalibrate.probabilities(np.array([-0.4, -3.0]), odds[~planted])
    assert abs(wrong - true).mean() > 0.1


def test_right_probabilities_stay_and_a_prior_holds_where_rows_tell_little():
    numbers = np.array([-0.4, 0.7])
    odds, planted, before = problem(numbers, 0.0)
    some = ~planted
    kept = recalibrate.as_before(odds[some], planted[some], before[some], 0.0, FLAT, set_back=True)
    np.testing.assert_allclose(kept, numbers, atol=2e-3)  # of the search
    # With planted rows, whose density is that of wrong ones, the odds rise by ln(1 + P / errors): 10,000 of them.
    share = before[some].mean()
    more = recalibrate.as_before(odds, planted, before, 0.0, FLAT, set_back=False)
    assert more[1] == pytest.approx(numbers[1] + np.log1p(10_000 / (40_000 * share)), abs=0.1)
    firm = recalibrate.Prior(np.array([0.1, -0.2]), 1e9 * np.eye(2))
    np.testing.assert_allclose(recalibrate.against_rest(odds, planted, 0.0, firm), [0.1, -0.2], atol=1e-3)
    slopes, intercepts = np.exp([0.1, 0.2, 0.3]), np.array([0.0, 1.0, 5.0])
    prior = recalibrate.prior_of(slopes, intercepts)
    np.testing.assert_allclose(prior.mean, [0.2, 2.0])
    np.testing.assert_allclose(
        np.linalg.inv(prior.precision), np.cov(np.stack([[0.1, 0.2, 0.3], intercepts])) + 1e-3 * np.eye(2)
    )
    with pytest.raises(ValueError, match="slopes: found those of 1 tables, expected two or more"):
        recalibrate.prior_of(slopes[:1], intercepts[:1])


def test_flags_of_copies_are_the_rows_that_changed():
    table, y = TABLES["planted"].load()
    table, y = travel_copies.tables.take(table, np.arange(200)), y[:200]
    copies = travel_copies.copies_of(jax.random.key(0), table, y, num_classes=2, share=0.1, count=2)
    assert [copy.flags.sum(0).tolist() for copy in copies[:2]] == [[20, 20, 0]] * 2
    for copy in copies[:2]:
        np.testing.assert_array_equal(copy.labels != y, copy.flags[:, 0])
        changed = np.any([a != table.columns[name] for name, a in copy.table.columns.items()], axis=0)
        np.testing.assert_array_equal(changed, copy.flags[:, 1])
        assert not copy.flags[:, :2].all(1).any()
    assert (copies[0].flags != copies[1].flags).any()
    rule = copies[2]
    assert len(rule.table.columns) == len(table.columns) + 1
    np.testing.assert_array_equal(rule.labels, y)
    assert abs(rule.flags.mean(0) - [0, 0, 0.15]).max() <= 1 / 200


def test_variants_read_flags_of_the_copies_alone():
    rng = np.random.default_rng(0)
    n, task = 60, "planted"
    cell = travel_planted.Small(
        task, 0, 0, 0.8, "typos", np.zeros((n, 1)), rng.random((n, 3)) < 0.2, np.zeros(n, int), np.zeros(n, bool),
        np.full((n, 2), 0.5), np.full((n, 2), 0.5),
    )  # fmt: skip
    odds, before = rng.normal(size=(n, 3)), rng.random((n, 3))
    copies = [Copy(np.zeros((n, 1)), rng.random((n, 3)) < 0.2, of_rule) for of_rule in (False, True)]
    copied, prior = [rng.normal(size=(n, 3)) for _ in copies], recalibrate.Prior(np.zeros(2), np.eye(2))
    of = lambda c: travel_planted.variants(c, odds, before, copies, copied, [prior] * 3, 1.0)
    first, other = of(cell), of(cell._replace(flags=~cell.flags))
    for name in (travel_planted.TODAY, travel_planted.AS_BEFORE, travel_planted.SET_BACK, travel_planted.AGAINST):
        np.testing.assert_array_equal(first[name], other[name])
    assert (first[travel_planted.KNOWN] != other[travel_planted.KNOWN]).any()
    np.testing.assert_array_equal(first[travel_planted.TODAY], before)
    np.testing.assert_array_equal(first[travel_planted.AS_BEFORE][:, 2], before[:, 2])
    measured = travel_planted.measures({name: [p] for name, p in first.items()}, [cell])
    claimed = claims.expected_best(before)
    assert measured[travel_planted.TODAY]["label_claims"] == [claimed[:, 0].sum()]


def test_bad_configurations_are_refused():
    with pytest.raises(ValueError, match="seeds: found 1 from 0, expected those of judged"):
        travel_planted.Config(seeds=1)
    with pytest.raises(ValueError, match=r"tasks: found \['iris'\], expected names among those of judged"):
        travel_planted.Config(tasks=("iris",))
    assert travel.Config(seeds=2, fitted=150) == travel_planted.Config().judged
