"""Undone errors: gains are those of a recomputation, planted errors stand out, a table may lack numbers."""

import jax
import numpy as np
import pytest

from d3mjax.data import tables
from d3mjax.data.planted import table_errors
from d3mjax.diagnosis import claims, undone


def made(n=300, d=6):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 20 * rng.normal(size=d)
    columns = {f"a{i}": column for i, column in enumerate(x.T)}
    return tables.from_columns({**columns, "word": rng.choice(["x", "y"], n)})


def distance(numbers, raw):
    z = numbers.standard(raw)
    return np.einsum("ni,ij,nj->n", z, numbers.precision, z)


def test_gains_are_differences_of_distances():
    numbers = undone._numbers(made())
    assert numbers is not None
    raw, before = numbers.raw, distance(numbers, numbers.raw)
    explicit = {"swaps": [], "shifts": [], "units": []}
    for i in range(6):
        for j in range(i + 1, 6):
            back = raw.copy()
            back[:, [i, j]] = raw[:, [j, i]]
            explicit["swaps"].append(before - distance(numbers, back))
        for factor in table_errors.UNITS:
            back = raw.copy()
            back[:, i] /= factor
            explicit["units"].append(before - distance(numbers, back))
    for first in range(4):
        back = raw.copy()
        back[:, first:] = raw[:, [*range(first + 1, 6), first]]
        explicit["shifts"].append(before - distance(numbers, back))
    for name, form in (("swaps", undone._swaps), ("shifts", undone._shifts), ("units", undone._units)):
        tried = np.concatenate(list(form(numbers)))
        tried = tried[int(name != "units") :]  # the first is that of no such error
        scale = np.abs(before).max()
        np.testing.assert_allclose(tried, np.stack(explicit[name]), atol=1e-9 * scale)


FORMS = ("swapped columns", "shifted rows", "unit change")


@pytest.mark.parametrize(("form", "name"), list(zip(FORMS, undone.NAMES, strict=True)))
def test_broken_rows_gain_and_others_do_not(form, name):
    table, flags = table_errors.plant(jax.random.key(1), made(), table_errors.FORMS[form], 30)
    gain = undone.gains(table)[:, undone.NAMES.index(name)]
    assert claims.average_precision(gain, flags) > 0.9
    assert (gain[~flags] < undone.USUAL).mean() > 0.95


def test_tables_without_numbers_gain_nothing():
    words = tables.from_columns({"word": np.array(["x", "y"] * 10)})
    assert not undone.gains(words).any()
    one = tables.from_columns({"a": np.arange(20.0)})
    assert not undone.gains(one)[:, :2].any()
    missing = made()
    missing.columns["a0"][:] = np.nan
    missing.columns["a1"][::3] = np.nan
    missing.columns["a2"][:] = 1
    assert np.isfinite(undone.gains(missing)).all()
