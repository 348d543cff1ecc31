"""The loop alone, and D3M from end to end on a planted shortcut that a flipped sign would deepen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3mjax.debiasing import group_weighting, loop, selection
from d3mjax.networks import dense
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Split


def _shortcut(seed, majority, minority):
    """y = 0, 1 shows in feature 0 with noise; feature 1 says y in the majority and the opposite in the minority."""
    rng = np.random.default_rng(seed)
    n = majority + minority
    y, group = np.arange(n) % 2, (np.arange(n) >= majority).astype(int)
    sign = 2.0 * y - 1
    x = np.stack([sign + rng.normal(size=n), np.where(group, -1, 1) * sign], axis=1).astype(np.float32)
    return Split(*map(jnp.asarray, (x, y, group, np.arange(n))))


TRAIN, TARGET, TEST = _shortcut(0, 120, 30), _shortcut(1, 100, 100), _shortcut(2, 1000, 1000)
N = 150
MODEL = dense.linear(2)
TRAINER = make_trainer(
    MODEL, objectives.cross_entropy(), optax.sgd(0.2, momentum=0.9), sampling.shuffled(), batch_size=30
)


@jax.jit
def fit(key, weights):
    state, _ = TRAINER.run(TRAINER.init(key, TRAIN.x), TRAIN, weights, 200)
    return state.variables


def _group_mean(values, split):
    return jnp.stack([jnp.where(split.group == g, values, 0).sum() / (split.group == g).sum() for g in range(2)])


def accuracies(variables):
    logits, _ = MODEL.apply(variables, TEST.x)
    return _group_mean(jnp.where(logits.argmax(1) == TEST.y, 1.0, 0.0), TEST)


def _losses(variables, split):
    return objectives.losses(MODEL.apply(variables, split.x)[0], split.y)


@jax.jit
def d3m_score(key, variables, weights):
    """Alignment with gradient products as attribution: a step on example i moves -loss_g by grad_g . grad_i."""
    group = jax.jacrev(lambda v: _group_mean(_losses(v, TARGET), TARGET))(variables)
    own = jax.jacrev(lambda v: _losses(v, TRAIN))(variables)
    products = jax.tree.map(lambda a, b: a.reshape(N, -1) @ b.reshape(2, -1).T, own, group)
    losses = _group_mean(_losses(variables, TARGET), TARGET)
    return group_weighting.scores(jax.tree.reduce(jnp.add, products), group_weighting.softmax_weights(losses, beta=3.0))


def keep_all(scores):
    return jnp.ones(scores.shape, bool)


def test_d3m_raises_the_minority_and_its_mirror_image_lowers_it():
    keep = lambda scores: selection.drop_lowest(scores, 40)
    run = lambda score: loop.prune_and_retrain(jax.random.key(0), jnp.ones(N), score, keep, fit, accuracies)
    helped, hurt = run(d3m_score), run(lambda *args: -d3m_score(*args))
    base, after = np.asarray(helped.metrics)
    mirrored = np.asarray(hurt.metrics)[1]
    assert base[1] < base[0] - 0.1  # the shortcut was learned
    # 1,000 test examples a group: a standard error of 1.6 points at most
    assert after[1] > base[1] + 0.08, (base, after)
    assert mirrored[1] < base[1] - 0.08, (base, mirrored)
    removed = np.asarray(TRAIN.group)[np.asarray(helped.weights[1]) == 0]
    assert len(removed) == 40
    assert removed.mean() < 0.1  # what it removes is majority: no training groups were given
    np.testing.assert_array_equal(hurt.metrics[0], helped.metrics[0])


def test_dropping_negatives_raises_the_minority():
    result = loop.prune_and_retrain(jax.random.key(0), jnp.ones(N), d3m_score, selection.drop_negative, fit, accuracies)
    assert result.metrics[1, 1] > result.metrics[0, 1] + 0.08
    np.testing.assert_array_equal(result.weights[1], jnp.where(result.scores[1] >= 0, 1.0, 0.0))


def test_keep_all_is_bitwise_the_base_training():
    weights = jnp.asarray(np.random.default_rng(0).uniform(0, 2, N), jnp.float32)
    result = loop.prune_and_retrain(
        jax.random.key(3), weights, d3m_score, keep_all, fit, lambda variables: variables, rounds=2
    )
    jax.tree.map(lambda a: np.testing.assert_array_equal(a[1:], jnp.stack([a[0]] * 2)), result.metrics)
    np.testing.assert_array_equal(result.weights, jnp.stack([weights] * 3))
    base = loop.prune_and_retrain(jax.random.key(3), weights, d3m_score, keep_all, fit, lambda v: v, rounds=0)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), result.metrics, base.metrics)


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
        loop.prune_and_retrain(jax.random.key(0), jnp.ones(N), d3m_score, keep_all, fit, accuracies, rounds=-1)
