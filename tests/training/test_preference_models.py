"""Losses of pairs are those of Bradley-Terry and DPO; gradients, symmetry, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from made_pairs import swapped

from d3mjax.attribution import gradients, outputs, trak
from d3mjax.networks import decoders, dense
from d3mjax.networks.adapt import from_functions
from d3mjax.training import ensemble, objectives, sampling
from d3mjax.training.preferences import bradley_terry, pairwise, with_reference
from d3mjax.training.trainer import make_trainer
from d3mjax.types import Model, Split

TINY = decoders.LlamaConfig(vocabulary=13, width=8, blocks=2, heads=2, key_heads=1, inner=12, positions=16)
LINEAR = from_functions(lambda key, x: jnp.zeros(x.shape[1]), lambda w, x: x @ w)


def vectors(n=6, d=4):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, n, d)).astype(np.float32)
    y = rng.integers(0, 2, n).astype(np.int32)
    return Split({"first": first, "second": second}, y, y, 10 + np.arange(n))


def texts(n=5, length=7):
    rng = np.random.default_rng(1)

    def side():
        lengths = rng.integers(4, length + 1, n)[:, None]
        mask = np.arange(length)[None] < lengths
        return {"ids": rng.integers(0, 13, (n, length)), "mask": mask, "response": mask & (np.arange(length) > 2)}

    y = rng.integers(0, 2, n).astype(np.int32)
    return Split({"first": side(), "second": side()}, y, y, np.arange(n))


@pytest.fixture(scope="module")
def dpo():
    """A trained model, its reference before, pairs with the reference, and log-probabilities of both sides now."""
    log_probs, pairs = decoders.log_probs(TINY), texts()
    before = log_probs.init(jax.random.key(0), pairs.x["first"])
    now = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(jax.random.key(1), a.shape), before)
    both = lambda variables: np.stack([log_probs.apply(variables, pairs.x[s])[0] for s in ("first", "second")], 1)
    return pairwise(log_probs, 0.3), now, with_reference(pairs, both(before)), both(now)


def test_the_loss_is_that_of_dpo(dpo):
    model, variables, pairs, now = dpo
    rows, y, reference = np.arange(len(pairs.y)), pairs.y, pairs.x["reference"]
    ratio = np.float64(now) - reference
    expected = -np.log(1 / (1 + np.exp(-0.3 * (ratio[rows, y] - ratio[rows, 1 - y]))))
    np.testing.assert_allclose(outputs.losses(model, variables, pairs), expected, rtol=1e-5)
    margins = outputs.hard_margins(model, variables, pairs)
    np.testing.assert_allclose(margins, 0.3 * (ratio[rows, y] - ratio[rows, 1 - y]), rtol=1e-4, atol=1e-5)


def test_before_training_the_loss_of_dpo_is_log_2(dpo):
    _, variables, pairs, now = dpo
    at_reference = with_reference(pairs, now)
    model = pairwise(decoders.log_probs(TINY), 2.0)
    np.testing.assert_allclose(outputs.losses(model, variables, at_reference), np.log(2), atol=1e-5)


def test_the_gradient_of_dpo_weighs_those_of_the_sides(dpo):
    """``-beta sigmoid(-margin) (grad log p(preferred) - grad log p(other))`` for each pair."""
    model, variables, pairs, _ = dpo
    output = gradients.negative_loss_output(model, variables)
    made = gradients.per_example(output, variables["params"], jax.tree.map(jnp.asarray, pairs))
    log_probs = decoders.log_probs(TINY)

    def of_side(params, tokens):
        return log_probs.apply({"params": params}, jax.tree.map(lambda a: a[None], tokens))[0][0]

    factor = 0.3 * jax.nn.sigmoid(-outputs.hard_margins(model, variables, pairs))
    first, second = (
        jax.vmap(jax.grad(of_side), (None, 0))(variables["params"], pairs.x[s]) for s in ("first", "second")
    )
    sign = jnp.where(pairs.y == 0, factor, -factor)
    expected = jax.tree.map(lambda a, b: jnp.einsum("n,n...->n...", sign, a - b), first, second)
    for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_the_gradient_of_a_linear_reward():
    split, weights = vectors(), jnp.array([0.5, -1.0, 0.2, 0.3])
    model, variables = bradley_terry(LINEAR), {"params": weights}
    output = gradients.negative_loss_output(model, variables)
    made = gradients.per_example(output, weights, split)
    preferred = np.where(split.y[:, None] == 0, 1, -1) * (split.x["first"] - split.x["second"])
    expected = preferred / (1 + np.exp(preferred @ weights))[:, None]
    np.testing.assert_allclose(made, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_swapping_sides_and_label_changes_nothing(kind, request):
    if kind == "dpo":
        model, variables, pairs, _ = request.getfixturevalue("dpo")
    else:
        model, pairs = bradley_terry(dense.mlp((5,), 1)), vectors()
        variables = model.init(jax.random.key(3), pairs.x)
    losses = outputs.losses(model, variables, pairs)
    np.testing.assert_allclose(outputs.losses(model, variables, swapped(pairs)), losses, rtol=1e-6)
    assert losses.std() > 1e-3


def test_pairs_are_trained_on_and_attributed_like_other_examples():
    """A reward learnt from preferences of the larger first number; each pair helps itself."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 60, 3)).astype(np.float32)
    y = (second[:, 0] > first[:, 0]).astype(np.int32)
    split, model = Split({"first": first, "second": second}, y, y, np.arange(60)), bradley_terry(dense.mlp((4,), 1))
    trainer = make_trainer(model, objectives.cross_entropy(), optax.adam(0.02), sampling.shuffled(), batch_size=20)
    keys = jax.random.split(jax.random.key(0), 2)
    variables, losses = ensemble.train_many(trainer, keys, split, np.ones(60), 150)
    ensemble.check_losses(losses, np.arange(2))
    margins = outputs.hard_margins(model, jax.tree.map(lambda a: a[0], variables), split)
    assert (margins > 0).mean() > 0.95
    tau, _ = trak.scores(jax.random.key(1), model, variables, split, split)
    assert (np.diag(tau) >= 0).all()
    assert np.diag(tau).mean() > np.abs(tau).mean()


