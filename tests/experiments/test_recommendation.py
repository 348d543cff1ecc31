"""Cells of interactions, their training sets and metrics; tasks from ratings to the examples of a recommender."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from d3mjax.data import splits
from d3mjax.data.planted import mixed_errors
from d3mjax.data.sets import ratings
from d3mjax.diagnosis import cells, vectors
from experiments import local_data, rating_tasks
from experiments.rating_tasks import FILMS, MOVIELENS, RATING_TASKS, small
from experiments.recommendation import demix_recommendation, rating_cells

TASK = small(MOVIELENS)
CONFIG = demix_recommendation.Config(train=200, validation=40, history=6, seeds=1, cleans=(0.5,))


@pytest.fixture(scope="module", params=["din", "dien"])
def made(request):
    """One draw of errors among made people, its cell, and the learner."""
    config = replace(CONFIG, network=request.param)
    task = demix_recommendation.make_task(TASK, config)
    drawn, computed = task.collect(0)
    return task, drawn[0], computed[0]


def test_channels_are_those_of_the_samples_as_recorded(made):
    _, drawn, cell = made
    train, validation = drawn.train.samples, drawn.validation.samples
    assert cell.vectors.shape == (200, 4, 40)
    np.testing.assert_allclose(cell.vectors[:, 1], vectors.cosine(*drawn.seen), atol=2e-3)
    np.testing.assert_array_equal(cell.vectors[:, 2], train.y[:, None] == validation.y[None])
    own = np.where(train.y == 1, 1, -1) * (cell.logits[:, 1] - cell.logits[:, 0])
    np.testing.assert_allclose(cell.vectors[:, 3, 0], np.logaddexp(0, -own), rtol=2e-3, atol=1e-3)
    of_label = np.take_along_axis(cell.by_class, train.y[:, None, None], 1)[:, 0]
    np.testing.assert_allclose(cell.vectors[:, 0], -of_label, atol=1e-6)
    # Two classes: another label turns the gradient round (`vectors`).
    np.testing.assert_allclose(cell.by_class[:, 0], -cell.by_class[:, 1], atol=2e-3)
    assert np.isfinite(cell.extras).all()


def test_described_cells_have_the_flags_of_the_draw_and_ranks(made):
    _, drawn, cell = made
    of = demix_recommendation.described(drawn, cell)
    assert of["features"].shape == (200, len(cells.FEATURES))
    assert of["signals"].shape == (200, len(rating_cells.SIGNALS))
    assert ((of["signals"] > 0) & (of["signals"] < 1)).all()
    np.testing.assert_array_equal(of["flags"], drawn.train.flags)
    np.testing.assert_array_equal(
        of["known"], mixed_errors.minority(drawn.rule, drawn.train.samples.table, drawn.train.samples.y)
    )


def test_training_sets_repair_what_is_flagged(made):
    _, drawn, _ = made
    truth, y = drawn.train.flags, drawn.train.samples.y
    sets = demix_recommendation.training_sets(drawn, np.ones(len(y), bool), truth.astype(float), truth, 0)
    np.testing.assert_array_equal(sets["dirty"][0], y)
    for name in ("predicted, labels", "oracle, labels"):
        np.testing.assert_array_equal(sets[name][0], drawn.train.clean.y)
        assert (sets[name][1] == 1).all()
    np.testing.assert_array_equal(sets["oracle, as published"][1] == 0, truth[:, 1])
    dropped, random = (sets[name][1] for name in ("drop all detected", "drop as many at random"))
    np.testing.assert_array_equal(dropped, ~truth.any(1))
    assert random.sum() == dropped.sum()
    weights = sets["kernel-balanced propensity"][1]
    assert (weights[y == 0] == 1).all()
    np.testing.assert_allclose(weights[y == 1].mean(), 1, rtol=1e-5)


def test_metrics_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    odds, y, group = rng.normal(size=(3, 90)), rng.integers(0, 2, 90), rng.integers(0, 3, 90)
    against = rng.random(90) < 0.4
    values = demix_recommendation.ranked(odds, y, group, against)
    area = lambda rows: np.mean([roc_auc_score(y[rows], one[rows]) for one in odds])
    np.testing.assert_allclose(values["auc"], area(slice(None)), rtol=1e-5)
    np.testing.assert_allclose(values["auc_against"], area(against), rtol=1e-5)
    np.testing.assert_allclose(values["worst_group_auc"], min(area(group == g) for g in range(3)), rtol=1e-5)
    expected = np.mean([log_loss(y, 1 / (1 + np.exp(-one))) for one in odds])
    np.testing.assert_allclose(values["log_loss"], expected, rtol=1e-6)


def test_balanced_weights_level_popularity():
    whole = TASK.load()
    train = ratings.samples(whole, history=6)[0]
    (seen,) = rating_cells.features([train])
    weights = rating_cells.balanced(0, train, seen, train.y == 1)
    popular = train.table.columns["item: popularity"]
    taken = train.y == 1
    level = popular[np.unique(train.item, return_index=True)[1]].mean()
    before, after = popular[taken].mean(), np.average(popular[taken], weights=weights[taken])
    assert abs(after - level) < 0.5 * abs(before - level)


def test_the_rules_of_packaged_data_join_both_sides():
    for name in ("movielens", "lectures"):
        task = RATING_TASKS[name]
        train, _, test = ratings.samples(task.load(), history=5, liked=task.liked)
        condition = np.asarray(task.shortcut(train).condition(train.table))
        assert 0.4 < condition.mean() < 0.6
        index = mixed_errors.subset(jax.random.key(0), train.table, train.y, task.shortcut(train), share=0.1, size=4000)
        assert len(index) == 4000
        assert set(task.groups(train, test)) == set(range(4))


@pytest.mark.parametrize("name", ["movielens-1m", "amazon", "yelp"])
def test_files_that_are_missing_are_named(name, monkeypatch, tmp_path):
    monkeypatch.setenv(local_data.VARIABLE, str(tmp_path))
    monkeypatch.setattr(local_data, "FILLED", tmp_path)
    with pytest.raises(ValueError, match="data: found no "):
        RATING_TASKS[name].load()


def test_published_rules_of_files_that_are_not_here():
    """On a table with the columns of Yelp and of MovieLens 1M."""
    whole = ratings.from_columns(
        ["m1", "m1", "f1", "f1"] * 5,
        ["x", "y", "x", "y"] * 5,
        np.full(20, 3.0),
        None,
        scale=(1, 5),
        users=ratings.Raw(["m1", "f1"], {"gender": np.array(["m", "f"])}),
        items=ratings.Raw(
            ["x", "y"],
            {"stars": np.array([4.5, 4.5]), "reviews": np.array([100.0, 5.0])},
            {"genres": [["Action", "Sci-Fi"], ["Romance", "Drama"]]},
        ),
    )
    train = ratings.samples(whole, liked=4.0)[0]
    holds = lambda task: np.asarray(task.shortcut(train).condition(train.table))
    np.testing.assert_array_equal(holds(RATING_TASKS["yelp"]), train.item == 0)
    men = whole.users.name[train.user] == "m1"
    np.testing.assert_array_equal(holds(RATING_TASKS["movielens-1m"]), np.where(men, train.item == 0, train.item == 1))


def test_the_median_of_training_samples_divides_users():
    train, _, test = ratings.samples(TASK.load(), history=6)
    busy = rating_tasks.above("user: activity", train)
    assert 0.3 < busy(train.table).mean() < 0.6
    np.testing.assert_array_equal(
        busy(test.table), test.table.columns["user: activity"] > np.median(train.table.columns["user: activity"])
    )


def test_configurations_are_checked():
    with pytest.raises(ValueError, match="network: found 'mlp'"):
        demix_recommendation.Config(network="mlp")
    with pytest.raises(ValueError, match="first_seed: found 2, expected 4"):
        demix_recommendation.Config(first_seed=2)


def test_films_are_a_task_of_d3m_by_activity_and_genre():
    data = FILMS.read(0, smoke=True)
    splits.check_data(data, 2, 4)
    assert not set(data.target.x["user"]) & set(data.selection.x["user"])
    network = FILMS.network()
    variables = network.init(jax.random.key(0), data.test.x)
    assert network.apply(variables, data.test.x)[0].shape == (len(data.test.y), 2)
    assert "logits" in variables["params"]
    loud = data.test.x["members"][:, TASK.load().items.sets["genres"].index("genres: loud")]
    np.testing.assert_array_equal(data.test.group % 2, loud)


def test_sizes_of_films_are_those_of_the_data():
    whole = MOVIELENS.load()
    assert (len(whole.users.name), len(whole.items.name)) == (671, 9066)
    data = FILMS.read(1)
    assert (len(data.train.y), data.train.x["levels"].shape[1]) == (4000, 0)
    assert splits.group_sizes(data.test, 4).min() > 100
