"""Oddness of rows against regressions of each column on the others."""

import numpy as np

from d3mjax.data import tables
from d3mjax.diagnosis import oddity


def made(n=400):
    rng = np.random.default_rng(0)
    a = rng.normal(size=n)
    b = rng.choice(["x", "y", "z"], n)
    c = a + 0.5 * (b == "x") + 0.1 * rng.normal(size=n)
    return tables.from_columns({"a": a, "b": b, "c": c})


def test_the_surprise_of_a_number_is_its_standardised_residual():
    table = made()
    found = oddity.surprises(table, ridge=1e-9, clip=np.inf)
    x = tables.encode(tables.fit_encoder(table), table).astype(np.float64)
    for column, at in ((0, 0), (2, 4)):
        # One level is left out: the three add up to one, and the intercept is among them.
        others = np.stack([np.ones(len(x)), *(x[:, k] for k in (0, 1, 2, 4) if k != at)], 1)
        residual = x[:, at] - others @ np.linalg.lstsq(others, x[:, at], rcond=None)[0]
        size = np.abs(residual)
        np.testing.assert_allclose(found[:, column], size / np.median(size) * 0.6745, rtol=1e-4, atol=1e-5)


def test_what_is_planted_is_odd_and_the_order_of_rows_does_not_matter():
    table = made()
    c = table.columns["c"].copy()
    c[7] = 40.0
    code = table.columns["b"].copy()
    odd = table._replace(columns={**table.columns, "c": c, "b": code})
    found = oddity.scores(odd)
    assert found.shape == (400, len(oddity.NAMES))
    assert found[:, 0].argmax() == found[:, 2].argmax() == found[:, 6].argmax() == 7
    order = np.random.default_rng(1).permutation(400)
    np.testing.assert_allclose(oddity.scores(tables.take(odd, order)), found[order], rtol=1e-8, atol=1e-9)
    counts = np.bincount(code)
    np.testing.assert_allclose(found[:, 8], -np.log(counts[code] / 400))


def test_columns_of_one_kind_alone():
    table = made()
    numbers = table._replace(columns={n: table.columns[n] for n in "ac"}, levels={})
    assert not oddity.scores(numbers)[:, 8].any()
    texts = table._replace(columns={"b": table.columns["b"]})
    assert not oddity.scores(texts)[:, 6:8].any()


def test_columns_that_err_together_are_found():
    """A fifth of the rows has two of six columns drawn anew: what no column shows is plain from both."""
    rng = np.random.default_rng(2)
    distances = np.abs(rng.normal(size=(1000, 6)))
    wrong = rng.random(1000) < 0.2
    distances[wrong, 1] += 1.5
    distances[wrong, 4] += 1.5
    rank = lambda s: s.argsort().argsort()
    auc = lambda s: (rank(s)[wrong].mean() - (wrong.sum() - 1) / 2) / (~wrong).sum()
    both = auc(distances[:, 1] + distances[:, 4])
    assert auc(oddity.joint(distances)) > auc(distances.max(1)) + 0.05
    assert auc(oddity.mixture(distances, like=distances)) > both - 0.03


def test_columns_without_variation_or_values_say_nothing():
    """Ties share their rank: the order of rows must not come in by a constant column."""
    table = made()
    n = len(table.id)
    more = {"same": np.full(n, 3.0), "none": np.full(n, np.nan)}
    wider = table._replace(columns={**table.columns, **more})
    found = oddity.scores(wider)
    assert np.isfinite(found).all()
    order = np.random.default_rng(3).permutation(n)
    np.testing.assert_allclose(oddity.scores(tables.take(wider, order)), found[order], rtol=1e-4, atol=1e-5)
    distances = np.stack([np.arange(n)[::-1] % 7.0, np.zeros(n), np.zeros(n)], 1)
    np.testing.assert_allclose(np.corrcoef(oddity.joint(distances), distances[:, 0])[0, 1], 1, atol=1e-6)
