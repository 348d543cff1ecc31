"""Repair by hand: what is flagged changes as it should, the rest is what it was, and lost minorities are noticed."""

from functools import partial

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from d3mjax.data import tables
from d3mjax.diagnosis import repair
from d3mjax.diagnosis.repair import FEATURE, LABEL, MINORITY


def planted(n=400, seed=0):
    """Two columns of numbers and two of levels, whose means and modes depend on the label."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n).astype(np.int32)
    table = tables.from_columns(
        {
            "age": rng.normal(40 + 10 * y, 5),
            "work": np.where(rng.random(n) < 0.9, np.where(y, "office", "farm"), "shop"),
            "pay": rng.normal(100 * y, 1),
            "sex": np.where(rng.random(n) < 0.5, "f", "m"),
        },
        levels={"work": ("farm", "office", "sea", "shop")},
    )
    return table, y


def flags_of(n, *, label=(), feature=(), minority=()):
    flags = np.zeros((n, 3), bool)
    for type, rows in ((LABEL, label), (FEATURE, feature), (MINORITY, minority)):
        flags[list(rows), type] = True
    return flags


@pytest.mark.parametrize("restore", [None, repair.impute])
@pytest.mark.parametrize("weigh", [repair.halve_majority, repair.equal_mass, repair.equal_groups])
def test_without_flags_nothing_changes(restore, weigh):
    table, y = planted()
    got = repair.repair(table, y, flags_of(len(y)), num_classes=2, restore=restore, weigh=weigh)
    assert got.table is table
    np.testing.assert_array_equal(got.labels, y)
    assert got.labels.dtype == y.dtype
    np.testing.assert_array_equal(got.weights, np.ones(len(y), np.float32))


def test_every_type_is_repaired_in_its_own_way():
    table, y = planted()
    before = {name: a.copy() for name, a in table.columns.items()}
    flags = flags_of(len(y), label=[0, 1], feature=[1, 2], minority=[3, 4, 2])
    got = repair.repair(table, y, flags, num_classes=2)
    np.testing.assert_array_equal(np.flatnonzero(got.labels != y), [0, 1])
    np.testing.assert_array_equal(got.weights[:6], [0.5, 0, 0, 1, 1, 0.5])
    assert (got.weights[5:] == 0.5).all()
    assert got.table is table
    for name, a in before.items():
        np.testing.assert_array_equal(table.columns[name], a)


def test_relabelling_two_classes_many_classes_and_proposals():
    y, flagged = np.array([0, 1, 2, 1]), np.array([True, True, False, False])
    labels, kept = repair.relabel(np.array([0, 1, 1, 0]), flagged, 2)
    np.testing.assert_array_equal(labels, [1, 0, 1, 0])
    assert kept.all()
    labels, kept = repair.relabel(y, flagged, 3)
    np.testing.assert_array_equal(labels, y)
    np.testing.assert_array_equal(kept, ~flagged)
    labels, kept = repair.relabel(y, flagged, 3, proposed=np.array([2, 0, 0, 0]))
    np.testing.assert_array_equal(labels, [2, 0, 2, 1])
    assert kept.all()


def test_imputation_takes_mean_and_mode_of_sound_rows_of_the_class():
    table, y = planted()
    columns = {name: a.copy() for name, a in table.columns.items()}
    ones = np.flatnonzero(y == 1)
    broken, wild, odd, missing = ones[:4]
    columns["pay"][[broken, wild]] = 130, 400  # 30 and 300 deviations from the mean of the class
    columns["work"][[broken, odd]] = 2, 0  # no row is at sea; no row of this class works on a farm
    columns["work"][missing], columns["age"][missing] = -1, np.nan
    dirty = table._replace(columns=columns)
    flags = flags_of(len(y), feature=[broken, odd, missing], label=[wild])
    sound = ~flags.any(1)
    got = repair.repair(dirty, y, flags, num_classes=2, restore=repair.impute)
    fixed = got.table.columns
    like = sound & (y == 1)
    np.testing.assert_allclose(fixed["pay"][broken], columns["pay"][like].mean())
    assert fixed["pay"][wild] == 400  # not flagged
    assert fixed["work"][broken] == fixed["work"][odd] == 1  # office
    assert fixed["work"][missing] == -1
    assert np.isnan(fixed["age"][missing])
    assert fixed["age"][broken] == columns["age"][broken]  # typical
    np.testing.assert_array_equal(fixed["sex"], columns["sex"])
    np.testing.assert_array_equal(got.weights, 1)
    untouched = np.ones(len(y), bool)
    untouched[[broken, odd]] = False
    for name in columns:
        np.testing.assert_array_equal(fixed[name][untouched], columns[name][untouched])


def test_a_level_goes_when_an_error_explains_it_better():
    # Of 5 levels, altered with 0.2: the odds are 0.2 / 4 against 0.8 s, so a level goes below s = 1 / 16.
    values = np.repeat([0, 1, 2, 3], [80, 9, 6, 5])
    unlike, mode = repair._unlike_levels(np.array([0, 1, 2, 3, 4, -1]), values, 5, 0.2)
    np.testing.assert_array_equal(unlike, [False, False, True, True, True, False])
    assert mode == 0


def test_a_class_without_sound_rows_stays_as_it_is():
    table, y = planted()
    flagged = y == 1
    got = repair.impute(table, y, flagged, ~flagged, z=0.1)
    for name in table.columns:
        np.testing.assert_array_equal(got.columns[name], table.columns[name])


def test_a_dropped_row_counts_for_no_mean_and_no_mass():
    minority = np.array([1, 1, 0, 0, 0, 0], bool)
    kept = np.array([1, 0, 1, 1, 1, 0], bool)
    y = np.array([0, 0, 0, 1, 1, 1])
    mass = repair.equal_mass(minority, y, kept)
    np.testing.assert_allclose(mass[kept], [2, 2 / 3, 2 / 3, 2 / 3])  # 4 / (2 * 1) and 4 / (2 * 3)
    groups = repair.equal_groups(minority, y, kept)
    np.testing.assert_allclose(groups[kept], [4 / 3, 4 / 3, 2 / 3, 2 / 3])  # (0, 1), (0, 0) and twice (1, 0)
    np.testing.assert_array_equal(repair.halve_majority(minority, y, minority), 1)


def test_caution_takes_back_what_may_be_a_minority_row():
    p = np.array([[0.9, 0, 0.2], [0.6, 0, 0.55], [0.5, 0, 0.7]], np.float32)
    flags = p > 0.45
    got = repair.cautious(flags, p)
    np.testing.assert_array_equal(got[:, LABEL], [True, False, False])
    np.testing.assert_array_equal(got[:, 1:], flags[:, 1:])
    assert flags[1, LABEL]  # the caller's own stay
    np.testing.assert_array_equal(repair.cautious(flags, p, margin=-1.0), flags)


class TestWorstGroupRisk:
    """40 rows of each label; of label 1, 10 are of the minority."""

    y = np.repeat([0, 1], 40)
    minority = np.arange(80) >= 70

    def risk(self, flags, **options):
        table = tables.from_columns({"a": np.arange(80.0)})
        probabilities = np.zeros((80, 3), np.float32)
        probabilities[self.minority, MINORITY] = 0.8
        probabilities[:, LABEL] = 0.1
        weigh = options.pop("weigh", lambda minority, labels, kept: np.ones(len(labels), np.float32))
        repaired = repair.repair(table, self.y, flags, num_classes=2, weigh=weigh)
        return repair.worst_group_risk(self.y, repaired, probabilities, num_classes=2, **options)

    def test_doing_nothing_is_no_risk(self):
        found = self.risk(flags_of(80))
        assert not found.likely
        assert found.value == 0
        np.testing.assert_array_equal(found.dropped, [np.nan, 0])  # label 0 has no minority

    def test_dropping_and_turning_the_minority_is_one(self):
        dropped = self.risk(flags_of(80, feature=range(70, 75)))
        assert dropped.likely
        np.testing.assert_allclose([dropped.value, dropped.dropped[1], dropped.turned[1]], [0.5, 0.5, 0])
        both = self.risk(flags_of(80, label=range(70, 75), feature=[70]))
        np.testing.assert_allclose([both.value, both.dropped[1], both.turned[1]], [0.5, 0.1, 0.4])
        assert "label 1, 10% are dropped and 40% get another label" in both.reason
        assert not self.risk(flags_of(80, feature=range(70, 75)), tolerance=0.6).likely

    def test_weighing_up_the_rest_does_not_make_good_for_it(self):
        flags = flags_of(80, feature=range(70, 75), minority=range(70, 80))
        assert self.risk(flags, weigh=repair.equal_mass).value == self.risk(flags).value

    def test_dropping_others_and_weighing_up_is_none(self):
        assert self.risk(flags_of(80, feature=range(10), label=range(50, 60))).value == 0
        assert self.risk(flags_of(80, minority=range(70, 80)), weigh=repair.equal_mass).value == 0

    def test_rows_that_the_model_has_right_may_go(self):
        correct = np.ones(80, bool)
        correct[75:] = False
        assert self.risk(flags_of(80, feature=range(75, 80)), correct=correct).value == pytest.approx(1)
        assert self.risk(flags_of(80, feature=range(70, 75)), correct=correct).value == 0

    def test_without_a_minority_there_is_no_risk(self):
        table = tables.from_columns({"a": np.arange(80.0)})
        repaired = repair.repair(table, self.y, flags_of(80, label=[3]), num_classes=2)
        found = repair.worst_group_risk(self.y, repaired, np.zeros((80, 3)), num_classes=2)
        assert not found.likely
        assert "no row" in found.reason


def test_options_of_imputation_are_given_by_partial():
    table, y = planted()
    flags = flags_of(len(y), feature=[0])
    strict = repair.repair(table, y, flags, num_classes=2, restore=partial(repair.impute, z=0.0))
    like = (y == y[0]) & (np.arange(len(y)) > 0)
    np.testing.assert_allclose(strict.table.columns["age"][0], table.columns["age"][like].mean())


def shortcut(n, rng, *, minority_share):
    """Features of a weak cause and a strong shortcut, labels, and the minority, where the shortcut points elsewhere."""
    y, minority = rng.integers(0, 2, n), rng.random(n) < minority_share
    sign, side = 2 * y - 1, np.where(minority, 1 - 2 * y, 2 * y - 1)
    return rng.normal(np.stack([sign, 2 * side], 1), [1.0, 0.7]), y, minority


def test_the_risk_says_whether_the_worst_group_falls():
    rng = np.random.default_rng(0)
    x, clean, minority = shortcut(2000, rng, minority_share=0.15)
    test_x, test_y, test_minority = shortcut(4000, rng, minority_share=0.5)
    wrong = rng.random(2000) < 0.15
    y = np.where(wrong, 1 - clean, clean)
    table = tables.from_columns({"cause": x[:, 0], "shortcut": x[:, 1]})

    def worst_group(labels, weights):
        right = LogisticRegression().fit(x, labels, sample_weight=weights).predict(test_x) == test_y
        return min(right[(test_y == c) & (test_minority == m)].mean() for c in (0, 1) for m in (False, True))

    dirty = worst_group(y, np.ones(2000))
    correct = LogisticRegression().fit(x, y).predict(x) == y
    # Who goes against the shortcut is wrongly labelled or of the minority: the diagnosis knows no more in `blind`.
    against = (x[:, 1] > 0) != (y == 1)
    blind = np.where(against[:, None], [0.5, 0, 0.5], [0.05, 0, 0.05])
    sharp = np.stack([np.where(wrong, 0.9, 0.05), np.zeros(2000), np.where(minority, 0.9, 0.05)], 1)
    change, risk = {}, {}
    for name, p, flags in (
        ("turn all that is against it", blind, np.stack([against, 0 * against, 0 * against], 1) > 0),
        ("drop all that is against it", blind, np.stack([0 * against, against, 0 * against], 1) > 0),
        ("know", sharp, sharp > 0.5),
    ):
        repaired = repair.repair(table, y, flags, num_classes=2)
        change[name] = worst_group(repaired.labels, repaired.weights) - dirty
        risk[name] = repair.worst_group_risk(y, repaired, p, num_classes=2, correct=correct)
    assert change["turn all that is against it"] < -0.1
    assert change["drop all that is against it"] < -0.1
    assert change["know"] > 0.1
    assert [found.likely for found in risk.values()] == [True, True, False]
    held = repair.cautious(np.stack([against, 0 * against, 0 * against], 1) > 0, blind)
    assert not held.any()


def test_the_recommended_repair_weighs_groups_only_where_the_guard_warns():
    n = 40
    table = tables.from_columns({"a": np.arange(n, dtype=float)})
    y = np.arange(n) % 2
    p = np.full((n, 3), 0.1)
    flags = np.zeros((n, 3), bool)
    p[:6, 0], flags[:6, 0] = 0.9, True  # wrong labels, beyond doubt
    p[6:16, 2], flags[6:16, 2] = 0.8, True  # a minority
    safe, risk = repair.recommended(table, y, flags, p, num_classes=2, correct=np.arange(n) >= 16)
    assert not risk.likely
    np.testing.assert_array_equal(safe.labels, np.where(flags[:, 0], 1 - y, y))
    np.testing.assert_array_equal(safe.weights, 1)
    # The same where the rows that the model gets wrong and that may be rare are those to be turned.
    warned, risk = repair.recommended(table, y, flags, p, num_classes=2, correct=np.arange(n) >= 6)
    assert risk.likely
    np.testing.assert_array_equal(warned.labels, safe.labels)
    mass = [warned.weights[(warned.labels == c) & (flags[:, 2] == m)].sum() for c in (0, 1) for m in (False, True)]
    np.testing.assert_allclose(mass, n / 4, rtol=1e-6)


def test_weights_are_the_probability_to_be_sound_and_rare_rows_that_lose_theirs_are_a_risk():
    n = 40
    table, y = tables.from_columns({"a": np.arange(n, dtype=float)}), np.arange(n) % 2
    p = np.zeros((n, 3))
    p[:10, 0], p[5:15, 1], p[20:30, 2] = 0.75, 0.5, 1.0
    repaired, risk = repair.weighed(table, y, p, num_classes=2, lift=0.0)
    np.testing.assert_allclose(repaired.weights, np.repeat([0.25, 0.125, 0.5, 1.0], [5, 5, 5, 25]))
    np.testing.assert_array_equal(repaired.labels, y)
    assert repaired.table is table
    assert (risk.value, risk.likely) == (0, False)
    p[20:30, 0] = 0.75
    repaired, risk = repair.weighed(table, y, p, num_classes=2, lift=0.0)
    mean = (5 * 0.25 + 5 * 0.125 + 5 * 0.5 + 10 * 0.25 + 15) / 40
    np.testing.assert_allclose(risk.dropped, 1 - 0.25 / mean)
    assert risk.likely
    assert (
        risk.reason == f"likely minority rows, label 0, lose {1 - 0.25 / mean:.0%} of their weight beside the mean row"
    )
    np.testing.assert_array_equal(risk.turned, 0)


@pytest.mark.parametrize("num_classes", [2, None])
def test_likely_minority_rows_are_lifted_by_a_power_of_their_rarity(num_classes):
    y = np.array([0] * 12 + [1] * 8)
    table = tables.from_columns({"a": np.arange(20, dtype=float)})
    p = np.zeros((20, 3))
    p[:2, 2], p[12:20, 2], p[5, 0] = 0.5, 0.75, 0.5
    repaired, _ = repair.weighed(table, y, p, num_classes=num_classes, lift=0.5)
    rare = [1 + 0.0, 6.0] if num_classes else [7.0, 7.0]
    sound = [10.5, 2.0] if num_classes else [12.5, 12.5]
    ratio = np.sqrt(np.clip(np.array(sound) / rare, 1, 10))
    expected = np.r_[[0.5 + 0.5 * ratio[0]] * 2, [1] * 3, 0.5, [1] * 6, [0.25 + 0.75 * ratio[1]] * 8]
    np.testing.assert_allclose(repaired.weights, expected, rtol=1e-6)
    # At 1 likely rows of both kinds have about equal mass, unless one is more than ten times as rare.
    all_rare = np.where(np.arange(20)[:, None] < 1, [[0, 0, 1.0]], [[0, 0, 0.0]])
    one, _ = repair.weighed(table, np.zeros(20, int), all_rare, num_classes=num_classes, lift=1.0)
    np.testing.assert_allclose(one.weights[:1].sum(), 10)


def test_numbers_as_labels_are_dropped_where_wrong():
    y = np.array([0.5, 2.5, 7.0, 1.0])
    table = tables.from_columns({"a": np.array([1.0, 1.1, 90.0, 0.9])})
    flags = np.zeros((4, 3), bool)
    flags[1, 0] = flags[2, 1] = True
    found = repair.repair(table, y, flags, num_classes=None)
    np.testing.assert_array_equal(found.labels, y)
    np.testing.assert_array_equal(found.weights > 0, [True, False, False, True])
