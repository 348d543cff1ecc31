"""Samples of ratings: histories, parts and counts against loops; published layouts on tiny files; bad input."""

import gzip
import json

import numpy as np
import pytest
from made_ratings import made

from d3mjax.data.sets import rating_files, ratings
from d3mjax.data.sets.ratings import Raw, from_columns


def by_loops(data, last, history):
    """Per part: (row, history, ratings of the user before, ratings of the item before)."""
    rows = range(len(data.user))
    all_samples = []
    for r in sorted(rows, key=lambda r: (data.time[r], r)):
        own = sorted((q for q in rows if data.user[q] == data.user[r]), key=lambda q: (data.time[q], q))
        before = own[: own.index(r)]
        if before:
            earlier = [q for q in rows if data.time[q] < data.time[r]]
            of_user = [q for q in earlier if data.user[q] == data.user[r]]
            of_item = [q for q in earlier if data.item[q] == data.item[r]]
            all_samples.append((r, [int(data.item[q]) for q in before][-history:], of_user, of_item))
    n = len(all_samples)
    parts = all_samples[: int(n * 0.7)], all_samples[int(n * 0.7) : int(n * 0.85)], all_samples[int(n * 0.85) :]
    of = lambda part, sample: [s for s in part if data.user[s[0]] == data.user[sample[0]]]
    return [[s for s in part if of(part, s).index(s) >= len(of(part, s)) - last] for part in parts]


@pytest.mark.parametrize(("last", "history"), [(1, 4), (5, 100)])
def test_samples_are_those_of_loops(last, history):
    data = made(users=12, per_user=15)
    for part, expected in zip(
        ratings.samples(data, last=last, history=history), by_loops(data, last, history), strict=True
    ):
        positive, negative = ratings.take(part, part.y == 1), ratings.take(part, part.y == 0)
        assert positive.table.id.tolist() == [r for r, *_ in expected]
        np.testing.assert_array_equal(negative.table.id, positive.table.id + len(data.user))
        for i, (r, before, of_user, of_item) in enumerate(expected):
            assert (positive.user[i], positive.item[i], positive.time[i]) == (data.user[r], data.item[r], data.time[r])
            assert positive.history[i].tolist() == before + [-1] * (history - len(before))
            columns = {name: column[i] for name, column in positive.table.columns.items()}
            np.testing.assert_allclose(np.expm1(columns["user: activity"]), len(of_user), atol=1e-9)
            np.testing.assert_allclose(np.expm1(columns["item: popularity"]), len(of_item), atol=1e-9)
            mean = np.mean(data.rating[of_item]) if of_item else np.nan
            np.testing.assert_allclose(columns["item: mean rating"], mean, rtol=1e-12)
            assert columns["item: price"] == data.items.table.columns["price"][data.item[r]]
            assert columns["user: age"] == data.users.table.columns["age"][data.user[r]]
        np.testing.assert_array_equal(ratings.popularity(data, positive), [len(of_item) for *_, of_item in expected])


def test_negatives_are_unseen_and_derive_from_seed_and_interaction():
    data = made()
    taken = set(zip(data.user.tolist(), data.item.tolist(), strict=True))
    drawn = {}
    for last in (3, 10):
        for seed in (0, 1):
            (part, *_) = ratings.samples(data, seed=seed, last=last)
            negative = ratings.take(part, part.y == 0)
            pairs = list(zip(negative.user.tolist(), negative.item.tolist(), strict=True))
            assert not taken & set(pairs)
            drawn[last, seed] = dict(zip(negative.table.id.tolist(), pairs, strict=True))
            same = part.y[:, None] == part.y[None]
            assert len(np.unique(part.table.id)) == len(part.y) == 2 * len(pairs)
            assert same.mean() == 0.5
    assert {number: drawn[10, 0][number] for number in drawn[3, 0]} == drawn[3, 0]
    assert drawn[3, 0] != drawn[3, 1]


def test_liked_ratings_are_labels_without_negatives():
    data = made()
    for part in ratings.samples(data, liked=4.0):
        np.testing.assert_array_equal(part.y, data.rating[part.table.id] >= 4)
        np.testing.assert_array_equal(part.item, data.item[part.table.id])


