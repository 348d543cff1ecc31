"""Matrix products: at full precision, and by integers."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from d3mjax.types import AnyArray

LARGEST = 1024
"""Rows and columns that one product has on CPUs.

XLA (jaxlib 0.10) multiplies matrices on CPUs wrongly while another program multiplies in the same process, on another
virtual device or thread: where 3,000 rows or 10,000 columns have more than 256 terms, the first 192 or so lose a block
of terms. Smaller products are right. `dot`, evaluation and microbatches of gradients stay below.
"""


def dot(a: Shaped[AnyArray, "..."], b: Shaped[AnyArray, "..."]) -> Shaped[Array, "..."]:
    """``jnp.matmul(a, b, precision="highest")``: float32 products, which TPUs and some GPUs round otherwise.

    On CPUs in blocks of `LARGEST` rows of ``a`` and columns of ``b``, which changes nothing. A matrix beside a vector
    is divided, too: `jax.vmap` makes two matrices of them.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    plain = lambda a, b: jnp.matmul(a, b, precision="highest")
    rows, columns = a.shape[0] if a.ndim == 2 else 1, b.shape[1] if b.ndim == 2 else 1
    if max(a.ndim, b.ndim) > 2 or max(rows, columns) <= LARGEST:
        return plain(a, b)

    def blocked(a, b):
        lefts = [a[i : i + LARGEST] for i in range(0, rows, LARGEST)] if a.ndim == 2 else [a]
        rights = [b[:, j : j + LARGEST] for j in range(0, columns, LARGEST)] if b.ndim == 2 else [b]
        bands = [jnp.concatenate([plain(x, y) for y in rights], -1) if b.ndim == 2 else plain(x, b) for x in lefts]
        return jnp.concatenate(bands) if a.ndim == 2 else bands[0]

    return jax.lax.platform_dependent(a, b, cpu=blocked, default=plain)


def by_rows(
    a: Shaped[AnyArray, "*b i"],
    kernel: Shaped[AnyArray, "i o"],
    dimension_numbers: Any,
    *,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Shaped[Array, "*b o"]:
    """Product of a dense layer, inputs ``[*b i]`` by ``kernel [i o]``: what ``linen.Dense(dot_general=by_rows)`` takes.

    On CPUs in blocks of `LARGEST` rows of inputs: layers of transformers see as many rows as tokens.
    """
    del dimension_numbers
    rows = jnp.asarray(a).reshape(-1, a.shape[-1])
    plain = lambda a, b: jnp.matmul(a, b, precision=precision, preferred_element_type=preferred_element_type)
    if len(rows) <= LARGEST:
        return plain(a, kernel)

    def blocked(rows, kernel):
        return jnp.concatenate([plain(rows[i : i + LARGEST], kernel) for i in range(0, len(rows), LARGEST)])

    return jax.lax.platform_dependent(rows, kernel, cpu=blocked, default=plain).reshape(*a.shape[:-1], -1)


def integer_product(rows: Float[Array, "b k"], entries: Int[Array, "k q"], digits: int) -> Float[Array, "b q"]:
    """``rows @ entries`` by 8-bit integer products.

    Every row is written as integers of ``digits`` signed bytes, relative to its largest entry.
    ``row = unit * (d_0 + 256 d_1 + 65536 d_2)`` with ``unit = max |row| / (127 * 256^(digits - 1))``, rounded: entries
    are off by ``unit / 2`` at most, which is ``max |row|`` times 4e-3, 1.5e-5 or 6e-8 for 1, 2 or 3 digits. Each
    digit has a product with int32 sums, exact as long as ``k < 2^24``. A row that is not finite gives none that is.
    """
    unit = jnp.abs(rows).max(axis=1, keepdims=True) / (127 * 256 ** (digits - 1))
    padding = -rows.shape[1] % 4  # XLA on GPUs (jaxlib 0.11.2) multiplies bytes wrongly if k is odd
    rows, entries = jnp.pad(rows, ((0, 0), (0, padding))), jnp.pad(entries, ((0, padding), (0, 0)))
    left, total = jnp.round(rows / jnp.where(unit == 0, 1, unit)).astype(jnp.int32), jnp.zeros((), unit.dtype)
    for j in range(digits):
        digit = ((left + 128) & 255) - 128
        left = (left - digit) >> 8
        sums = jnp.matmul(digit.astype(jnp.int8), entries, preferred_element_type=jnp.int32)
        total = total + sums * (unit * 256**j)
    return total
