"""GroupDRO against a sequence computed in numpy, and where it must be ERM or a mean of groups."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted

from d3mjax.networks import dense
from d3mjax.training import objectives, sampling
from d3mjax.training.trainer import make_trainer

G = 3


def _batches(steps, b=8, seed=0):
    rng = np.random.default_rng(seed)
    y, group = rng.integers(2, size=(steps, b)), rng.integers(G, size=(steps, b))
    batch = lambda *labels: planted.split_of(jnp.zeros((b, 1)), *map(jnp.asarray, labels))
    return list(zip(2 * planted.normal(seed, steps, b, 2), map(batch, y, group), strict=True))


def test_weights_and_losses_follow_the_definition_step_by_step():
    eta, adjustment = 0.3, np.array([0.0, 0.5, 1.0], np.float32)
    objective = objectives.group_dro(G, eta=eta, adjustment=adjustment)
    state, q, rng = objective.init(), np.full(G, 1 / G), np.random.default_rng(1)
    for t, (logits, batch) in enumerate(_batches(6)):
        group = np.array(batch.group)
        group[group == t % G] = -1  # one group absent from every batch, its examples of unknown group
        weight = jnp.asarray(rng.uniform(0.5, 2, len(group)), jnp.float32)
        value, state = objective.value(state, logits, batch._replace(group=jnp.asarray(group)), weight)
        losses = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, batch.y), np.float64)
        mean = {g: np.average(losses[group == g], weights=weight[group == g]) for g in set(group.tolist()) - {-1}}
        grown = {g: q[g] * np.exp(eta * (mean[g] + adjustment[g])) for g in mean}
        mass = sum(q[g] for g in mean)
        for g in mean:
            q[g] = mass * grown[g] / sum(grown.values())
        planted.close(state, q, terms=8 * (t + 1))
        planted.close(np.float32(value), sum(q[g] * mean[g] for g in mean), terms=8 * (t + 1), scale=4)
    assert q.std() > 0.05


def test_constant_losses_reach_the_closed_form():
    objective = objectives.group_dro(2, eta=0.1)
    batch = planted.split_of(jnp.zeros((2, 1)), jnp.array([0, 0]), jnp.array([0, 1]))
    logits = jnp.array([[2.0, 0.0], [0.0, 1.0]])
    state = jax.lax.fori_loop(0, 40, lambda _, q: objective.value(q, logits, batch, jnp.ones(2))[1], objective.init())
    expected = np.exp(0.1 * 40 * np.log1p(np.exp([-2.0, 1.0])))
    planted.close(np.float32(state), expected / expected.sum(), terms=2 * 40)  # 40 factors


def test_without_a_step_size_it_is_the_mean_of_the_groups_losses():
    logits, batch = _batches(1, b=30)[0]
    value, q = objectives.group_dro(G, eta=0.0).value(jnp.full(G, 1 / G), logits, batch, jnp.ones(30))
    losses = np.asarray(objectives.losses(logits, batch.y))
    expected = np.mean([losses[np.asarray(batch.group) == g].mean() for g in range(G)])
    planted.close(np.float32(value), expected, terms=30)
    planted.close(q, np.full(G, 1 / G), terms=G)


def test_no_gradient_passes_through_the_weights():
    logits, batch = _batches(1)[0]
    objective = objectives.group_dro(G, eta=5.0)
    _, q = objective.value(objective.init(), logits, batch, jnp.ones(8))
    gradient = jax.grad(lambda z: objective.value(objective.init(), z, batch, jnp.ones(8))[0])(logits)
    member = jax.nn.one_hot(batch.group, G, axis=0)
    share = (q / jnp.maximum(member.sum(1), 1)) @ member
    expected = jax.grad(lambda z: (share * objectives.losses(z, batch.y)).sum())(logits)
    planted.close(gradient, expected, terms=8)


def _trained(objective, split, parts):
    trainer = make_trainer(dense.linear(2), objective, optax.sgd(0.5), sampling.shuffled(), batch_size=10)
    state = trainer.init(jax.random.key(0), split.x[:1])
    for steps in parts:
        state, _ = trainer.run(state, split, jnp.ones(len(split.y)), steps)
    return state


def test_one_group_trains_like_erm_and_resuming_restores_the_weights():
    x, y = np.asarray(planted.normal(2, 40, 3)), np.random.default_rng(3).integers(2, size=40)
    one = planted.split_of(x, y)
    dro, erm = (_trained(o, one, [20]).variables for o in (objectives.group_dro(1), objectives.cross_entropy()))
    planted.close(dro, erm, terms=20 * 10)  # steps of ten examples
    two = one._replace(group=(x[:, 0] > 0.5).astype(int))
    whole, parts = (_trained(objectives.group_dro(2, eta=0.5), two, p) for p in ([20], [7, 13]))
    np.testing.assert_array_equal(whole.objective_state, parts.objective_state)
    assert abs(float(whole.objective_state[0]) - 0.5) > 1e-3


def test_large_gains_do_not_overflow():
    logits, batch = _batches(1)[0]
    value, q = objectives.group_dro(G, eta=1e4).value(jnp.full(G, 1 / G), logits, batch, jnp.ones(8))
    assert np.isfinite(value)
    planted.close(q.sum(), 1.0, terms=G)
