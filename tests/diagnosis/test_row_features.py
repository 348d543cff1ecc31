"""Order statistics against NumPy, row by row; orders, chunks and the number of validation rows do not matter."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from d3mjax.diagnosis import row_features

# Means of some tens of float32 numbers of size one, and normal scores; a sort key drops the last bit.
ROUNDING = 64 * float(np.finfo(np.float32).eps)


def planted(n=23, t=37, *, classes=3, seed=0):
    """Vectors as DeMix has them, agreement following from labels, and the labels."""
    rng = np.random.default_rng(seed)
    y, of = rng.integers(0, classes, n), rng.integers(0, classes, t)
    agreement = (y[:, None] == of[None]).astype(float)
    influence, cosine = rng.uniform(-1, 1, (n, t)) - 0.3 * agreement, rng.uniform(-1, 1, (n, t))
    loss = np.repeat(rng.exponential(size=(n, 1)), t, axis=1)
    return np.stack([influence, cosine, agreement, loss], 1).astype(np.float16), y


def by_name(vectors, y, **options):
    got = row_features.order_statistics(vectors, y, 3, **options)
    options.pop("microbatch", None)
    if "rows" in options:
        options["rows"] = ("a", "b")
    names = row_features.feature_names(**options)
    assert got.shape == (len(y), len(names))
    assert len(set(names)) == len(names)
    return dict(zip(names, np.asarray(got).T, strict=True))


def brute_force(vectors, y, quantiles, neighbours) -> dict[str, np.ndarray]:
    """The features of one row after the other, by NumPy."""
    vectors = vectors.astype(np.float64)
    found: dict[str, Any] = {name: np.full(len(y), np.nan) for name in row_features.feature_names(quantiles=quantiles)}
    for i, (influence, cosine, agreement, loss) in enumerate(vectors):
        own = agreement > 0.5
        for name, v, close in (("influence 0", influence, abs(influence)), ("cosine 1", cosine, cosine.clip(0))):
            for of, some in (("all", v), ("own", v[own]), ("other", v[~own])):
                for q in quantiles if len(some) else ():
                    found[f"{name}, {of}: {q:.0%} quantile"][i] = np.quantile(some, q)
                if len(some):
                    found[f"{name}, {of}: mean"][i] = some.mean()
                if len(some) and of != "all":
                    found[f"{name}, {of}: negative"][i] = (some < 0).mean()
            for share in neighbours:
                level = np.sort(close)[-int(np.ceil(share * len(v)))]
                found[f"{name}: vote of the nearest {share:.0%}"][i] = own[close >= level].mean()
            if close.any():
                found[f"{name}: vote"][i] = (close * own).sum() / close.sum()
        found["share of the own class"][i] = own.mean()
        found["loss"][i] = loss[0]
    scores = lambda x: np.asarray(stats.norm.ppf((stats.rankdata(x) - 0.5) / len(x)))
    found["loss in the cell"] = scores(found["loss"])
    for c in np.unique(y):
        found["loss in the class"][y == c] = scores(found["loss"][y == c])
    return found


@pytest.mark.parametrize("t", [1, 2, 37])
def test_order_statistics_are_numpy_row_by_row(t):
    vectors, y = planted(t=t)
    got = by_name(vectors, y)
    expected = brute_force(vectors, y, row_features.QUANTILES, row_features.NEIGHBOURS)
    assert list(got) == list(expected)
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=ROUNDING, atol=ROUNDING, err_msg=name)


def test_a_class_that_no_validation_row_has_leaves_nothing_to_describe():
    vectors, y = planted()
    vectors[3, 2] = 0
    got = by_name(vectors, y)
    for name, values in got.items():
        assert np.isnan(values[3]) == ("own:" in name), name
        assert np.isfinite(np.delete(values, 3)).all(), name


def test_neither_the_order_of_validation_rows_nor_chunks_matter():
    vectors, y = planted()
    rng = np.random.default_rng(1)
    whole = row_features.order_statistics(vectors, y, 3, microbatch=None)
    for microbatch in (1, 3, 512):
        np.testing.assert_allclose(
            row_features.order_statistics(vectors, y, 3, microbatch=microbatch), whole, atol=ROUNDING
        )
    shuffled = vectors[:, :, rng.permutation(vectors.shape[2])]
    np.testing.assert_allclose(row_features.order_statistics(shuffled, y, 3), whole, atol=ROUNDING)
    doubled = np.tile(vectors, (1, 1, 2))  # shares and means stay, quantiles nearly
    names = row_features.feature_names()
    same = [i for i, name in enumerate(names) if "quantile" not in name or " 0% " in name or "100%" in name]
    got = np.asarray(row_features.order_statistics(doubled, y, 3))
    votes = [i for i in same if "nearest" not in names[i]]  # ceil(share t) need not double
    np.testing.assert_allclose(got[:, votes], np.asarray(whole)[:, votes], atol=ROUNDING)


def test_train_rows_move_with_their_features():
    vectors, y = planted()
    order = np.random.default_rng(2).permutation(len(y))
    whole = np.asarray(row_features.order_statistics(vectors, y, 3))
    np.testing.assert_array_equal(row_features.order_statistics(vectors[order], y[order], 3), whole[order])


def test_further_channels_and_numbers_of_each_row():
    vectors, y = planted()
    other, _ = planted(seed=5)
    layout = row_features.Layout(influence=(0, 4))
    rows = np.random.default_rng(3).normal(size=(len(y), 2)).astype(np.float32)
    got = by_name(np.concatenate([vectors, other[:, :1]], 1), y, layout=layout, rows=rows)
    alone = by_name(np.concatenate([other[:, :1], vectors[:, 1:]], 1), y)
    np.testing.assert_array_equal(got["influence 4, all: 25% quantile"], alone["influence 0, all: 25% quantile"])
    np.testing.assert_array_equal(got["b"], rows[:, 1])
    expected = stats.norm.ppf((stats.rankdata(rows[:, 1]) - 0.5) / len(y))
    np.testing.assert_allclose(got["b in the cell"], expected, atol=ROUNDING)


def test_normal_scores_share_ties_and_leave_out_what_is_missing():
    x = np.array([[3, 1, 1, 2], [0, np.nan, 5, np.nan]], np.float32)
    ranks = np.array([[4, 1.5, 1.5, 3], [1, np.nan, 2, np.nan]])
    expected = stats.norm.ppf((ranks - 0.5) / np.array([[4], [2]]))
    np.testing.assert_allclose(jax.jit(row_features.normal_scores)(x), expected, atol=ROUNDING)
    large = np.random.default_rng(0).integers(0, 50, 1000).astype(np.float32)
    expected = stats.norm.ppf((stats.rankdata(large) - 0.5) / 1000)
    np.testing.assert_allclose(row_features.normal_scores(large), expected, atol=ROUNDING)


def test_nothing_is_compiled_twice():
    vectors, y = planted()
    row_features.order_statistics(vectors, y, 3)
    count = row_features._features._cache_size  # pyright: ignore[reportAttributeAccessIssue]
    size = count()
    row_features.order_statistics(vectors[::-1].copy(), y, 3, quantiles=(*row_features.QUANTILES,))
    row_features.order_statistics(jnp.asarray(vectors), y, 3, layout=row_features.Layout())
    assert count() <= size  # JAX may have made room


def test_keys_order_as_floats_do_and_keep_half_precision():
    v = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    every = np.r_[v, v.astype(np.float16), -0.0, 0.0, np.inf, -np.inf, 65504, -6e-8].astype(np.float32)
    key = np.asarray(row_features._key(jnp.asarray(every)))
    assert (np.diff(every[np.argsort(key, kind="stable")]) >= -2e-7).all()
    assert abs(key.astype(np.int64)).max() <= 2**30
    np.testing.assert_allclose(row_features._value(jnp.asarray(key)), every, rtol=2e-7)
    np.testing.assert_array_equal(row_features._value(jnp.asarray(key[1000:2000])), every[1000:2000])
