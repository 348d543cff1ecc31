"""Each change on images whose pixels name their place, and its place in the trainer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import planted
import pytest

from d3mjax.networks import dense
from d3mjax.training import augmentations, objectives, sampling
from d3mjax.training.trainer import make_trainer

KEY = jax.random.key(0)
X = np.random.default_rng(0).uniform(1, 2, size=(200, 6, 5, 2)).astype(np.float32)


def test_flip_mirrors_about_half_of_the_images():
    got = np.asarray(augmentations.flip(KEY, jnp.asarray(X)))
    mirrored = (got == X[:, :, ::-1]).all((1, 2, 3))
    assert np.all(mirrored | (got == X).all((1, 2, 3)))
    assert abs(mirrored.sum() - 100) < 4 * np.sqrt(50)


def test_translate_shifts_by_every_pair_of_whole_pixels():
    got, seen = np.asarray(augmentations.translate(KEY, jnp.asarray(X), reach=1)), set()
    padded = np.pad(X, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for image, source in zip(got, padded, strict=True):
        shifts = [(i, j) for i in range(3) for j in range(3) if np.array_equal(image, source[i : i + 6, j : j + 5])]
        assert len(shifts) == 1
        seen.add(shifts[0])
    assert len(seen) == 9


def test_cutout_clears_one_whole_square_anywhere():
    got, seen = np.asarray(augmentations.cutout(KEY, jnp.asarray(X), size=3)), set()
    for image, source in zip(got, X, strict=True):
        rows, columns = np.nonzero((image == 0).all(-1))
        assert len(rows) == 9
        corner = rows.min(), columns.min()
        assert rows.max() - corner[0] == columns.max() - corner[1] == 2
        np.testing.assert_array_equal(image[image != 0], source[image != 0])
        seen.add(corner)
    assert len(seen) == 4 * 3


@pytest.mark.parametrize("shape", [(200, 6, 5, 2), (200, 60)])
def test_all_three_depend_on_the_key_alone_and_keep_the_shape(shape):
    augment = jax.jit(augmentations.flip_translate_cutout((6, 5, 2)))
    x = X.reshape(shape)
    got = augment(KEY, x)
    assert got.shape == shape
    np.testing.assert_array_equal(got, augment(KEY, x))
    np.testing.assert_array_equal(got.reshape(X.shape), augment(KEY, X))
    assert not np.array_equal(got, augment(jax.random.key(1), x))


def test_the_trainer_changes_inputs_alone_by_a_key_of_model_and_step():
    x = X[:24].reshape(24, -1)
    split = planted.split_of(x, np.arange(24) % 2)
    augment = augmentations.flip_translate_cutout((6, 5, 2))

    def trainer(**options):
        parts = dense.linear(2), objectives.cross_entropy(), optax.sgd(0.1), sampling.shuffled()
        return make_trainer(*parts, batch_size=8, **options)

    with_augment = trainer(augment=augment)
    run = jax.jit(with_augment.run, static_argnums=3)
    start = with_augment.init(KEY, x)
    whole, info = run(start, split, jnp.ones(24), 2)
    half, first = run(start, split, jnp.ones(24), 1)
    resumed, second = run(half, split, jnp.ones(24), 1)
    np.testing.assert_array_equal(info.loss, jnp.concatenate([first.loss, second.loss]))
    jax.tree.map(np.testing.assert_array_equal, whole.variables, resumed.variables)

    sampler = sampling.shuffled()
    index, _ = sampler.draw(jax.random.fold_in(KEY, 1), sampler.prepare(jnp.ones(24)), jnp.arange(2), 8)
    key = jax.random.fold_in(jax.random.fold_in(KEY, 2), 1)
    logits, _ = dense.linear(2).apply(half.variables, augment(key, jnp.asarray(x)[index[1]]))
    expected = objectives.losses(logits, jnp.asarray(split.y)[index[1]]).mean()
    planted.close(info.loss[1], expected, terms=60)  # features
    plain = jax.jit(trainer().run, static_argnums=3)(start, split, jnp.ones(24), 2)[1].loss
    assert not np.allclose(plain, info.loss)
