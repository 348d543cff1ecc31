"""A block is trained at one shape, refused if it says nothing, and read back by NumPy alone."""

import numpy as np
import pytest

from d3mjax.runtime import blocks

N, T = 11, 3
MANIFEST = {"n": N, "t": T, "repeats": 2, "dtype": "float32"}
IDS = np.arange(4, 7)


def subsets(ids):
    return np.arange(N) < 1 + np.asarray(ids)[:, None]


def run(ids, chosen):
    return np.tile(chosen.sum(1) + 0.5, (T, 1)).T, np.stack([ids, ids + 0.25], 1)


def train(subsets=subsets, run=run, manifest=MANIFEST):
    return blocks.train(manifest, subsets, run, IDS, block=4)


def test_a_block_is_filled_up_so_that_nothing_compiles_twice():
    seen = []
    table = train(run=lambda ids, chosen: (seen.append((list(ids), chosen.shape)), run(ids, chosen))[1])
    assert seen == [([4, 5, 6, 6], (4, N))]
    np.testing.assert_array_equal(table["id"], IDS)


def test_a_file_holds_what_was_run(tmp_path):
    blocks.write(tmp_path, MANIFEST, train())
    (path,) = tmp_path.iterdir()
    assert path.name == "block-000000004-000000006.npy"
    table = np.load(path)
    np.testing.assert_array_equal(table["id"], IDS)
    np.testing.assert_array_equal(table["mask_id"], [2, 2, 3])
    np.testing.assert_array_equal(table["loss"], IDS + 0.25)
    np.testing.assert_array_equal(np.unpackbits(table["masks"], axis=1, count=N), subsets(IDS // 2))
    np.testing.assert_array_equal(table["outputs"], np.tile([[3.5], [3.5], [4.5]], T))
    (heads, damaged) = blocks.scan(tmp_path, MANIFEST)
    assert (list(heads), damaged) == ([path], [])
    np.testing.assert_array_equal(blocks.ids_in_name(path), IDS)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda ids, chosen: (np.ones((4, 2)), np.ones((4, 1))), ValueError, r"outputs: found shape \(3, 2\)"),
        (lambda ids, chosen: (np.full((4, T), np.nan), np.ones((4, 1))), FloatingPointError, "in float32 for ids 4-6"),
        (lambda ids, chosen: (np.ones((4, T)), np.full((4, 1), np.inf)), FloatingPointError, "diverged.*models 4"),
    ],
)
def test_bad_outputs_are_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        train(run=wrong)


def test_outputs_too_large_for_float16_are_refused():
    large = lambda ids, chosen: (run(ids, chosen)[0] + 1e5 * (ids == 5)[:, None], run(ids, chosen)[1])
    half = MANIFEST | {"dtype": "float16"}
    assert train(manifest=half)["outputs"].dtype == np.float16
    with pytest.raises(FloatingPointError, match="not finite in float16 for ids 5"):
        train(run=large, manifest=half)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda ids: np.ones((len(ids), N), bool), "found all or no examples kept for ids 4-6"),
        (lambda ids: subsets(ids) & (ids != 3)[:, None], "found all or no examples kept for ids 6"),
        (lambda ids: subsets(ids)[:, 1:], r"masks: found shape \(3, 10\)"),
        (lambda ids: subsets(ids) * 0.5, "masks: found float64"),
    ],
)
def test_masks_that_say_nothing_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        train(subsets=wrong)


def test_ids_are_cut_at_gaps_and_multiples_and_put_into_words():
    ids = np.array([3, 4, 5, 6, 7, 8, 9, 12])
    assert [list(part) for part in blocks.runs(ids, 4)] == [[3], [4, 5, 6, 7], [8, 9], [12]]
    assert blocks.runs(ids[:0], 4) == []
    assert blocks.ranges(ids) == "3-9, 12"
    assert blocks.ranges([]) == ""
    assert blocks.ranges(np.arange(0, 20, 2)) == "0, 2, 4, 6, 8 and 5 more"
