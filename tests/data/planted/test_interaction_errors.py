"""Errors planted in interactions: exact counts, one error a row, whole records, flags by id, nothing else changed."""

import jax
import numpy as np
import pytest
from made_ratings import made

from d3mjax.data.planted import interaction_errors, mixed_errors
from d3mjax.data.planted.interaction_errors import Options
from d3mjax.data.planted.mixed_errors import Rule
from d3mjax.data.sets import ratings

SIDES = ("item", "user")
MATCH = Rule(
    "the old take the loud, the young the quiet",
    lambda t: np.where(
        t.columns["user: age"] == 0, t.columns["item: kinds: loud"] == 1, t.columns["item: kinds: quiet"] == 1
    ),
    lambda y: y == 1,
    balanced=True,
)


@pytest.fixture(scope="module")
def parts():
    """Samples of many items, of which many occur once."""
    return ratings.samples(made(users=60, items=400, per_user=30), last=20)


def same(a, b):
    return (a == b) | ((a != a) & (b != b))


@pytest.mark.parametrize("clean", [0.5, 0.8, 0.9])
def test_counts_are_exact_and_flags_are_true(parts, clean):
    before, n = parts[0], 400
    errors = interaction_errors.inject(jax.random.key(1), before, MATCH, options=Options(clean=clean, size=n))
    after, original = errors.samples, errors.clean
    flipped, broken, rare = errors.flags.T
    num = int((1 - clean) * n + 1e-9) - rare.sum()
    assert abs(rare.sum() - 0.1 * n) <= 2
    assert (flipped.sum(), broken.sum()) == (num // 2, num - num // 2)
    assert errors.flags.sum(1).max() <= 1
    np.testing.assert_array_equal(rare, MATCH.condition(original.table) != (original.y == 1))
    at = {number: i for i, number in enumerate(before.table.id.tolist())}
    kept = ratings.take(before, np.array([at[number] for number in original.table.id.tolist()]))
    np.testing.assert_array_equal(kept.y, original.y)
    np.testing.assert_array_equal(after.y != original.y, flipped)
    for name in ("user", "item", "history", "time"):
        np.testing.assert_array_equal(getattr(after, name), getattr(kept, name))
    equal = np.stack([same(after.table.columns[name], a) for name, a in original.table.columns.items()])
    np.testing.assert_array_equal(~equal.all(0), broken)


def test_records_are_broken_whole_and_alike(parts):
    errors = interaction_errors.inject(jax.random.key(2), parts[0], MATCH, options=Options(clean=0.4, size=400))
    after, original, broken = errors.samples, errors.clean, errors.flags[:, 1]
    wrong = {name: ~same(after.table.columns[name], a) for name, a in original.table.columns.items()}
    whole = {side: np.zeros(len(broken), bool) for side in SIDES}
    for side in SIDES:
        entity = getattr(after, side)
        features = interaction_errors.features_of(after, side)
        of_side = np.any([wrong[name] for names in features for name in names], axis=0)
        for e in np.unique(entity[of_side]):
            rows = entity == e
            whole[side] |= rows
            assert of_side[rows].all()
            changed = [names for names in features if any(wrong[name][rows].any() for name in names)]
            assert 1 <= len(changed) <= 3
            for names in changed:
                for name in names:
                    values = after.table.columns[name][rows]
                    if name not in after.table.levels:
                        column = original.table.columns[name]
                        away = np.abs(values - np.nanmean(column)) / np.nanstd(column)
                        np.testing.assert_allclose(away, 5, rtol=1e-6)
                        assert len(set(values.tolist())) == 1
                    assert len(set(values[wrong[name][rows]].tolist())) <= 1
    assert min(flags.sum() for flags in whole.values()) > 0.3 * broken.sum()
    assert not (whole["item"] & whole["user"]).any()
    np.testing.assert_array_equal(whole["item"] | whole["user"], broken)


def test_sets_become_sets_that_occur(parts):
    errors = interaction_errors.inject(jax.random.key(3), parts[0], MATCH, options=Options(clean=0.3, size=400))
    (names,) = errors.samples.sets.values()
    rows = lambda samples: [tuple(row) for row in np.stack([samples.table.columns[name] for name in names], 1).tolist()]
    assert set(rows(errors.samples)) <= set(rows(errors.clean))
    assert rows(errors.samples) != rows(errors.clean)


def test_errors_belong_to_ids(parts):
    options = Options(clean=0.5, size=300)
    errors = interaction_errors.inject(jax.random.key(4), parts[0], MATCH, options=options)
    order = np.random.default_rng(0).permutation(len(parts[0].y))
    other = interaction_errors.inject(jax.random.key(4), ratings.take(parts[0], order), MATCH, options=options)
    back = np.argsort(other.samples.table.id)
    mine = np.argsort(errors.samples.table.id)
    np.testing.assert_array_equal(other.samples.table.id[back], errors.samples.table.id[mine])
    np.testing.assert_array_equal(other.flags[back], errors.flags[mine])
    np.testing.assert_array_equal(other.samples.y[back], errors.samples.y[mine])
    third = interaction_errors.inject(jax.random.key(5), parts[0], MATCH, options=options)
    assert not np.array_equal(third.samples.table.id, errors.samples.table.id)


def test_a_user_has_the_same_wrong_record_in_both_parts():
    whole, *_ = ratings.samples(made(users=60, items=400, per_user=30), last=20)
    kept = mixed_errors.subset(jax.random.key(0), whole.table, whole.y, MATCH, share=0.1)
    first = np.arange(len(kept)) % 2 == 0
    halves = [ratings.take(whole, kept[part]) for part in (first, ~first)]
    both = [interaction_errors.inject(jax.random.key(6), half, MATCH, options=Options(clean=0.3)) for half in halves]
    wrong = []
    for errors in both:
        levels = errors.samples.table.columns["user: age"] != errors.clean.table.columns["user: age"]
        wrong.append(
            dict(
                zip(
                    errors.samples.user[levels].tolist(), errors.samples.table.columns["user: age"][levels], strict=True
                )
            )
        )
    common = set(wrong[0]) & set(wrong[1])
    assert common
    assert all(wrong[0][user] == wrong[1][user] for user in common)


def test_bad_options_are_named(parts):
    plant = lambda **options: interaction_errors.inject(jax.random.key(0), parts[0], MATCH, options=Options(**options))
    with pytest.raises(ValueError, match=r"clean: found 0.95 with a minority of 0.10"):
        plant(clean=0.95, size=300)
    with pytest.raises(ValueError, match="size: found 100000 for rule"):
        plant(size=100_000)
    few = ratings.samples(made(users=8, items=9, per_user=8), last=20)[0]
    with pytest.raises(ValueError, match=r"samples: found records of \d+ rows to break, expected \d+"):
        interaction_errors.inject(jax.random.key(0), few, MATCH, options=Options(clean=0.0, share=0.5))
