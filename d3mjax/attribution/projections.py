"""Random projections of gradient trees, as pairs of adjoint functions. The ``d x p`` matrix never exists as a whole.

``rademacher(p)``, ``gaussian(p)``, ``sjlt(p)``, ``tensor_sketch(p)`` and ``identity()`` make ``(key, params) ->
Projection``. With
``g`` a gradient flattened to ``[d]``, ``project`` is ``g -> P' g`` and ``unproject`` is ``u -> P u``, where ``P [d p]``
has ``E[P P'] = I``: inner products are kept on average, with standard deviation about ``|g| |h| sqrt(2 / p)`` at most.

The rows of ``P`` that belong to a parameter leaf derive from the key, the leaf's path and a block number. So they do
not depend on the device, the microbatch, the sharding, or on which other leaves are projected beside it.

Cost per gradient: dense ``2 d p`` operations, SJLT ``s d``. A dense block is made anew for every call of ``project``:
give it some 500 rows or more. SJLT is bound by memory traffic: on CPUs it is fastest at 32 to 64 rows. The tensor
sketch of an ``[i o]`` kernel costs ``i + o + p log p``, and the gradient is never formed.

Sources: Achlioptas, 2003 (signs); Kane and Nelson, 2014 (sparse); Pham and Pagh, 2013 (tensor sketch); Park et al.,
2023 (of gradients).
"""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from d3mjax.attribution import dense_gradients
from d3mjax.linalg.products import dot, integer_product


class Projection(NamedTuple):
    """Two adjoint linear maps: ``<project(g), u> = <g, unproject(u)>``. Results are float32 or wider."""

    project: Callable  # tree of [b, ...] -> Float[b p]
    unproject: Callable  # Float[k p] -> tree of [k, ...]
    factored: bool = False  # whether `project` takes `dense_gradients.Factors` in place of dense kernels


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


