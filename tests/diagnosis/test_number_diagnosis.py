"""Diagnosis of a table whose labels are numbers, by the diagnoser that ships."""

import jax
import numpy as np
import pytest

import d3mjax
from d3mjax.data import tables
from d3mjax.diagnosis import repair

WRONG = 15


def planted(seed, n, wrong=0):
    """A table whose labels, in the thousands, follow two numbers; the first ``wrong`` labels do not."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, n))
    y = 5000.0 + 1000 * a - 700 * b + 50 * rng.normal(size=n)
    y[:wrong] += 4000.0
    return tables.from_columns({"a": a, "b": b}), y


@pytest.fixture(scope="module")
def result():
    return d3mjax.diagnose(jax.random.key(0), *planted(0, 200, WRONG), *planted(1, 64), networks=1)


def test_wrong_numbers_are_claimed_and_proposals_are_in_their_unit(result):
    claimed = result.claims[:, 0]
    assert claimed[:WRONG].mean() > 0.7
    assert claimed[WRONG:].mean() < 0.1
    truth = planted(0, 200)[1]
    recorded = planted(0, 200, WRONG)[1]
    before, after = (abs(labels[:WRONG] - truth[:WRONG]) for labels in (recorded, result.info.proposed))
    assert np.median(after) < 0.5 * np.median(before)
    assert result.info.correct is None


def test_the_recommended_repair_drops_wrong_numbers(result):
    table, y = planted(0, 200, WRONG)
    repaired, risk = repair.recommended(table, y, result.claims, result.probabilities, num_classes=None)
    np.testing.assert_array_equal(repaired.labels, y)
    assert (repaired.weights[:WRONG] == 0).mean() > 0.5
    assert risk.dropped.shape == (1,)


def test_two_values_are_no_regression():
    table, y = planted(0, 80)
    with pytest.raises(ValueError, match=r"y: found 2 different labels \[0\.0, 1\.0\].*use classification"):
        d3mjax.diagnose(jax.random.key(0), table, (y > 5000).astype(float), *planted(1, 64))
