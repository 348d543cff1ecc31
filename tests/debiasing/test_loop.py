"""The loop of removal alone: what scores, rules, weights and keys each round sees; D3M itself is in test_d3m.py."""

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from d3mjax.debiasing import loop, selection


def _fit(key, weights):
    """A model that depends on its key and on every weight."""
    return jax.random.normal(key, weights.shape) * weights


def _score(key, models, weights):
    return models + jax.random.normal(key, weights.shape)


def test_keep_all_is_bitwise_the_base_training():
    weights = jnp.abs(planted.normal(0, 9))
    keep_all = lambda scores: jnp.ones(scores.shape, bool)
    rounds = [
        loop.prune_and_retrain(jax.random.key(3), weights, _score, keep_all, _fit, lambda models: models, rounds=count)
        for count in (0, 2)
    ]
    np.testing.assert_array_equal(rounds[1].metrics, jnp.stack([rounds[0].metrics[0]] * 3))
    np.testing.assert_array_equal(rounds[1].weights, jnp.stack([weights] * 3))
    assert not np.array_equal(rounds[1].scores[1], rounds[1].scores[2])


def test_scores_by_hand_are_used_verbatim_and_weights_reach_fit():
    hand = jnp.array([3.0, -1.0, 0.5, -2.0, 0.0])
    weights = jnp.array([1.0, 2.0, 0.5, 1.0, 4.0])
    result = loop.prune_and_retrain(
        jax.random.key(0),
        weights,
        lambda key, models, weights: hand,
        selection.drop_negative,
        lambda key, weights: {"trained on": weights},
        lambda models: models["trained on"],
    )
    np.testing.assert_array_equal(result.scores, [[0, 0, 0, 0, 0], hand])
    np.testing.assert_array_equal(result.weights, [weights, [1, 0, 0.5, 0, 4]])
    np.testing.assert_array_equal(result.metrics, result.weights)


def test_what_is_dropped_stays_dropped_and_every_round_drops_more():
    seen = []

    def score(key, models, weights):
        seen.append((jax.random.key_data(key).tolist(), models, weights))
        # What was dropped now looks worst: it must not use up the number of examples that this round may drop.
        return jnp.where(weights > 0, jnp.arange(9.0), -100.0)

    result = loop.prune_and_retrain(
        jax.random.key(0),
        jnp.ones(9).at[4].set(0.0),
        score,
        lambda scores: selection.drop_lowest(scores, 2),
        lambda key, weights: (jax.random.key_data(key), weights),
        lambda models: models[0],
        rounds=3,
    )
    kept = [np.flatnonzero(row).tolist() for row in result.weights]
    assert kept == [[0, 1, 2, 3, 5, 6, 7, 8], [2, 3, 5, 6, 7, 8], [5, 6, 7, 8], [7, 8]]
    assert len({str(key) for key, _, _ in seen}) == 3  # a fresh key a round for scoring ...
    np.testing.assert_array_equal(result.metrics, jnp.stack([result.metrics[0]] * 4))  # ... the same for training
    for r, (_, model, weights) in enumerate(seen):  # the models scored are those trained on the weights they are given
        np.testing.assert_array_equal(model[1], weights)
        np.testing.assert_array_equal(weights, result.weights[r])


def test_negative_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds: found -1"):
        loop.prune_and_retrain(jax.random.key(0), jnp.ones(9), _score, selection.drop_negative, _fit, len, rounds=-1)
