"""Planted errors against a recount of the table: exact numbers, flags that tell the truth, keys by identity."""

import jax
import numpy as np
import pytest

from d3mjax.data import tables
from d3mjax.data.planted import corruptions, mixed_errors
from d3mjax.data.planted.mixed_errors import Options, Rule

RULE = Rule("red is positive", lambda table: tables.codes(table, "colour", "red") == 0, lambda y: y == 1)
BALANCED = RULE._replace(balanced=True)


def made(n=900, seed=0):
    rng = np.random.default_rng(seed)
    columns = {
        "size": rng.lognormal(size=n),
        "zero": np.where(rng.random(n) < 0.6, 0.0, rng.normal(size=n)),
        "colour": rng.choice(["red", "green", "blue"], n, p=[0.5, 0.2, 0.3]),
        "shape": rng.choice(["round", "flat"], n),
    }
    ids = rng.permutation(5 * n)[:n] - 100
    y = (rng.random(n) < np.where(columns["colour"] == "red", 0.6, 0.4)).astype(np.int32)
    return tables.from_columns(columns, id=ids), y


def changed(errors):
    pairs = zip(errors.table.columns.values(), errors.clean_table.columns.values(), strict=True)
    return np.stack([a != b for a, b in pairs], 1)


@pytest.mark.parametrize(
    ("clean", "rule", "per_row"),
    [*((clean, RULE, False) for clean in (0.4, 0.5, 0.6, 0.7, 0.8)), (0.5, BALANCED, False), (0.6, BALANCED, True)],
)
def test_flags_are_the_truth_and_counts_exact(clean, rule, per_row):
    errors = mixed_errors.inject(
        jax.random.key(1), *made(), rule, num_classes=2, options=Options(clean, per_row=per_row)
    )
    wrong, broken, rare = errors.flags.T
    n = len(errors.labels)
    assert wrong.sum() == broken.sum() == int((1 - clean) * n / 2 + 1e-9)
    assert not (wrong & broken).any()
    np.testing.assert_array_equal(errors.labels != errors.clean_labels, wrong)
    np.testing.assert_array_equal(changed(errors).any(1), broken)
    condition = tables.codes(errors.clean_table, "colour", "red") == 0
    np.testing.assert_array_equal(condition != (errors.clean_labels == 1), rare)
    # A balanced rule has four cells, each rounded down.
    assert abs(rare.sum() - 0.15 * n) <= (2 if rule.balanced else 1)
    if rule.balanced:
        assert abs(condition.sum() - n / 2) <= 3
        assert abs((errors.clean_labels == 1).sum() - n / 2) <= 3


def test_rows_are_those_given_and_as_many_as_asked_for():
    table, y = made()
    by_id = dict(zip(table.id.tolist(), y.tolist(), strict=True))
    errors = mixed_errors.inject(jax.random.key(2), table, y, RULE, num_classes=2, options=Options(size=301))
    assert len(errors.labels) == 301
    assert [by_id[i] for i in errors.table.id.tolist()] == errors.clean_labels.tolist()


def test_one_draw_for_the_table_or_one_for_each_row():
    for key in range(6):
        errors = mixed_errors.inject(jax.random.key(key), *made(), None, num_classes=2, options=Options(0.2))
        columns = changed(errors).sum(0)
        # A kind of error hits all flagged rows in the same columns.
        assert set(columns.tolist()) <= {0, errors.flags[:, 1].sum()}
    errors = mixed_errors.inject(jax.random.key(0), *made(), None, num_classes=2, options=Options(0.2, per_row=True))
    assert (changed(errors).sum(0) > 0).all()
    assert not errors.flags[:, 2].any()


def test_the_order_of_rows_changes_nothing():
    table, y = made()
    order = np.random.default_rng(3).permutation(len(y))
    options = {"num_classes": 2, "options": Options(per_row=True)}
    a = mixed_errors.inject(jax.random.key(4), table, y, RULE, **options)
    b = mixed_errors.inject(jax.random.key(4), tables.take(table, order), y[order], RULE, **options)
    back = np.argsort(b.table.id), np.argsort(a.table.id)
    np.testing.assert_array_equal(b.table.id[back[0]], a.table.id[back[1]])
    np.testing.assert_array_equal(b.flags[back[0]], a.flags[back[1]])
    np.testing.assert_array_equal(b.labels[back[0]], a.labels[back[1]])
    for name, column in a.table.columns.items():
        np.testing.assert_array_equal(b.table.columns[name][back[0]], column[back[1]])


def test_train_and_validation_of_one_key_are_broken_alike():
    first, second = (mixed_errors.inject(jax.random.key(5), *made(seed=s), None, num_classes=2) for s in (0, 1))
    np.testing.assert_array_equal(changed(first).any(0), changed(second).any(0))


def test_outliers_and_scales_by_hand():
    table, _ = made()
    flags = np.arange(len(table.id)) % 3 == 0
    size = table.columns["size"]
    out = corruptions.break_features(
        jax.random.key(6), table, flags, kinds=(corruptions.outlier,), max_columns=4, per_row=True
    )
    moved = out.columns["size"] != size
    far = (out.columns["size"][moved] - size.mean()) / size.std()
    np.testing.assert_allclose(np.abs(far), 5, rtol=1e-4)
    assert 0.3 < (far > 0).mean() < 0.7  # 110 draws of a fair coin: four deviations are .19
    out = corruptions.break_features(
        jax.random.key(6), table, flags, kinds=(corruptions.scale,), max_columns=4, per_row=True
    )
    moved = out.columns["size"] != size
    ratio = out.columns["size"][moved] / size[moved]
    assert ratio.min() >= 0.2
    assert ratio.max() <= 5


def test_numbers_as_labels_are_moved_far():
    table, _ = made()
    y = np.random.default_rng(7).gamma(2.0, size=len(table.id))
    errors = mixed_errors.inject(jax.random.key(8), table, y, None, num_classes=None)
    wrong = errors.flags[:, 0]
    moved = np.abs(errors.labels - errors.clean_labels)
    assert moved[wrong].min() >= np.ptp(y) / 4 * (1 - 1e-5)
    assert not moved[~wrong].any()
    assert errors.labels.min() >= y.min()
    assert errors.labels.max() <= y.max() + 1e-5


def test_labels_may_be_wrong_by_class_and_kinds_may_meet():
    options = Options(0.4, class_rates=(0.0, 1.0), overlap=True)
    errors = mixed_errors.inject(jax.random.key(9), *made(), None, num_classes=2, options=options)
    wrong, broken, _ = errors.flags.T
    assert (errors.clean_labels[wrong] == 1).all()
    assert wrong.sum() == int(0.3 * len(wrong))
    assert (wrong & broken).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clean": 1.5}, "clean: found 1.5"),
        ({"clean": 0.5, "size": 5000}, "size: found 5000 for rule 'red is positive', expected at most"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mixed_errors.inject(jax.random.key(0), *made(), RULE, num_classes=2, options=Options(**options))
    none = Rule("no row", lambda table: np.zeros(len(table.id), bool), lambda y: y >= 0)
    with pytest.raises(ValueError, match=r"rule: found \[0, 900\] rows for and against 'no row'"):
        mixed_errors.inject(jax.random.key(0), *made(), none, num_classes=2)
