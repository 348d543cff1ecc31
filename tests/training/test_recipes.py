"""The published schedule, optimiser and counts of steps."""

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from d3mjax.networks import dense
from d3mjax.training import augmentations, recipes


def test_triangular_rates():
    rates = jnp.asarray([recipes.triangular(0.5, 5, 24)(step) for step in (0, 1, 5, 6, 24)])
    planted.close(rates, np.array([0, 0.1, 0.5, 0.5 * 18 / 19, 0]))


def test_momentum_sgd_decays_through_the_momentum():
    tx = recipes.momentum_sgd(0.1)
    param, velocity = 2.0, 0.0
    state = tx.init(jnp.float32(param))
    for gradient in (1.0, -0.5, 0.25):
        velocity = 0.9 * velocity + gradient + 5e-4 * param
        update, state = tx.update(jnp.float32(gradient), state, jnp.float32(param))
        planted.close(update, -0.1 * velocity, terms=4)
        param += float(jnp.asarray(update))


def test_the_cifar_recipe_trains_and_learns():
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = (rng.normal(size=(40, 4, 4, 1)) + (2 * y - 1)[:, None, None, None]).astype(np.float32)
    split = planted.split_of(x.reshape(40, -1), y)
    augment = augmentations.flip_translate_cutout((4, 4, 1), reach=1, size=1)
    recipe = recipes.datamodels_cifar10(dense.linear(2), 40, batch_size=16, augment=augment)
    assert recipe.num_steps == 24 * 2
    trainer = recipe.trainer
    run, start = jax.jit(trainer.run, static_argnums=3), trainer.init(jax.random.key(0), split.x[:1])
    state, info = run(start, split, jnp.ones(40), recipe.num_steps)
    # smoothed targets of .95 and .05 cannot be matched better than their entropy
    assert -0.95 * np.log(0.95) - 0.05 * np.log(0.05) < info.loss[-8:].mean() < 0.9 * info.loss[:4].mean()
    first, _ = run(start, split, jnp.ones(40), 1)
    jax.tree.map(np.testing.assert_array_equal, first.variables, start.variables)  # the rate starts at 0
    assert np.isfinite(state.variables["params"]["Dense_0"]["kernel"]).all()
    with pytest.raises(ValueError, match="found 15, expected at least batch_size = 16"):
        recipes.datamodels_cifar10(dense.linear(2), 15, batch_size=16)
