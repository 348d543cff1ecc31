"""Rules made from a table: halves of columns and classes, the least true first, exact minorities."""

import jax
import numpy as np
import pytest

from d3mjax.data import tables
from d3mjax.data.planted import mixed_errors
from d3mjax.data.planted.made_rules import deal, made_rules


def made(n=400):
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([0, 1, 2], [n // 2, n // 4, n // 4])).astype(np.int32)
    columns = {
        "truth": y + 0.001 * rng.random(n),
        "noise": rng.normal(size=n),
        "mostly zero": np.where(rng.random(n) < 0.6, 0.0, rng.random(n)),
        "colour": rng.choice(["red", "green", "blue", "grey"], n, p=[0.4, 0.3, 0.2, 0.1]),
        "answer": np.where(y > 0, "yes", "no"),  # no row against its rule
    }
    return tables.from_columns(columns), y


def test_conditions_and_labels_are_halves():
    table, y = made()
    rules = {rule.name.split()[0]: rule for rule in made_rules(table, y, 9)}
    assert set(rules) == {"truth", "noise", "mostly", "colour"} - {"truth"}
    assert rules["colour"].name == "colour blue or green is class 1 or 2"
    for rule in rules.values():
        assert rule.balanced
        np.testing.assert_array_equal(rule.label(y), y > 0)
    noise = rules["noise"].condition(table)
    np.testing.assert_array_equal(noise, table.columns["noise"] > np.median(table.columns["noise"]))
    assert noise.sum() == 200
    assert rules["mostly"].name == "mostly zero above 0 is class 1 or 2"
    assert rules["mostly"].condition(table).sum() == (table.columns["mostly zero"] > 0).sum()


def test_rules_that_are_least_true_come_first():
    table, y = made()
    rules = made_rules(table, y, 9)
    strength = [abs(np.corrcoef(rule.condition(table), y > 0)[0, 1]) for rule in rules]
    assert strength == sorted(strength)
    assert [rule.name for rule in made_rules(table, y, 2)] == [rule.name for rule in rules[:2]]
    for rule in rules:
        size = mixed_errors.most_rows(table, y, rule)
        index = mixed_errors.subset(jax.random.key(0), table, y, rule)
        assert size - 4 < len(index) <= size  # each of four kinds is rounded down
        rare = mixed_errors.minority(rule, tables.take(table, index), y[index])
        assert abs(rare.sum() - 0.15 * size) <= 2


def test_a_missing_number_does_not_meet_a_condition():
    table, y = made()
    column = table.columns["noise"].copy()
    column[:50] = np.nan
    (rule,) = made_rules(table._replace(columns={"noise": column}), y, 9)
    assert not rule.condition(table._replace(columns={"noise": column}))[:50].any()
    assert rule.condition(table._replace(columns={"noise": column})).sum() == 175


def test_a_dealt_column_follows_its_rule_but_for_the_flagged_rows():
    table, y = made()
    order = np.random.default_rng(1).permutation(len(y))
    for rule in made_rules(table, y, 9):
        widened, rare = deal(jax.random.key(0), table, y, rule)
        (name,) = widened.columns.keys() - table.columns.keys()
        column = table._replace(columns={**table.columns, rule.column: widened.columns[name]})
        inside = rule.label(y)
        np.testing.assert_array_equal(rule.condition(column) != inside, rare)
        assert rare[inside].sum() == rare[~inside].sum() == 30
        assert set(widened.columns[name]) <= set(table.columns[rule.column])
        again, flags = deal(jax.random.key(0), tables.take(table, order), y[order], rule)
        np.testing.assert_array_equal(flags, rare[order])
        np.testing.assert_array_equal(again.columns[name], widened.columns[name][order])
    lowest = np.array([np.argmin(table.columns["noise"])])
    (rule,) = (rule for rule in made_rules(table, y, 9) if rule.column == "noise")
    with pytest.raises(ValueError, match="rule: found 0 of 1 rows for"):
        deal(jax.random.key(0), tables.take(table, lowest), y[lowest], rule)
