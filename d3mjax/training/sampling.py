"""Samplers: the examples of a training step as a pure function of (key, weights, step).

Both samplers draw examples of positive weight only, whatever their number, with static shapes. Sorting inside the
training loop costs more than training a small model; `permute` addresses a random permutation without building it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt32

from d3mjax.types import Sampler

_ROUNDS = 24  # an example stays put in all rounds with probability 2^-24; at 8 rounds that already shows


def _mix(x: UInt32[Array, "*s"]) -> UInt32[Array, "*s"]:
    """A bijective 32-bit hash in which every input bit flips every output bit with probability near one half."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def permute(seed: UInt32[Array, "*s"], index: Int[Array, "*s"], size: Int[Array, ""]) -> Int[Array, "*s"]:
    """Image of ``index`` under the random permutation of ``0..size-1`` that ``seed`` names; elementwise, no tables.

    Swap-or-not (Hoang, Morris and Rogaway, 2012): round r pairs x with ``K_r - x mod size`` and swaps the pair on a
    keyed bit of its larger member. Each round is an involution, so any number of rounds is a bijection; ``size`` may
    be traced, need not be a power of two, and must be below 2^24. Entries with ``index >= size`` have no meaning.
    """
    size = jnp.maximum(size, 1).astype(jnp.uint32)
    x = index.astype(jnp.uint32)
    for r in range(_ROUNDS):
        round_key = _mix(seed + jnp.uint32(0x9E3779B9 * (r + 1) % 2**32))
        # Scaling 24 random bits instead of taking them modulo size: integer division does not vectorise.
        pivot = ((round_key >> 8).astype(jnp.float32) * (size / 2.0**24)).astype(jnp.uint32)
        pivot = jnp.minimum(pivot, size - 1)
        partner = jnp.where(pivot >= x, pivot - x, pivot + size - x)
        swap = _mix(jnp.maximum(x, partner) ^ round_key) >> 31
        x = jnp.where(swap == 1, partner, x)
    return x.astype(jnp.int32)


def shuffled() -> Sampler:
    """Sampler of epochs over the examples of positive weight, each in a new order; a batch may straddle two epochs.

    The loss of example i is multiplied by its weight over the mean positive weight, so a subset mask trains exactly
    like the smaller data set, and the scale of the weights does not change the learning rate. At most 2^32 examples
    may be drawn in one run. With all weights zero every index is -1 and every weight 0.

    >>> import jax, jax.numpy as jnp, d3mjax
    >>> sampler = d3mjax.shuffled()
    >>> plan = sampler.prepare(jnp.array([1.0, 0.0, 1.0, 1.0]))
    >>> index, weight = sampler.draw(jax.random.key(0), plan, jnp.arange(2), 3)
    >>> [sorted(epoch.tolist()) for epoch in index]
    [[0, 2, 3], [0, 2, 3]]
    """

    def prepare(weights: Float[Array, "n"]):
        positive = weights > 0
        (kept,) = jnp.nonzero(positive, size=weights.shape[0], fill_value=-1)
        count = jnp.maximum(positive.sum(), 1)
        return kept.astype(jnp.int32), count.astype(jnp.int32), weights * (count / jnp.maximum(weights.sum(), 1e-30))

    def draw(key: Key[Array, ""], plan, steps: Int[Array, "s"], batch_size: int):
        kept, count, weights = plan
        start = steps.astype(jnp.uint32)[:, None] * jnp.uint32(batch_size)
        position = start + jnp.arange(batch_size, dtype=jnp.uint32)[None, :]
        epoch, rank = jnp.divmod(position, count.astype(jnp.uint32))
        seed = jax.random.bits(key, dtype=jnp.uint32)
        # In a loop of its own: fused with the gathers below, permuting would not vectorise and take 4 times as long.
        order = lambda row: permute(seed + _mix(row[0]), row[1].astype(jnp.int32), count)
        index = kept[jax.lax.map(order, (epoch, rank), batch_size=32)]
        return index, jnp.where(index < 0, 0.0, weights[index])

    return Sampler(prepare, draw)


def resampled() -> Sampler:
    """Sampler with replacement: example i with probability ``weights[i] / sum(weights)``; every drawn weight is 1.

    >>> import jax, jax.numpy as jnp, d3mjax
    >>> sampler = d3mjax.resampled()
    >>> index, weight = sampler.draw(jax.random.key(0), sampler.prepare(jnp.array([0.0, 1.0])), jnp.arange(3), 2)
    >>> index.tolist(), weight.tolist()
    ([[1, 1], [1, 1], [1, 1]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    """

    def prepare(weights: Float[Array, "n"]):
        return jnp.cumsum(weights)

    def draw(key: Key[Array, ""], plan, steps: Int[Array, "s"], batch_size: int):
        total = plan[-1]
        keys = jax.vmap(lambda step: jax.random.fold_in(key, step))(steps)
        level = jax.vmap(lambda k: jax.random.uniform(k, (batch_size,)))(keys) * total
        # Rounding may push a level up to the total itself, which lies beyond the last interval.
        level = jnp.minimum(level, jnp.nextafter(total, jnp.zeros_like(total)))
        index = jnp.searchsorted(plan, level.reshape(-1), side="right").reshape(level.shape).astype(jnp.int32)
        index = jnp.where(total > 0, index, -1)
        return index, jnp.where(index < 0, 0.0, 1.0)

    return Sampler(prepare, draw)
