"""Random augmentations of a batch of images ``[b h w c]`` as pure functions of ``(key, x)``; gaps are filled with 0."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def flip(key: Key[Array, ""], x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Each image mirrored left to right with probability one half."""
    mirrored = jax.random.bernoulli(key, shape=(x.shape[0], 1, 1, 1))
    return jnp.where(mirrored, x[:, :, ::-1], x)


def translate(key: Key[Array, ""], x: Float[Array, "b h w c"], *, reach: int) -> Float[Array, "b h w c"]:
    """Each image shifted by whole pixels, uniformly in ``-reach..reach`` for rows and for columns."""
    padded = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    start = jax.random.randint(key, (x.shape[0], 2), 0, 2 * reach + 1)
    crop = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), x.shape[1:])
    return jax.vmap(crop)(padded, start)


def cutout(key: Key[Array, ""], x: Float[Array, "b h w c"], *, size: int) -> Float[Array, "b h w c"]:
    """Each image with a square of ``size`` x ``size`` pixels set to 0, its position uniform inside the image."""
    batch, *lengths, _ = x.shape

    def inside(axis_key, length):
        start = jax.random.randint(axis_key, (batch, 1), 0, length - size + 1)
        offset = jnp.arange(length)[None] - start
        return (offset >= 0) & (offset < size)

    rows, columns = map(inside, jax.random.split(key), lengths)
    hole = rows[:, :, None] & columns[:, None, :]
    return jnp.where(hole[..., None], 0, x)


def flip_translate_cutout(image: Sequence[int], *, reach: int = 2, size: int = 4) -> Callable:
    """Augmentation ``augment(key, x)`` for `make_trainer`: flip, translate, cutout, in this order.

    ``x`` has any shape [b, ...] whose examples hold ``image = (h, w, c)``; the result has the same shape. ``reach`` and
    ``size`` are in pixels. Source: Ilyas et al., "Datamodels", 2022, for CIFAR-10.
    """

    def augment(key: Key[Array, ""], x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
        first, second, third = jax.random.split(key, 3)
        images = flip(first, x.reshape(x.shape[0], *image))
        return cutout(third, translate(second, images, reach=reach), size=size).reshape(x.shape)

    return augment