def test_both_sides_are_one_batch_of_a_model_with_state():
    count = Model(
        lambda key, x: {"params": jnp.ones(()), "seen": jnp.zeros((), int)},
        lambda variables, x, *, train=False: (
            x.sum(1, keepdims=True) * variables["params"],
            {**variables, "seen": variables["seen"] + (len(x) if train else 0)},
        ),
    )
    model, split = bradley_terry(count), vectors()
    logits, after = model.apply(model.init(jax.random.key(0), split.x), split.x, train=True)
    assert int(after["seen"]) == 12
    np.testing.assert_allclose(logits[:, 1], split.x["second"].sum(1), rtol=1e-6)


def test_bad_input_is_named():
    split = vectors()
    values = np.zeros((6, 2))
    values[[1, 4], [0, 1]] = np.nan, -np.inf
    with pytest.raises(FloatingPointError, match=r"not finite for pairs 11, 14$"):
        with_reference(split, values)
    with pytest.raises(FloatingPointError, match=r"pairs 10, 11, 12, 13, 14 and 1 more"):
        with_reference(split, np.full((6, 2), np.nan))
    with pytest.raises(ValueError, match="beta: found 0"):
        pairwise(LINEAR, 0.0)
    x = {**split.x, "second": split.x["second"][:, :2]}
    with pytest.raises(ValueError, match=r"x: found sides of shapes \(6, 4\) and \(6, 2\)"):
        bradley_terry(LINEAR).apply({"params": jnp.zeros(4)}, x)
