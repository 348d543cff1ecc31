"""Work over many examples, a microbatch at a time, so that memory does not grow with the number of examples.

``microbatch`` is a number of examples. It bounds memory and changes results by rounding only.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from d3mjax.linalg.products import LARGEST
from d3mjax.types import AnyArray

BUDGET = 2**30
"""Bytes that the gradients of a microbatch may take where its size is not given (`default_microbatch`)."""


def map_microbatches(fn: Callable, x: PyTree[AnyArray], *, microbatch: int | None) -> PyTree[Array]:
    """``fn`` over slices of ``microbatch`` rows of ``x``, outputs joined; None: all rows at once.

    The last slice is padded with repeated rows.

    Raises:
      ValueError: ``microbatch`` is below 1.
    """
    if microbatch is not None and microbatch < 1:
        raise ValueError(f"microbatch: found {microbatch}, expected at least 1, or None for all at once")
    num_rows = jax.tree.leaves(x)[0].shape[0]
    if microbatch is None or microbatch >= num_rows:
        return fn(x)
    index = jnp.arange(-(-num_rows // microbatch) * microbatch).reshape(-1, microbatch)
    parts = jax.lax.map(lambda i: fn(jax.tree.map(lambda a: jnp.take(a, i, axis=0, mode="clip"), x)), index)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:num_rows], parts)


def scan_microbatches(
    step: Callable, carry: PyTree, x: PyTree[Array], *, microbatch: int | None
) -> tuple[PyTree, PyTree]:
    """``carry, rows = step(carry, part, valid [b])`` over slices of ``x``; rows are joined, sums live in the carry.

    The last slice is padded with repeated rows, for which ``valid`` is False.

    Raises:
      ValueError: ``microbatch`` is below 1, or ``x`` has no rows.
    """
    num_rows = jax.tree.leaves(x)[0].shape[0]
    size = num_rows if microbatch is None else min(microbatch, num_rows)
    if size < 1:
        raise ValueError(f"microbatch: found {microbatch} for {num_rows} rows, expected at least 1 of each")
    index = jnp.arange(-(-num_rows // size) * size).reshape(-1, size)

    def body(carry, i):
        part = jax.tree.map(lambda a: jnp.take(a, i, axis=0, mode="clip"), x)
        return step(carry, part, i < num_rows)

    carry, rows = jax.lax.scan(body, carry, index)
    return carry, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:num_rows], rows)


def default_microbatch(output: Callable, params: PyTree, examples: PyTree[AnyArray]) -> int:
    """Examples whose gradients take `BUDGET` bytes, between 1 and `products.LARGEST`.

    An example takes the bytes of one gradient, the size of ``params``, and of what ``output(params, example)`` keeps
    for its backward pass, read off the shapes. A ResNet-9 of 6.6 million parameters gets some 20 examples.
    """
    shape_of = lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a))
    example = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[1:], jnp.result_type(a)), examples)
    params = jax.tree.map(shape_of, params)
    backward = jax.eval_shape(lambda p, e: jax.vjp(lambda q: output(q, e), p)[1], params, example)
    count = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((params, backward)))
    return min(max(1, BUDGET // max(1, count)), LARGEST)
