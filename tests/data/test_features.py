"""Columns as features: exact values on planted columns, and tables of the shapes that once were misread."""

# pandas and scikit-learn come without stubs: pyright infers unions of all that they may return.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false

import numpy as np
import pandas as pd
import pytest

from d3mjax.data import columns, features
from d3mjax.data.columns import CATEGORY, DROPPED, NUMBER, Column

N = 1200


def encoded(train, *others, standardise=True, **options):
    """Columns, encoder, and the features of each frame."""
    frames = {f"--{i}": frame for i, frame in enumerate((train, *others))}
    table = columns.infer(frames, **options)
    typed = [columns.typed(frame, table) for frame in frames.values()]
    encoder = features.fit(table, typed[0], standardise=standardise)
    return table, encoder, [features.encode(encoder, frame) for frame in typed]


def test_numbers_are_scaled_by_training_rows_and_missing_ones_are_the_median_with_an_indicator():
    a = np.array([1.0, 2.0, 4.0, np.nan, 9.0, 4.0])
    _, encoder, (x, held) = encoded(pd.DataFrame({"a": a}), pd.DataFrame({"a": [np.nan, 6.0]}))
    assert features.names(encoder) == ("a", "a missing")
    full = np.where(np.isnan(a), 4.0, a)  # the median
    np.testing.assert_allclose(x[:, 0], (full - full.mean()) / full.std(), rtol=1e-6)
    share = 1 / 6
    np.testing.assert_allclose(x[:, 1], (np.isnan(a) - share) / np.sqrt(share * (1 - share)), rtol=1e-6)
    np.testing.assert_allclose(held[:, 0], (np.array([4.0, 6.0]) - full.mean()) / full.std(), rtol=1e-6)
    assert held[0, 1] == x[3, 1]
    raw = encoded(pd.DataFrame({"a": a}), standardise=False)[2][0]
    np.testing.assert_array_equal(raw, np.stack([full, np.isnan(a)], 1).astype(np.float32))


def test_numbers_missing_in_other_frames_alone_need_no_indicator():
    _, encoder, (x, held) = encoded(pd.DataFrame({"a": [1.0, 2.0, 6.0]}), pd.DataFrame({"a": [np.nan]}))
    assert features.names(encoder) == ("a",)
    assert held[0, 0] == x[1, 0]


