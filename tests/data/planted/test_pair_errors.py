"""Errors planted in preference pairs: exact counts, flags by id, and nothing else changed."""

import jax
import numpy as np
import pytest

from d3mjax.data.planted import pair_errors
from d3mjax.data.planted.pair_errors import Options
from d3mjax.data.sets import preferences
from d3mjax.data.sets.preferences import Line


def made(n=400, seed=0, words=(3, 12)):
    """Pairs of different words, two of each prompt."""
    rng = np.random.default_rng(seed)
    text = lambda name, i: " ".join(f"{name}{i}w{j}" for j in range(rng.integers(*words)))
    lines = [Line(f"prompt {i // 2}", text("good", i), text("bad", i)) for i in range(n)]
    return preferences.shuffled(lines, 5 + np.arange(n), np.zeros(n, np.int32), seed=seed)


def sides(pairs):
    """Preferred and other response of every pair, by id."""
    both = zip(pairs.first, pairs.second, pairs.y, pairs.id, strict=True)
    return {int(number): ((a, b)[y], (a, b)[1 - y]) for a, b, y, number in both}


@pytest.mark.parametrize("clean", [0.4, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("share", [0.1, 0.15, None])
def test_counts_are_exact_and_flags_are_true(clean, share):
    before = made()
    errors = pair_errors.inject(jax.random.key(1), before, options=Options(clean=clean, share=share, size=150))
    n, (swapped, damaged, rare) = 150, errors.flags.T
    num = int((1 - clean) * n / 2 + 1e-9)
    assert len(errors.pairs.y) == n
    assert (swapped.sum(), damaged.sum(), (swapped & damaged).sum()) == (num, num, 0)
    if share is not None:
        assert abs(rare.sum() - share * n) <= 2
        for minority in (rare, ~rare):
            assert abs(errors.clean.y[minority].mean() - 0.5) <= 1 / minority.sum()
    original, clean_sides, dirty = sides(before), sides(errors.clean), sides(errors.pairs)
    of_preferred = 0
    for i, number in enumerate(errors.pairs.id.tolist()):
        assert clean_sides[number] == original[number]
        assert rare[i] == (len(original[number][0]) < len(original[number][1]))
        if swapped[i]:
            assert dirty[number] == original[number][::-1]
        elif damaged[i]:
            changed = [a != b for a, b in zip(dirty[number], original[number], strict=True)]
            assert sum(changed) == 1
            of_preferred += changed[0]
            assert dirty[number][0] != dirty[number][1]
            assert all(dirty[number])
        else:
            assert dirty[number] == original[number]
    assert of_preferred == round(num / 2)
    np.testing.assert_array_equal(errors.pairs.y, errors.clean.y)
    np.testing.assert_array_equal(errors.flags[:, 2], preferences.shorter_preferred(errors.clean))


def test_swapping_the_flagged_pairs_is_the_repair():
    errors = pair_errors.inject(jax.random.key(0), made(), options=Options(damages=(pair_errors.truncate,)))
    repaired = pair_errors.swap(errors.pairs, errors.flags[:, 0])
    dirty = errors.flags[:, 1]
    for side in ("first", "second"):
        a, b = getattr(repaired, side), getattr(errors.clean, side)
        changed = np.array([x != y for x, y in zip(a, b, strict=True)])
        assert not changed[~dirty].any()
    assert repaired.y is errors.pairs.y


def test_errors_belong_to_ids():
    before = made()
    order = np.random.default_rng(3).permutation(400)
    some = [
        pair_errors.inject(jax.random.key(2), pairs, options=Options(share=None))
        for pairs in (before, preferences.take(before, order))
    ]
    flags = [dict(zip(e.pairs.id.tolist(), e.flags.tolist(), strict=True)) for e in some]
    assert flags[0] == flags[1]
    assert sides(some[0].pairs) == sides(some[1].pairs)
    other = pair_errors.inject(jax.random.key(3), before, options=Options(share=None))
    assert (other.flags != some[0].flags).any()


def test_damages():
    rng = np.random.default_rng(0)
    text = "one two three four five six seven eight"
    for _ in range(20):
        short = pair_errors.truncate(rng, text, "")
        assert text.startswith(short + " ")
        assert 2 <= len(short.split()) <= 4
        fewer = pair_errors.drop_words(rng, text, "").split()
        assert len(fewer) == 4
        assert fewer == [word for word in text.split() if word in fewer]
    assert pair_errors.truncate(rng, "word", "") == pair_errors.drop_words(rng, "word", "") == "wo"
    assert pair_errors.exchange(rng, text, "other") == "other"


def test_responses_of_other_prompts():
    errors = pair_errors.inject(jax.random.key(0), made(), options=Options(damages=(pair_errors.exchange,), share=None))
    original, dirty = sides(errors.clean), sides(errors.pairs)
    texts = {text: number for number, both in original.items() for text in both}
    for number in errors.pairs.id[errors.flags[:, 1]].tolist():
        (new,) = set(dirty[number]) - set(original[number])
        assert (texts[new] - 5) // 2 != (number - 5) // 2


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="clean: found 2"):
        pair_errors.inject(jax.random.key(0), made(), options=Options(clean=2.0))
    with pytest.raises(ValueError, match="size: found 390"):
        pair_errors.inject(jax.random.key(0), made(), options=Options(size=390))
    letters = preferences.shuffled(
        [Line("p", "a", "b"), Line("p", "c", "d")], np.arange(2), np.zeros(2, np.int32), seed=0
    )
    with pytest.raises(ValueError, match="damages: found none that changes pair"):
        pair_errors.inject(jax.random.key(0), letters, options=Options(clean=0.0, share=None))
