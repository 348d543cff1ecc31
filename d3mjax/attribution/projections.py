"""Random projections of gradient trees, as pairs of adjoint functions. The ``d x p`` matrix never exists as a whole.

``rademacher(p)``, ``gaussian(p)``, ``sjlt(p)`` and ``identity()`` make a function ``(key, params) -> Projection``. With
``g`` a gradient flattened to ``[d]``, ``project`` is ``g -> P' g`` and ``unproject`` is ``u -> P u``, where ``P [d p]``
has ``E[P P'] = I``: inner products are kept on average, with standard deviation about ``|g| |h| sqrt(2 / p)`` at most.

The rows of ``P`` that belong to a parameter leaf derive from the key, the leaf's path and a block number. So they do
not depend on the device, the microbatch, the sharding, or on which other leaves are projected beside it.

Cost per gradient: dense ``2 d p`` operations, SJLT ``s d``. A dense block is made anew for every call of ``project``:
give it some 500 rows or more. SJLT is bound by memory traffic: on CPUs it is fastest at 16 to 32 rows.

Sources: Achlioptas, 2003 (signs); Kane and Nelson, 2014 (sparse); Park et al., 2023 (of gradients).
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key


class Projection(NamedTuple):
    """Two adjoint linear maps: ``<project(g), u> = <g, unproject(u)>``. Results are float32 or wider."""

    project: Callable  # tree of [b, ...] -> Float[b p]
    unproject: Callable  # Float[k p] -> tree of [k, ...]


MakeProjection = Callable[[jax.Array, object], Projection]
"""``(key, params) -> Projection``, of which only the structure and shapes of ``params`` are used."""


def identity() -> MakeProjection:
    """No projection: ``p = d``, leaves flattened and joined. For tests, few parameters, or a last layer."""

    def make(key: Key[Array, ""], params) -> Projection:
        del key

        def project(grads):
            return jnp.concatenate([_rows(leaf) for leaf in jax.tree.leaves(grads)], axis=1)

        def unproject(vectors):
            ends = np.cumsum([leaf.size for leaf in jax.tree.leaves(params)])[:-1]
            return _unflatten(params, jnp.split(vectors, ends, axis=1))

        return Projection(project, unproject)

    return make


def rademacher(p: int, *, block: int = 4096) -> MakeProjection:
    """Entries ``+-1 / sqrt(p)``, from one random bit each; ``block`` rows of P are in memory at a time."""
    num_words = -(-p // 32)

    def signs(key, size, dtype):
        words = jax.random.bits(key, (size, num_words), jnp.uint32)
        bits = (words[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None, :]) & 1
        return jnp.where(bits.reshape(size, -1)[:, :p] == 1, 1.0, -1.0).astype(dtype)

    return _dense(p, block, signs)


def gaussian(p: int, *, block: int = 4096) -> MakeProjection:
    """Entries ``N(0, 1 / p)``; like `rademacher`, but slower to make."""
    return _dense(p, block, lambda key, size, dtype: jax.random.normal(key, (size, p), jnp.float32).astype(dtype))


def sjlt(p: int, *, nonzeros: int = 1) -> MakeProjection:
    """Each coordinate goes to ``nonzeros`` buckets with random signs, ``/ sqrt(nonzeros)``; buckets are balanced.

    A keyed permutation lays the coordinates of a leaf on ``ceil(size / p)`` full rounds of the p buckets, so every
    bucket is a signed sum of as many coordinates as any other: a gather and a sum, where hashing needs a slow scatter.
    """
    _check(p)
    if nonzeros < 1:
        raise ValueError(f"nonzeros: found {nonzeros}, expected at least 1")

    def lay(key, size):
        """Slot and sign of each coordinate; coordinate and sign (0: empty) of each slot ``[rounds p]``."""
        num_slots = -(-size // p) * p
        # One sort, where jax.random.permutation takes several; equal bits keep their order, which is no matter.
        slot = jnp.argsort(jax.random.bits(jax.random.fold_in(key, 0), (num_slots,)))[:size]
        sign = jax.random.rademacher(jax.random.fold_in(key, 1), (size,), jnp.float32) * nonzeros**-0.5
        coordinate = jnp.zeros(num_slots, slot.dtype).at[slot].set(jnp.arange(size, dtype=slot.dtype))
        return slot % p, sign, coordinate.reshape(-1, p), jnp.zeros(num_slots).at[slot].set(sign).reshape(-1, p)

    def make(key: Key[Array, ""], params) -> Projection:
        # Computed here, once, so that a loop over microbatches does not permute again each time.
        plans = [
            [lay(jax.random.fold_in(leaf_key, k), leaf.size) for k in range(nonzeros)]
            for leaf_key, leaf in _keyed_leaves(key, params)
        ]

        def project(grads):
            return sum(
                (flat.at[:, coordinate].get(mode="promise_in_bounds") * sign[None].astype(flat.dtype)).sum(1)
                for flat, plan in zip(map(_rows, jax.tree.leaves(grads)), plans, strict=True)
                for _, _, coordinate, sign in plan
            )

        def unproject(vectors):
            return _unflatten(
                params,
                [sum(jnp.take(vectors, bucket, axis=1) * sign[None] for bucket, sign, _, _ in plan) for plan in plans],
            )

        return Projection(project, unproject)

    return make


def default_size(num_examples: int) -> int:
    """p for n train examples: the power of two at or below ``n / 16``, between 32 and 4,096.

    P regularises, too: the Gram matrix of n examples in p dimensions is only trustworthy for p far below n. On two
    tasks with n = 2,000 to 4,000 the score was best at n/16 to n/8 and had lost a quarter of it at n/2.
    """
    return int(min(max(2 ** int(np.log2(max(num_examples // 16, 1))), 32), 4096))


def _dense(p: int, block: int, entries: Callable) -> MakeProjection:
    _check(p)
    if block < 1:
        raise ValueError(f"block: found {block}, expected at least 1")

    def make(key: Key[Array, ""], params) -> Projection:
        def blocks(leaf_key, size, dtype):
            """Number of blocks, their height, and block k as (first coordinate, rows of sqrt(p) P)."""
            count = -(-size // block)
            height = -(-size // count)

            def at(k):
                # The last block is moved back to end with the leaf; rows the one before has already covered are zero.
                start = jnp.minimum(k * height, size - height)
                rows = entries(jax.random.fold_in(leaf_key, k), height, dtype)
                return start, jnp.where((start + jnp.arange(height) >= k * height)[:, None], rows, 0)

            return count, height, at

        def project(grads):
            leaves = [_rows(leaf) for leaf in jax.tree.leaves(grads)]
            total = jnp.zeros((leaves[0].shape[0], p), jnp.result_type(*leaves))
            for (leaf_key, leaf), flat in zip(_keyed_leaves(key, params), leaves, strict=True):
                count, height, at = blocks(leaf_key, leaf.size, flat.dtype)

                def add(k, total, flat=flat, at=at, height=height):
                    start, rows = at(k)
                    part = jax.lax.dynamic_slice_in_dim(flat, start, height, axis=1)
                    return total + jnp.matmul(part, rows, precision="highest")

                total = jax.lax.fori_loop(0, count, add, total)
            return total * p**-0.5

        def unproject(vectors):
            vectors = _rows(vectors) * p**-0.5
            leaves = []
            for leaf_key, leaf in _keyed_leaves(key, params):
                count, height, at = blocks(leaf_key, leaf.size, vectors.dtype)

                def add(k, flat, at=at, height=height):
                    start, rows = at(k)
                    part = jax.lax.dynamic_slice_in_dim(flat, start, height, axis=1)
                    part = part + jnp.matmul(vectors, rows.T, precision="highest")
                    return jax.lax.dynamic_update_slice_in_dim(flat, part, start, axis=1)

                leaves.append(jax.lax.fori_loop(0, count, add, jnp.zeros((len(vectors), leaf.size), vectors.dtype)))
            return _unflatten(params, leaves)

        return Projection(project, unproject)

    return make


def _keyed_leaves(key, params):
    """Leaves with a key each, from 64 bits of the hash of the leaf's path."""
    for path, leaf in jax.tree.leaves_with_path(params):
        words = np.frombuffer(hashlib.sha256(jax.tree_util.keystr(path).encode()).digest()[:8], np.uint32)
        yield jax.random.fold_in(jax.random.fold_in(key, words[0]), words[1]), leaf


def _rows(leaf):
    """[b, ...] -> [b, size], in float32 at least."""
    return leaf.reshape(leaf.shape[0], -1).astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _unflatten(params, flat):
    leaves, structure = jax.tree.flatten(params)
    shaped = [f.reshape(f.shape[0], *leaf.shape) for f, leaf in zip(flat, leaves, strict=True)]
    return jax.tree.unflatten(structure, shaped)


def _check(p):
    if p < 1:
        raise ValueError(f"p: found {p}, expected at least 1")