def test_inputs_are_codes_standardised_numbers_and_members():
    data = made()
    train, _, test = ratings.samples(data, history=7)
    x = ratings.inputs(test, train, data.items)
    assert {name: a.shape[1:] for name, a in x.items()} == {
        **dict.fromkeys(("user", "item"), ()),
        **{"history": (7,), "levels": (2,), "numbers": (5,), "members": (3,), "history_members": (7, 3)},
    }
    np.testing.assert_allclose(ratings.inputs(train, train, data.items)["numbers"].mean(0), 0, atol=1e-5)
    members = np.stack([data.items.table.columns[name] for name in data.items.sets["kinds"]], 1)
    np.testing.assert_array_equal(x["members"], members[test.item])
    for i, before in enumerate(test.history):
        expected = np.where((before >= 0)[:, None], members[before], 0)
        np.testing.assert_array_equal(x["history_members"][i], expected)


def test_without_times_rows_are_the_order_and_features_may_be_missing():
    data = from_columns(
        ["b", "a", "b"], [3, 1, 1], [1, 2, 3], [np.nan] * 3, scale=(1, 5), items=Raw([1], {"x": np.ones(1)})
    )
    assert not data.timed
    assert data.time.tolist() == [0, 1, 2]
    assert data.users.name.tolist() == ["a", "b"]
    np.testing.assert_array_equal(data.items.table.columns["x"], [1, np.nan])


COLUMNS = {"user": ["a", "a"], "item": [1, 2], "rating": [1.0, 2.0], "time": [5.0, 6.0]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rating": [1.0, 7.0]}, r"rating: found 7.0 in row 1 \(1 in all\), expected 1 to 5"),
        ({"rating": [np.nan, 2.0]}, "rating: found nan in row 0"),
        ({"time": [5.0, np.nan]}, r"time: found none in row 1 \(1 in all\), expected one in every row, or in no row"),
        ({"item": [1]}, "columns: found lengths"),
        ({"users": Raw(["a", "a"])}, "users: found 2 rows of 1 ids, expected one row an id"),
        ({name: [] for name in COLUMNS}, "columns: found lengths"),
    ],
)
def test_bad_columns_are_named(changes, message):
    columns = {**COLUMNS, **changes}
    options = {name: columns.pop(name) for name in ("users",) if name in columns}
    with pytest.raises(ValueError, match=message):
        from_columns(*columns.values(), scale=(1, 5), **options)