def test_categories_are_one_hot_with_unknown_levels_zero():
    job = ["cook", "clerk", "", "cook"] * 5
    _, encoder, (x, held) = encoded(
        pd.DataFrame({"job": job}, dtype="str"),
        pd.DataFrame({"job": ["pilot", "clerk"]}, dtype="str"),
        standardise=False,
    )
    assert features.names(encoder) == ("job=clerk", "job=cook", "job=missing")
    np.testing.assert_array_equal(x[:4], [[0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(held, [[0, 0, 0], [1, 0, 0]])


def test_a_rare_level_is_at_most_ten_deviations_off():
    job = np.where(np.arange(10_000) % 1000 == 0, "rare", np.where(np.arange(10_000) % 2 == 0, "even", "odd"))
    _, _, (x,) = encoded(pd.DataFrame({"job": job}, dtype="str"))
    np.testing.assert_allclose([x[0, 2], x[0, 0]], [(1 - 0.001) / 0.1, -0.499 / np.sqrt(0.499 * 0.501)], rtol=1e-5)


def test_dates_are_days_and_cyclic_parts_to_the_second():
    days = pd.Series(pd.date_range("2024-01-01", periods=N, freq="7s"))
    days[5] = pd.NaT
    _, encoder, (x,) = encoded(pd.DataFrame({"d": days}))
    spans = dict(zip(features.names(encoder), x.T, strict=True))
    assert {"d days", "d hour 0", "d hour 1", "d weekday 0", "d minute", "d second", "d days missing"} <= set(spans)
    assert len(np.unique(spans["d days"])) == N - 1 + (N % 2)
    want = 7.0 * np.arange(N)
    want[5] = np.nan
    want[5] = np.nanmedian(want)
    np.testing.assert_allclose(spans["d days"], (want - want.mean()) / want.std(), atol=1e-6)
    assert np.ptp(spans["d weekday 0"]) == 0
    assert spans["d days missing"].argmax() == 5


def test_free_text_is_components_of_equal_size_whatever_the_other_frames():
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(200)])
    text = pd.DataFrame({"t": [" ".join(words[rng.integers(0, 200, 5)]) for _ in range(300)]}, dtype="str")
    _, encoder, (x, held) = encoded(text, text.iloc[::-1])
    assert features.slices(encoder) == {"t": slice(0, features.TEXT_WIDTH)}
    np.testing.assert_allclose(np.mean(x.var(0)), 1.0, rtol=1e-4)
    np.testing.assert_allclose(held, x[::-1], atol=1e-5)
    np.testing.assert_array_equal(encoded(text)[2][0], x)


def test_features_are_those_of_chunks_and_a_constant_is_zero_everywhere(monkeypatch):
    rng = np.random.default_rng(0)
    train = pd.DataFrame({"a": rng.normal(size=100) * 1e80, "b": ["x", "y"] * 50, "c": 5.0})
    held = pd.DataFrame({"a": [1e99], "b": ["z"], "c": [7.0]})
    table = (Column("a", NUMBER), Column("b", CATEGORY, levels=("x", "y")), Column("c", NUMBER))
    encoder = features.fit(table, train)
    x, x_held = features.encode(encoder, train), features.encode(encoder, held)
    assert x_held.tolist() == [[features.FARTHEST, -1, -1, 0]]
    assert (x[:, 3] == 0).all()
    monkeypatch.setattr(features, "CHUNK", 7)
    np.testing.assert_allclose(features.encode(features.fit(table, train), train), x, rtol=1e-6)
    with pytest.raises(ValueError, match=r"found no columns \['c'\], expected \['a', 'b', 'c'\]"):
        features.encode(encoder, train[["a", "b"]])


def table_of(seed, n, **others):
    """The columns that all of the following have."""
    rng = np.random.default_rng(seed)
    made = {"age": np.round(rng.normal(40, 9, n), 2), "hours": rng.integers(10, 60, n)}
    made |= {"sex": np.array(["f", "m"])[rng.integers(0, 2, n)], "job": np.array(list("abc"))[rng.integers(0, 3, n)]}
    return pd.DataFrame({**made, **{name: make(rng, n) for name, make in others.items()}})


def as_texts(frame):
    """The frame as a text format gives it."""
    return frame.astype(object).map(lambda v: None if v is None or v != v else str(v)).astype("str")


ODD = {
    "zip codes": {"zip": lambda rng, n: [f"{i % 40:05d}" for i in range(n)]},
    "row index": {"Unnamed: 0": lambda rng, n: range(n)},
    "missing ages": {"age2": lambda rng, n: np.where(np.arange(n) < 3, np.nan, np.round(rng.normal(40, 9, n), 2))},
    "Unix time": {"t": lambda rng, n: 1_700_000_000 + rng.integers(0, 3600, n)},
    "account numbers": {"acct": lambda rng, n: [f"{i:05d}" for i in range(n)]},
    "counts": {"visits": lambda rng, n: rng.integers(0, 120, n)},
}
KINDS = {"zip": CATEGORY, "Unnamed: 0": DROPPED, "age2": NUMBER, "t": NUMBER, "acct": DROPPED, "visits": NUMBER}


@pytest.mark.parametrize("text", [True, False], ids=["text", "typed"])
@pytest.mark.parametrize("name", ODD)
def test_tables_that_once_were_misread(name, text):
    frames = [table_of(seed, n, **ODD[name]) for seed, n in ((0, N), (1, 600))]
    (odd,) = ODD[name]
    table, encoder, (x, held) = encoded(*[as_texts(f) if text else f for f in frames])
    kinds = {c.name: c.kind for c in table}
    assert kinds == {"age": NUMBER, "hours": NUMBER, "sex": CATEGORY, "job": CATEGORY, odd: KINDS[odd]}
    assert x.dtype == np.float32
    assert len(held) == 600
    if odd == "t":
        t = frames[0]["t"].to_numpy()
        np.testing.assert_allclose(x[:, features.slices(encoder)["t"]][:, 0], (t - t.mean()) / t.std(), atol=1e-6)
    if odd == "zip":
        assert features.names(encoder)[-40:] == tuple(f"zip={i:05d}" for i in range(40))
    if odd == "age2":
        assert features.names(encoder)[-2:] == ("age2", "age2 missing")
        assert x[:, -1].argmax() == 0