def rademacher(p: int, *, block: int = 4096, digits: int | None = None) -> MakeProjection:
    """Entries ``+-1 / sqrt(p)``, from one random bit each; ``block`` rows of P are in memory at a time.

    ``digits``: None multiplies in float32. 1 to 3 writes gradients as so many signed bytes and multiplies 8-bit
    integers, whose sums are exact: see `integer_product` for the error. At 3 it is that of float32, at 2 far below
    that of the projection itself. Worth it only where the compiler uses int8 hardware: with JAX 0.10 on a CPU with AMX
    the product of a block took some 40 % of the time at 3 digits, but the whole of TRAK at p = 512 some 85 %, at 2
    digits 70 %. JAX 0.8 multiplies bytes on CPUs several times slower than floats. float64 stays float64.
    """
    if digits is not None and not 1 <= digits <= 3:
        raise ValueError(f"digits: found {digits}, expected None or 1 to 3, as float32 has no more")
    num_words = -(-p // 32)

    def signs(key, size, dtype):
        words = jax.random.bits(key, (size, num_words), jnp.uint32)
        bits = (words[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)[None, None, :]) & 1
        return (2 * bits.reshape(size, -1)[:, :p].astype(jnp.int8) - 1).astype(dtype)

    return _dense(p, block, signs, digits)


def gaussian(p: int, *, block: int = 4096) -> MakeProjection:
    """Entries ``N(0, 1 / p)``; like `rademacher`, but slower to make."""
    return _dense(p, block, lambda key, size, dtype: jax.random.normal(key, (size, p), jnp.float32).astype(dtype))


def sjlt(p: int, *, nonzeros: int = 1, factored: bool = False) -> MakeProjection:
    """Each coordinate goes to ``nonzeros`` buckets with random signs, ``/ sqrt(nonzeros)``; buckets are balanced.

    Coordinate i of a leaf, in round ``r = i // p``, goes to bucket ``(i + shift[r]) mod p``: one random shift a round,
    one random sign a coordinate. So a round is a contiguous slice that is added to the sum at an offset, where hashing
    needs a scatter or a gather. Coordinates of one round never meet, those of two rounds meet with probability 1/p. As
    signs are independent, terms of different pairs are uncorrelated, whichever pairs meet together; so for one nonzero

        E <P'g, P'h> = <g, h>        Var <P'g, P'h> = sum over i < j of Pr(i, j meet) (g_i h_j + g_j h_i)^2

    depend on single pairs only: never more than with independent buckets, ``(|g|^2 |h|^2 + <g, h>^2) / p`` at most,
    however neighbouring entries of a gradient are related. The bound holds for more nonzeros, too.

    ``factored``: the same projection of `dense_gradients.Factors`, whose gradients are never formed, for dense models
    as `dense_gradients.value_and_factors` takes; 5 times as fast for a layer of 400 x 128 on CPUs. Worth it for layers
    whose number of outputs divides p, in microbatches of 64 or more.
    """
    _check(p)
    if nonzeros < 1:
        raise ValueError(f"nonzeros: found {nonzeros}, expected at least 1")

    def plan(key, size):
        """Sign of each coordinate and shift of each round."""
        shift = jax.random.randint(jax.random.fold_in(key, 0), (-(-size // p),), 0, p)
        return jax.random.rademacher(jax.random.fold_in(key, 1), (size,), jnp.float32) * nonzeros**-0.5, shift

    def make(key: Key[Array, ""], params) -> Projection:
        # Computed here, once, so that a loop over microbatches does not draw again each time.
        plans = [
            [plan(jax.random.fold_in(leaf_key, k), leaf.size) for k in range(nonzeros)]
            for leaf_key, leaf in _keyed_leaves(key, params)
        ]

        def project(grads):
            leaves = dense_gradients.leaves(grads)
            return sum(_folded(leaf, *one, p) for leaf, plan in zip(leaves, plans, strict=True) for one in plan)

        def unproject(vectors):
            vectors = _rows(vectors)
            flat = [sum(_unfold_rounds(vectors, *one) for one in plan) for plan in plans]
            return _unflatten(params, flat)

        return Projection(project, unproject, factored)

    return make


def tensor_sketch(p: int) -> MakeProjection:
    """Hashes a kernel's inputs and outputs apart, so that ``P' (a d')`` is a convolution of two short vectors.

    Entry (i, o) of a matrix goes to bucket ``(row[i] + column[o]) mod p`` with sign ``s[i] t[o]``: as `sjlt`, each pair
    of entries meets with probability at most 1/p, and ``E <P'g, P'h> = <g, h>``. Signs of four entries that form a
    rectangle are dependent, but only in pairs of one row or one column can two such terms meet together. For

        a d' projected = irfft(rfft(hash a) * rfft(hash d))

    neither the gradient nor its d numbers are needed, only `dense_gradients.Factors`. Leaves that are not matrices are
    taken as one, ``[size / last axis, last axis]``; gradients without factors are scattered, which is slow.
    """
    _check(p)

    def plan(key, leaf):
        """Buckets and signs of rows and columns, and the transform of the columns' one-hot matrix."""
        columns = leaf.shape[-1] if leaf.ndim else 1
        rows = leaf.size // columns
        count = -(-rows // p)
        shift = jax.random.randint(jax.random.fold_in(key, 0), (count,), 0, p)
        row_sign = jax.random.rademacher(jax.random.fold_in(key, 1), (rows,), jnp.float32)
        column = jax.random.randint(jax.random.fold_in(key, 2), (columns,), 0, p)
        column_sign = jax.random.rademacher(jax.random.fold_in(key, 3), (columns,), jnp.float32)
        table = jnp.fft.rfft(jax.nn.one_hot(column, p) * column_sign[:, None])
        row = (jnp.arange(rows) + jnp.repeat(shift, p)[:rows]) % p
        return (row_sign, shift), (row[:, None] + column[None, :]) % p, row_sign[:, None] * column_sign[None, :], table

    def make(key: Key[Array, ""], params) -> Projection:
        plans = [plan(leaf_key, leaf) for leaf_key, leaf in _keyed_leaves(key, params)]

        def project(grads):
            spectrum, total = 0, 0
            for leaf, (rows, bucket, sign, table) in zip(dense_gradients.leaves(grads), plans, strict=True):
                if isinstance(leaf, dense_gradients.Factors):
                    spectrum = spectrum + _convolved(leaf, rows, table, p)
                else:
                    flat = _rows(leaf)
                    zeros = jnp.zeros((len(flat), p), flat.dtype)
                    total = total + zeros.at[:, bucket.ravel()].add(flat * sign.ravel()[None].astype(flat.dtype))
            return total if isinstance(spectrum, int) else total + jnp.fft.irfft(spectrum, n=p)

        def unproject(vectors):
            vectors = _rows(vectors)
            flat = [
                vectors[:, bucket.ravel()] * sign.ravel()[None].astype(vectors.dtype) for _, bucket, sign, _ in plans
            ]
            return _unflatten(params, flat)

        return Projection(project, unproject, factored=True)

    return make


def _convolved(leaf, rows, table, p):
    """The spectrum ``[b, p // 2 + 1]`` of the sketch of a kernel's gradients, from their factors."""
    (b, s, _), dtype = leaf.inputs.shape, jnp.promote_types(leaf.inputs.dtype, jnp.float32)
    inputs, deltas = (a.reshape(b * s, -1).astype(dtype) for a in leaf)
    real, imaginary = (dot(deltas, part.astype(dtype)) for part in (table.real, table.imag))
    product = jnp.fft.rfft(_fold_rounds(inputs, rows[0], rows[1], p)) * jax.lax.complex(real, imaginary)
    return product.reshape(b, s, -1).sum(1)


def _fold_rounds(flat, sign, shift, p):
    """``out[b, (i + shift[i // p]) mod p] += sign[i] flat[b, i]``; the halves of ``total [b, 2p]`` are one bucket."""

    def add(r, total, width=p):
        part = jax.lax.dynamic_slice_in_dim(flat, r * p, width, axis=1)
        part = part * jax.lax.dynamic_slice_in_dim(sign, r * p, width)[None].astype(flat.dtype)
        part = part + jax.lax.dynamic_slice_in_dim(total, shift[r], width, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(total, part, shift[r], axis=1)

    full, rest = divmod(flat.shape[1], p)
    total = jnp.zeros((flat.shape[0], 2 * p), flat.dtype)
    total = jax.lax.fori_loop(0, full, add, total) if full else total
    total = add(full, total, rest) if rest else total
    return total[:, :p] + total[:, p:]


def _folded(leaf, sign, shift, p):
    """`_fold_rounds` of gradients or of the factors of a kernel, a round being whole rows of the kernel if possible."""
    if not isinstance(leaf, dense_gradients.Factors):
        return _fold_rounds(_rows(leaf), sign, shift, p)
    columns = leaf.deltas.shape[-1]
    if p % columns:
        return _fold_rounds(_rows(leaf.matrix()), sign, shift, p)
    # Examples last: rounds begin anywhere, and only a whole axis of them is added in vectors.
    dtype = jnp.promote_types(leaf.inputs.dtype, jnp.float32)
    inputs, deltas = (jnp.transpose(a.astype(dtype), (1, 2, 0)) for a in leaf)

    def add(r, total, width=p):
        rows = jax.lax.dynamic_slice_in_dim(inputs, r * (p // columns), width // columns, axis=1)
        part = (rows[:, :, None, :] * deltas[:, None, :, :]).sum(0).reshape(width, -1)
        part = part * jax.lax.dynamic_slice_in_dim(sign, r * p, width)[:, None].astype(dtype)
        part = part + jax.lax.dynamic_slice_in_dim(total, shift[r], width, axis=0)
        return jax.lax.dynamic_update_slice_in_dim(total, part, shift[r], axis=0)

    full, rest = divmod(sign.size, p)
    total = jnp.zeros((2 * p, inputs.shape[-1]), dtype)
    total = jax.lax.fori_loop(0, full, add, total) if full else total
    total = add(full, total, rest) if rest else total
    return (total[:p] + total[p:]).T


def _unfold_rounds(vectors, sign, shift):
    """The adjoint of `_fold_rounds`: ``out[k, i] = sign[i] vectors[k, (i + shift[i // p]) mod p]``."""
    p = vectors.shape[1]
    bucket = (jnp.arange(p)[None, :] + shift[:, None]).reshape(-1)[: sign.size] % p
    return vectors.at[:, bucket].get(mode="promise_in_bounds") * sign[None].astype(vectors.dtype)


def default_size(num_examples: int) -> int:
    """p for n train examples: the power of two at or below ``n / 16``, between 32 and 4,096.

    P regularises, too: the Gram matrix of n examples in p dimensions is only trustworthy for p far below n. On two
    tasks with n = 2,000 to 4,000 the score was best at n/16 to n/8 and had lost a quarter of it at n/2.
    """
    return int(min(max(2 ** int(np.log2(max(num_examples // 16, 1))), 32), 4096))


def _dense(p: int, block: int, entries: Callable, digits: int | None = None) -> MakeProjection:
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
                count, height, at = blocks(leaf_key, leaf.size, _entries_dtype(flat, digits))

                def add(k, total, flat=flat, at=at, height=height):
                    start, rows = at(k)
                    part = jax.lax.dynamic_slice_in_dim(flat, start, height, axis=1)
                    return total + _product(part, rows, digits)

                total = jax.lax.fori_loop(0, count, add, total)
            return total * p**-0.5

        def unproject(vectors):
            vectors = _rows(vectors) * p**-0.5
            leaves = []
            for leaf_key, leaf in _keyed_leaves(key, params):
                count, height, at = blocks(leaf_key, leaf.size, _entries_dtype(vectors, digits))

                def add(k, flat, at=at, height=height):
                    start, rows = at(k)
                    part = jax.lax.dynamic_slice_in_dim(flat, start, height, axis=1)
                    part = part + _product(vectors, rows.T, digits)
                    return jax.lax.dynamic_update_slice_in_dim(flat, part, start, axis=1)

                leaves.append(jax.lax.fori_loop(0, count, add, jnp.zeros((len(vectors), leaf.size), vectors.dtype)))
            return _unflatten(params, leaves)

        return Projection(project, unproject)

    return make


def _entries_dtype(flat, digits):
    return jnp.int8 if digits and flat.dtype == jnp.float32 else flat.dtype


def _product(rows, entries, digits):
    """``rows [b k] @ entries [k q]``, through integers where entries are."""
    if entries.dtype == jnp.int8:
        return integer_product(rows, entries, digits)
    return dot(rows, entries)


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
