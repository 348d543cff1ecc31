"""Learning from Failure against sequences computed in numpy, and a planted shortcut that it resists."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest

from d3mjax.networks import dense
from d3mjax.training import lff, objectives, sampling
from d3mjax.training.trainer import make_trainer

N, C = 12, 3


def probabilities(logits):
    exp = np.exp(np.asarray(logits, np.float64))
    return exp / exp.sum(1, keepdims=True)


def test_generalised_cross_entropy_and_its_gradient():
    logits, y, q = 3 * planted.normal(0, 9, C), jnp.arange(9) % C, 0.7
    p = probabilities(logits)[np.arange(9), y]
    value, pullback = jax.vjp(lambda a: objectives.generalised_losses(q)(a, y), logits)
    planted.close(value, (1 - p**q) / q, terms=9)
    slope = jax.vjp(lambda a: objectives.losses(a, y), logits)[1](jnp.asarray(p**q, jnp.float32))[0]
    planted.close(pullback(jnp.ones(9))[0], slope, terms=9, scale=1)
    traced = jax.jit(lambda q: objectives.generalised_losses(q)(logits, y))
    planted.close(traced(q), value, terms=9)
    planted.close(objectives.generalised_losses(1.0)(logits, y), 1 - p, terms=9)
    planted.close(objectives.generalised_losses(1e-6)(logits, y), -np.log(p), terms=9, scale=10)
    for q in (0.0, 1.5):
        with pytest.raises(ValueError, match=rf"q: found {q}, expected a power in \(0, 1\]"):
            objectives.generalised_losses(q)


def test_weights_are_relative_losses_within_classes():
    loss, highest = jnp.array([[2.0, 1.0, 0.0, 0.0], [1.0, 0.0, 3.0, 0.0]]), jnp.array([[4.0, 1.0], [2.0, 6.0]])
    # Shares of the highest: .5 and .5; 1 and 0; 0 and .5; none.
    weights = lff.relative_difficulty(loss, highest, jnp.array([0, 1, 1, 0]))
    np.testing.assert_array_equal(weights, [0.5, 1.0, 0.0, 0.5])
    assert lff.relative_difficulty(loss[:, 3:], jnp.zeros((2, 2)), jnp.array([0])).tolist() == [0.5]


def batches(steps, b=5):
    """Rows drawn with replacement between steps, not within one, some with weight 0."""
    rng = np.random.default_rng(1)
    labels = np.arange(N) % C
    for t in range(steps):
        rows = rng.permutation(N)[:b]
        weight = rng.choice([0.0, 0.5, 1.0], b).astype(np.float32)
        yield 2 * planted.normal(t, b, 2 * C), rows, labels[rows], weight


def test_losses_follow_the_definition_step_by_step():
    objective, memory, q = lff.objective(N, C, memory=0.6), 0.6, 0.7
    state, mean = objective.init(), {}
    for t, (logits, rows, y, weight) in enumerate(batches(6)):
        batch = planted.split_of(jnp.zeros((5, 1)), jnp.asarray(y))._replace(id=jnp.asarray(rows))
        value, state = objective.value(state, logits, batch, jnp.asarray(weight))
        p = np.stack([probabilities(part)[np.arange(5), y] for part in (logits[:, :C], logits[:, C:])])
        new = {row: -np.log(p[:, i]) for i, row in enumerate(rows.tolist())}
        moved = {row: memory * mean[row] + (1 - memory) * a if row in mean else a for row, a in new.items()}
        mean |= {row: moved[row] for row, w in zip(rows.tolist(), weight, strict=True) if w}
        expected = 0.0
        for i, row in enumerate(rows.tolist()):
            if weight[i]:
                share = moved[row] / np.max([a for other, a in mean.items() if other % C == row % C], 0)
                hard = share[0] / share.sum()
                expected += weight[i] * ((1 - p[0, i] ** q) / q - hard * np.log(p[1, i])) / 5
        planted.close(np.float32(value), expected, terms=20 * (t + 1), scale=4)
    seen = sorted(mean)
    planted.close(np.asarray(state.loss)[:, seen], np.stack([mean[row] for row in seen], 1), terms=60)
    assert (np.asarray(state.loss)[:, [row for row in range(N) if row not in mean]] == 0).all()
    with pytest.raises(ValueError, match=r"memory: found 1\.0, expected at least 0 and below 1"):
        lff.objective(N, C, memory=1.0)


def test_no_gradient_passes_through_the_weights():
    logits, rows, y, _ = next(batches(1))
    batch = planted.split_of(jnp.zeros((5, 1)), jnp.asarray(y))._replace(id=jnp.asarray(rows))
    objective, ones = lff.objective(N, C), jnp.ones(5)
    _, state = objective.value(objective.init(), logits, batch, ones)
    loss = state.loss[:, rows]
    highest = jnp.stack([jnp.max(jnp.where(y == c, loss, 0), axis=1) for c in range(C)], 1)
    weights = lff.relative_difficulty(loss, highest, jnp.asarray(y))

    def fixed(logits):
        easy = objectives.generalised_losses(0.7)(logits[:, :C], batch.y)
        return jnp.mean(easy + weights * objectives.losses(logits[:, C:], batch.y))

    gradient = jax.grad(lambda a: objective.value(objective.init(), a, batch, ones)[0])(logits)
    planted.close(gradient, jax.grad(fixed)(logits), terms=9, scale=1)


def test_twins_are_two_networks_of_their_own_keys():
    model, x = dense.mlp((4,), C), planted.normal(3, 6, 2)
    both = lff.twins(model)
    variables = both.init(jax.random.key(0), x)
    logits, after = both.apply(variables, x)
    planted.equal(jax.tree.leaves(after), jax.tree.leaves(variables))
    for i, part in enumerate((lff.first, lff.second)):
        planted.equal(part(variables), model.init(jax.random.fold_in(jax.random.key(0), i), x))
        np.testing.assert_array_equal(logits[:, i * C : (i + 1) * C], model.apply(part(variables), x)[0])


def test_the_second_twin_learns_what_the_shortcut_hides():
    n = 400
    rng = np.random.default_rng(4)
    y = np.arange(n) % 2
    agrees = rng.random(n) < 0.95
    shortcut = 4 * np.where(agrees, 2 * y - 1, 1 - 2 * y)  # easy, and wrong for one in twenty
    x = np.stack([shortcut, 2 * y - 1 + 0.3 * rng.normal(size=n)], 1).astype(np.float32)
    split, ones, model = planted.split_of(x, y), jnp.ones(n), dense.linear(2)

    def trained(model, objective):
        trainer = make_trainer(model, objective, optax.adam(0.01), sampling.shuffled(), batch_size=50)
        return trainer.run(trainer.init(jax.random.key(0), split.x[:1]), split, ones, 200)[0].variables

    variables = trained(lff.twins(model), lff.objective(n, 2))
    right = lambda v: (np.asarray(model.apply(v, x)[0]).argmax(1) == y)[~agrees].mean()
    erm = right(trained(model, objectives.cross_entropy()))
    assert right(lff.first(variables)) <= erm
    assert right(lff.second(variables)) > erm + 0.3