def test_users_without_history_and_users_of_everything_are_named():
    single = from_columns(["a", "b", "c"], [1, 2, 3], [1, 2, 3], None, scale=(1, 5))
    with pytest.raises(
        ValueError, match=r"found \[0, 0, 0\] samples .* 3 users have no history before their only rating"
    ):
        ratings.samples(single)
    everything = from_columns(["a"] * 20 + ["b"], [*range(20), 0], np.ones(21), None, scale=(1, 5))
    with pytest.raises(ValueError, match="found user a with all 20 items, expected users who left some"):
        ratings.samples(everything)
    with pytest.raises(ValueError, match="last, history: found 0 and 100"):
        ratings.samples(everything, last=0)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_movielens_1m_as_published(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::10::5::978300760\n2::11::3::978302109\n1::11::4::978301968\n")
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n3::M::25::15::55117\n")
    (tmp_path / "movies.dat").write_text(
        "10::Café (1995)::Animation|Children's\n11::Waiting (1996)::Drama\n12::Other (1990)::Western\n", "latin-1"
    )
    data = rating_files.read_movielens_1m(tmp_path)
    assert (data.timed, data.rating.tolist()) == (True, [5, 3, 4])
    assert data.users.name.tolist() == ["1", "2"]  # the third rates nothing
    assert data.users.table.levels["gender"] == ("f", "m")
    assert data.users.table.columns["gender"].tolist() == [0, 1]
    assert data.items.table.columns["year"].tolist() == [1995, 1996]
    assert data.items.sets == {"genres": ("genres: Animation", "genres: Children's", "genres: Drama")}
    assert data.items.table.columns["genres: Drama"].tolist() == [0, 1]
    (tmp_path / "ratings.dat").write_text("1::10::5\n")
    with pytest.raises(ValueError, match=r"ratings.dat, line 1: found 3 fields, expected user, film, rating, time"):
        rating_files.read_movielens_1m(tmp_path)
    (tmp_path / "users.dat").unlink()
    (tmp_path / "ratings.dat").write_text("1::10::6::978300760\n")
    with pytest.raises(ValueError, match=r"users.dat: missing or damaged"):
        rating_files.read_movielens_1m(tmp_path)


OLD = (
    [{"reviewerID": "A", "asin": "B1", "overall": 5.0, "unixReviewTime": 1_400_000_000, "reviewerName": "x"}],
    [{"asin": "B1", "price": "$1,012.50", "brand": "Acme", "category": ["Beauty", "Soap"]}],
)
NEW = (
    [{"user_id": "A", "parent_asin": "B1", "rating": 5.0, "timestamp": 1_400_000_000_000, "title": "x"}],
    [{"parent_asin": "B1", "price": 1012.5, "store": "Acme", "categories": ["Beauty", "Soap"]}],
)


@pytest.mark.parametrize(("reviews", "metadata"), [OLD, NEW])
def test_amazon_as_published_in_both_years(tmp_path, reviews, metadata):
    (tmp_path / "reviews.json.gz").write_bytes(gzip.compress(lines(reviews).encode()))
    (tmp_path / "meta.json").write_text(lines([*metadata, {**metadata[0], "price": None}]))
    data = rating_files.read_amazon(tmp_path / "reviews.json.gz", tmp_path / "meta.json")
    assert (data.time.tolist(), data.items.name.tolist()) == ([1_400_000_000], ["B1"])
    assert data.items.table.columns["price"].tolist() == [1012.5]
    assert data.items.table.levels["brand"] == ("acme",)
    assert data.items.sets["categories"] == ("categories: Beauty", "categories: Soap")
    (tmp_path / "meta.json").write_text("")
    without = rating_files.read_amazon(tmp_path / "reviews.json.gz", tmp_path / "meta.json")
    assert np.isnan(without.items.table.columns["price"]).all()


def test_bad_lines_of_json_are_named(tmp_path):
    (tmp_path / "meta").write_text("")
    for text, message in (
        ("{]\n", "line 2: .*expected a JSON object"),
        ("{}\n", "line 2: found no 'asin'"),
        ("3\n", "found int"),
    ):
        (tmp_path / "reviews").write_text("\n" + text if "asin" not in message else '\n{"reviewerID": "A"}\n')
        with pytest.raises(ValueError, match=message):
            rating_files.read_amazon(tmp_path / "reviews", tmp_path / "meta")


def test_yelp_as_published(tmp_path):
    files = {
        "review": [
            {"user_id": "u", "business_id": "b", "stars": 4.0, "date": "2018-07-07 22:09:11", "text": "good"},
            {"user_id": "v", "business_id": "b", "stars": 2.0, "date": "2018-07-08 22:09:11", "text": "bad"},
        ],
        "user": [{"user_id": name, "average_stars": 3.5, "useful": k, "fans": 2} for k, name in enumerate("uvw")],
        "business": [
            {
                "business_id": "b",
                "city": "Tucson",
                "state": "AZ",
                "stars": 3.0,
                "review_count": 9,
                "categories": "Pets, Vets",
            }
        ],
    }
    for name, rows in files.items():
        (tmp_path / f"yelp_academic_dataset_{name}.json").write_text(lines(rows))
    data = rating_files.read_yelp(tmp_path)
    assert np.diff(data.time).tolist() == [86_400]
    assert data.users.table.columns["useful"].tolist() == [0, 1]
    assert data.items.table.levels["city"] == ("tucson",)
    assert data.items.sets["categories"] == ("categories: Pets", "categories: Vets")


def test_rare_levels_become_one():
    names = [f"b{i}" for i in range(80)]
    brands = np.array(["common"] * 2 + [f"brand {i:02}" for i in range(78)])
    data = from_columns(["u"] * 80, names, np.ones(80), None, scale=(1, 5), items=Raw(names, {"brand": brands}))
    levels = data.items.table.levels["brand"]
    assert len(levels) == 50
    assert {"common", "other"} <= set(levels)


def test_rare_members_are_left_out():
    names = [f"b{i}" for i in range(60)]
    sets = [["common", f"rare {i:02}"] for i in range(60)]
    data = from_columns(["u"] * 60, names, np.ones(60), None, scale=(1, 5), items=Raw(names, {}, {"kinds": sets}))
    (columns,) = data.items.sets.values()
    assert len(columns) == 50
    assert data.items.table.columns["kinds: common"].all()


def test_packaged_data_have_their_published_sizes():
    small, lectures = rating_files.movielens_small(), rating_files.insteval()
    assert (len(small.user), len(small.users.name), len(small.items.name)) == (100_004, 671, 9_066)
    assert (len(lectures.user), len(lectures.users.name), len(lectures.items.name)) == (73_421, 2_972, 1_128)
    assert (small.timed, lectures.timed) == (True, False)
    parts = ratings.samples(small)
    assert [int(part.y.sum()) for part in parts] == [4790, 1147, 1160]
    assert list(lectures.context.columns) == ["age of the lecture", "service"]
