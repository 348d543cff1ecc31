"""The LDS that d3mjax-debias predicts, on models that respond to their training sets exactly as columns claim."""

from typing import Any

import jax
import numpy as np
import pytest
from planted_files import QUICK, make_files

from d3mjax.commands import debias, debias_trust


def silent(count, state=""):
    del count, state
    return 0


@pytest.fixture(name="recipe")
def _recipe(tmp_path):
    few: dict[str, Any] = QUICK | {"retrains": 2}
    config = debias.Config(make_files(tmp_path), **few)
    return debias.recipe_of(debias.prepare(config, results=tmp_path))


@pytest.fixture(name="linear")
def _linear(recipe, monkeypatch):
    """Columns ``[n G]`` by which the margins of models respond to their weights, in place of training."""
    rng, groups = np.random.default_rng(0), recipe.num_groups
    columns = rng.standard_normal((len(recipe.data.train.y), groups)).astype(np.float32)
    y, group = (np.asarray(getattr(recipe.pool, name)) for name in ("y", "group"))

    def train(recipe, model_keys, weights, *, progress):
        margins = (np.asarray(weights) @ columns)[:, group]
        return np.stack([np.where(y == c, margins, 0) for c in range(recipe.data.num_classes)], -1)

    monkeypatch.setattr(debias_trust, "train", train)
    return columns


def measured(recipe, columns):
    return debias_trust.measure(jax.random.key(0), recipe, columns, np.asarray(recipe.data.target.group), silent)


def test_columns_by_which_models_respond_have_one(recipe, linear):
    assert debias_trust.num_models(recipe) == 32
    np.testing.assert_allclose([*measured(recipe, linear).values()], 1, atol=1e-4)
    np.testing.assert_allclose([*measured(recipe, -linear).values()][:3], -1, atol=1e-4)


def test_an_empty_group_is_left_out(recipe, linear):
    unknown = linear.copy()
    unknown[:, 0] = np.nan
    np.testing.assert_allclose([*measured(recipe, unknown).values()], 1, atol=1e-4)


def test_a_quick_look_trains_nothing_for_it(recipe, linear):
    quick = recipe._replace(counts=recipe.counts._replace(retrains=1))
    assert debias_trust.num_models(quick) == 0
    assert measured(quick, linear) == {}


def test_a_low_score_withdraws_the_order(recipe):
    (high,) = debias_trust.sentences({"trust": {"lds": 0.71, "low": 0.6, "high": 0.8, "reliability": 0.9}})
    (low,) = debias_trust.sentences({"trust": {"lds": 0.12, "low": -0.1, "high": 0.3, "reliability": 0.9}})
    assert "0.71 (0.60 to 0.80)" in high
    assert low.startswith("Do not read the order of examples.csv as an explanation")
    (noise,) = debias_trust.sentences({"trust": {"lds": 0.9, "low": 0.1, "high": 1.0, "reliability": 0.1}})
    assert noise.startswith("Do not read the order of examples.csv as an explanation")
    assert not list(debias_trust.sentences({}))
