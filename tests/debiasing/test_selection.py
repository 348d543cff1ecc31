"""Removal rules by hand: ties, traced sizes, matched controls, and the guard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3mjax.debiasing import selection

SCORES = jnp.array([0.5, -1.0, 0.0, -1.0, 2.0, -3.0, 0.5])


def test_drop_negative_keeps_zero():
    np.testing.assert_array_equal(selection.drop_negative(SCORES), [1, 0, 1, 0, 1, 0, 1])


@pytest.mark.parametrize(
    ("k", "removed"),
    [(0, []), (1, [5]), (2, [1, 5]), (3, [1, 3, 5]), (5, [0, 1, 2, 3, 5]), (7, range(7)), (9, range(7))],
)
def test_drop_lowest_breaks_ties_by_index(k, removed):
    expected = ~np.isin(np.arange(7), list(removed))
    np.testing.assert_array_equal(selection.drop_lowest(SCORES, k), expected)


def test_flipping_the_sign_changes_what_goes():
    assert not np.array_equal(selection.drop_negative(SCORES), selection.drop_negative(-SCORES))
    np.testing.assert_array_equal(np.flatnonzero(~selection.drop_lowest(-SCORES, 2)), [0, 4])


def test_drop_lowest_takes_a_traced_k_and_maps_over_it():
    traces = []
    fn = jax.jit(lambda scores, k: (traces.append(None), selection.drop_lowest(scores, k))[1])
    for k in range(8):
        assert int((~fn(SCORES, jnp.int32(k))).sum()) == min(k, 7)
    assert len(traces) == 1, "retraced: `k` must stay traced, look for Python arithmetic on it"
    many = jax.vmap(lambda k: selection.drop_lowest(SCORES, k))(jnp.arange(8))
    assert (np.diff(many.astype(int), axis=0) <= 0).all()  # nested: what goes at k goes at k + 1


def test_rank_within_is_a_stable_sort_of_each_cell():
    rng = np.random.default_rng(0)
    values, cell = rng.integers(0, 4, 60).astype(np.float32), rng.integers(0, 5, 60)
    got = np.asarray(selection.rank_within(jnp.asarray(values), jnp.asarray(cell)))
    for c in range(5):
        members = np.flatnonzero(cell == c)
        np.testing.assert_array_equal(
            members[np.argsort(got[members])], members[np.argsort(values[members], kind="stable")]
        )


def test_drop_random_like_matches_the_composition_of_every_cell():
    rng = np.random.default_rng(1)
    cell = np.repeat([0, 1, 2, 4], [40, 30, 20, 10])  # cell 3 is empty
    keep = rng.uniform(size=100) > np.repeat([0.1, 0.5, 0.0, 1.0], [40, 30, 20, 10])
    expected = np.bincount(cell[~keep], minlength=5)
    assert expected[2] == 0
    assert expected[4] == 10
    draw = jax.jit(jax.vmap(lambda key: selection.drop_random_like(key, jnp.asarray(keep), jnp.asarray(cell), 5)))
    got = np.asarray(draw(jax.random.split(jax.random.key(0), 2000)))
    counts = np.stack([np.bincount(cell[~row], minlength=5) for row in got])
    np.testing.assert_array_equal(counts, np.broadcast_to(expected, counts.shape))
    assert len({row.tobytes() for row in got}) > 1990
    # every example of a cell goes equally often, whether `keep` removes it or not
    p = (expected / np.maximum(np.bincount(cell, minlength=5), 1))[cell]
    assert np.all(np.abs((~got).mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / 2000))


def test_guard_leaves_a_modest_rule_alone():
    y = jnp.array([0, 0, 0, 1, 1, 1, 1])
    keep = selection.drop_negative(SCORES)
    guarded, info = selection.guard(SCORES, keep, y, 2)  # 3 of 7 removed, the bound is int(3.5)
    np.testing.assert_array_equal(guarded, keep)
    assert int(info.capped) == 0
    np.testing.assert_array_equal(info.restored, [0, 0])


def test_guard_caps_the_number_removed_lowest_first():
    y = jnp.array([0, 0, 0, 1, 1, 1, 1])
    keep = jnp.array([0, 0, 1, 0, 1, 0, 0], bool)  # removes scores .5, -1, -1, -3, .5
    guarded, info = selection.guard(SCORES, keep, y, 2, max_drop=0.3)  # int(2.1): -3 and the first -1 go
    np.testing.assert_array_equal(np.flatnonzero(~guarded), [1, 5])
    assert int(info.capped) == 3
    np.testing.assert_array_equal(info.restored, [0, 0])


def test_guard_restores_the_best_of_an_emptied_class():
    y = jnp.array([0, 1, 0, 1, 0, 1, 2])
    keep = jnp.array([1, 0, 1, 0, 1, 0, 0], bool)  # nothing left of classes 1 (-1, -1, -3) and 2 (.5)
    guarded, info = selection.guard(SCORES, keep, y, 4, max_drop=1.0)
    np.testing.assert_array_equal(np.flatnonzero(~guarded), [3, 5])  # of the equal -1, the first comes back
    np.testing.assert_array_equal(info.restored, [0, 1, 1, 0])
    guarded, info = selection.guard(SCORES, keep, y, 4, max_drop=1.0, min_keep_class=2)
    np.testing.assert_array_equal(np.flatnonzero(~guarded), [5])
    np.testing.assert_array_equal(info.restored, [0, 2, 1, 0])
    assert int(info.capped) == 0


def test_guard_counts_kept_examples_towards_the_minimum():
    y = jnp.zeros(7, int)
    keep = jnp.array([0, 0, 0, 0, 0, 1, 0], bool)  # the kept one scores lowest, and still counts
    guarded, info = selection.guard(SCORES, keep, y, 1, max_drop=1.0, min_keep_class=2)
    np.testing.assert_array_equal(np.flatnonzero(guarded), [4, 5])
    np.testing.assert_array_equal(info.restored, [1])


def test_host_arrays_give_what_device_arrays_give():
    cell = np.array([0, 1, 0, 1, 0, 1, 2])
    keep = np.asarray(SCORES) >= 0
    calls = [
        lambda s, k, c: selection.drop_negative(s),
        lambda s, k, c: selection.drop_lowest(s, 3),
        lambda s, k, c: selection.drop_random_like(jax.random.key(0), k, c, 3),
        lambda s, k, c: selection.guard(s, k, c, 3, max_drop=0.3),
        lambda s, k, c: selection.rank_within(s, c),
    ]
    for call in calls:
        device = call(SCORES, jnp.asarray(keep), jnp.asarray(cell))
        host = call(np.asarray(SCORES), keep, cell)
        closed = jax.jit(lambda s, call=call: call(s, keep, cell))(SCORES)  # labels as constants of a jitted function
        jax.tree.map(np.testing.assert_array_equal, host, device)
        jax.tree.map(np.testing.assert_array_equal, closed, device)


def test_only_what_is_surely_negative_is_dropped():
    mean, error = jnp.array([-1.0, -1.0, -1.0, 0.5, -1e-9, -1.0]), jnp.array([0.5, 0.7, jnp.nan, 0.0, 0.0, 0.6])
    # z error: 0.82, 1.15, unknown, 0, 0, 0.99
    np.testing.assert_array_equal(selection.drop_confident(mean, error), [False, True, True, True, False, False])
    np.testing.assert_array_equal(selection.drop_confident(mean, error, z=0.0)[:2], [False, False])


def test_suspects_are_wrong_at_every_checkpoint():
    right = jnp.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 1]], bool)
    np.testing.assert_array_equal(selection.label_suspects(right), [False, False, True, False])
    np.testing.assert_array_equal(selection.label_suspects(right[:1]), [False, True, True, True])


def test_share_of_removed_counts_by_hand():
    marked = np.array([True, False, True, False])
    keep = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 1, 1]], bool)  # removed: 0 1, 0 2, 1; marked of them: 0, 0 2
    for share in (selection.share_of_removed, jax.jit(selection.share_of_removed)):
        np.testing.assert_allclose(share(marked, keep), 3 / 5, rtol=1e-6)
        np.testing.assert_allclose(share(marked, keep[0]), 1 / 2, rtol=1e-6)
        assert np.isnan(share(marked, np.ones(4, bool)))


def test_lowest_of_every_cell_by_brute_force():
    rng = np.random.default_rng(3)
    scores, cell = rng.normal(size=50).astype(np.float32), rng.integers(0, 3, 50)
    keep = np.asarray(selection.drop_lowest_within(scores, cell, 4, 0.3))  # cell 3 is empty
    for c in range(3):
        members = np.flatnonzero(cell == c)
        lowest = members[np.argsort(scores[members])[: int(0.3 * len(members))]]
        np.testing.assert_array_equal(members[~keep[members]], np.sort(lowest))
    assert selection.drop_lowest_within(scores, cell, 4, 0.0).all()
    tenth = selection.drop_lowest_within(scores, np.zeros(50, int), 1, 0.1)  # .1 is a little above a tenth, or below
    np.testing.assert_array_equal(tenth, selection.drop_lowest(scores, 5))


def test_outliers_do_not_depend_on_level_or_scale():
    scores = np.array([-9.0, -3, -1, 0, 0.5, 1, 2, 60], np.float32)  # median .25, deviations' median 1.5
    keep = selection.drop_outliers(scores, z=1.4)  # .25 - 1.4 * 1.4826 * 1.5 = -2.86
    np.testing.assert_array_equal(np.flatnonzero(~keep), [0, 1])
    np.testing.assert_array_equal(selection.drop_outliers(scores), [0, 1, 1, 1, 1, 1, 1, 1])
    np.testing.assert_array_equal(selection.drop_outliers(7 * scores - 50, z=1.4), keep)
    assert not np.array_equal(selection.drop_outliers(-scores, z=1.4), keep)
    np.testing.assert_array_equal(selection.drop_outliers(np.array([1.0, 1, 1, 0])), [1, 1, 1, 0])


def test_a_step_empties_k_and_lifts_what_helps():
    scores = np.array([0.5, -1.0, 0.0, -2.0, 3.0], np.float32)
    np.testing.assert_allclose(selection.step_weights(scores, 1), [1.25, 0.5, 1, 0, 2.5])  # A / 2
    np.testing.assert_allclose(selection.step_weights(scores, 2), [1.5, 0, 1, 0, 4])  # A / 1
    np.testing.assert_allclose(selection.step_weights(scores, 4), selection.step_weights(scores, 2))
    for same in (selection.step_weights(scores, 0), selection.step_weights(np.abs(scores), 3)):
        np.testing.assert_array_equal(same, np.ones(5))
    np.testing.assert_allclose(selection.step_weights(10 * scores, 1), selection.step_weights(scores, 1))
    traces = []
    step = jax.jit(lambda scores, k: (traces.append(None), selection.step_weights(scores, k))[1])
    for k in range(4):
        np.testing.assert_array_equal(step(scores, jnp.int32(k)), selection.step_weights(scores, k))
    assert len(traces) == 1, "retraced: `k` must stay traced"


def test_a_step_empties_k_examples_whatever_the_rounding_of_its_level():
    scores = np.random.default_rng(0).normal(size=200).astype(np.float32)
    for k in range(1, 60):
        assert (np.asarray(selection.step_weights(scores, k)) == 0).sum() == k


def test_soft_weights_harden_as_the_temperature_falls():
    scores = np.array([0.5, -1.0, 0.25, -2.0, 3.0], np.float32)
    spread = scores.std()
    np.testing.assert_allclose(selection.soft_weights(scores, 2.0), 1 / (1 + np.exp(-scores / 2 / spread)), rtol=1e-5)
    np.testing.assert_allclose(selection.soft_weights(scores, 1e-3), selection.drop_negative(scores), atol=1e-6)


def test_composition_counts_by_hand():
    keep, y = np.array([0, 1, 0, 0, 1, 0], bool), np.array([0, 0, 0, 1, 1, 1])
    group, suspect = np.array([0, 0, 1, 2, -1, -1]), np.array([1, 1, 0, 1, 0, 1], bool)
    for composition in (selection.composition, jax.jit(selection.composition, static_argnums=(4, 5))):
        found = composition(keep, y, group, suspect, 2, 3)
        np.testing.assert_array_equal(found.removed, [[1, 1, 0], [0, 0, 1]])
        np.testing.assert_array_equal(found.total, [[2, 1, 0], [0, 0, 1]])
        np.testing.assert_array_equal(found.suspects, [[1, 0, 0], [0, 0, 1]])


def test_a_tie_within_the_tolerance_goes_to_the_better_average():
    accuracies = np.array([[0.60, 0.9], [0.70, 0.8], [0.69, 0.8], [0.5, 0.99]])
    average = np.array([0.85, 0.75, 0.8, 0.95])
    assert selection.choose(accuracies, average) == 2
    assert selection.choose(accuracies, average, tolerance=0.0) == 1
    assert selection.choose(accuracies, average, tolerance=0.101) == 0
    assert selection.choose(np.insert(accuracies, 1, np.nan, axis=1), average) == 2


def test_survivors_count_by_their_best_variant_and_ties_by_average():
    nan = np.nan
    accuracies = np.array(
        [
            [[0.5, 0.9, nan], [0.1, 0.9, nan]],  # worst .5 without offsets
            [[0.2, 0.9, nan], [0.7, 0.8, nan]],  # worst .7 with offsets
            [[0.5, 0.5, nan], [0.5, 0.6, nan]],  # worst .5, a higher average with offsets
            [[0.1, 1.0, nan], [0.2, 1.0, nan]],
        ]
    )
    average = np.array([[0.8, 0.99], [0.6, 0.6], [0.5, 0.9], [1.0, 1.0]])
    assert selection.survivors(accuracies, average, 4).tolist() == [1, 2, 0, 3]
    assert selection.survivors(accuracies, average, 2).tolist() == [1, 2]
