"""Networks from a set of k-vectors to one logit per kind of error: the set transformer of DeMix, and mean pooling.

A training row is the set of its t vectors ``values[:, j]``, one for each validation row j: minus the normalised
influence (negative = helpful), feature cosine, label agreement, and the row's own loss. Every network here is called as
``network(values [b k t], mask [b t], train=False) -> (logits [b kinds], projection [b p])``. It depends neither on the
order of the set nor on what stands where ``mask`` is False. A set of padding alone gets finite, meaningless numbers.

Source: DeMix, Deng et al., arXiv 2606.11616, section on the data error classifier; Lee et al., "Set Transformer",
ICML 2019.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, Bool, Float

from d3mjax.types import AnyArray


class SetTransformer(linen.Module):
    """Embedding, ``num_blocks`` ISAB, PMA, dropout, heads: the published sizes are the defaults.

    ``as_coded``: attention without the residual ``Q + A V``, as the published code has it.
    """

    width: int = 128
    num_inducing: int = 32
    num_heads: int = 4
    num_blocks: int = 2
    num_seeds: int = 1
    projection: int = 32
    num_kinds: int = 3
    dropout: float = 0.5
    as_coded: bool = False

    @linen.compact
    def __call__(
        self, values: Float[AnyArray, "b k t"], mask: Bool[AnyArray, "b t"], *, train: bool = False
    ) -> tuple[Float[Array, "b kinds"], Float[Array, "b p"]]:
        if self.width % self.num_heads:
            raise ValueError(f"width: found {self.width}, expected a multiple of num_heads = {self.num_heads}")

        def attend(queries, elements, mask=None):
            return _Attend(self.num_heads, self.dropout, self.as_coded)(queries, elements, mask, train)

        def learnt(name: str, number: int):
            points = self.param(name, linen.initializers.xavier_uniform(), (number, self.width))
            return jnp.broadcast_to(points[None], (len(values), number, self.width))

        x = _Embed(self.width, self.dropout)(values, mask, train)
        for i in range(self.num_blocks):
            x = attend(x, attend(learnt(f"inducing_{i}", self.num_inducing), x, mask))
        x = attend(learnt("seeds", self.num_seeds), x, mask).reshape(len(values), -1)
        return _Heads(self.width, self.num_kinds, self.projection, self.dropout)(x, train)


class MeanPool(linen.Module):
    """Embedding, mean over the set, one GELU layer, heads: what attention is to be compared with."""

    width: int = 128
    projection: int = 32
    num_kinds: int = 3
    dropout: float = 0.5

    @linen.compact
    def __call__(
        self, values: Float[AnyArray, "b k t"], mask: Bool[AnyArray, "b t"], *, train: bool = False
    ) -> tuple[Float[Array, "b kinds"], Float[Array, "b p"]]:
        x = _Embed(self.width, self.dropout)(values, mask, train)
        count = jnp.maximum(jnp.asarray(mask).sum(1), 1)[:, None]
        x = jnp.where(mask[:, :, None], x, 0).sum(1) / count.astype(x.dtype)
        x = _gelu(linen.Dense(self.width)(x))
        return _Heads(self.width, self.num_kinds, self.projection, self.dropout)(x, train)


def sizes(network: linen.Module) -> dict[str, Any]:
    """The arguments a network was made with, for the manifest it is saved with: ``type(network)(**sizes(network))``."""
    fields = (field.name for field in dataclasses.fields(network) if field.init)
    return {name: getattr(network, name) for name in fields if name not in ("parent", "name")}


class _Embed(linen.Module):
    """Each vector of the set for itself: ``Dense, LayerNorm, GELU, dropout, Dense``; [b k t] -> [b t d]."""

    width: int
    dropout: float

    @linen.compact
    def __call__(self, values, mask, train):
        values = jnp.asarray(values)
        x = jnp.where(mask[:, None, :], values, 0).swapaxes(1, 2)  # before anything else: padding may hold NaN
        x = x.astype(jnp.promote_types(values.dtype, jnp.float32))
        x = _gelu(linen.LayerNorm()(linen.Dense(self.width)(x)))
        return linen.Dense(self.width)(linen.Dropout(self.dropout, deterministic=not train)(x))


class _Attend(linen.Module):
    """``H = LN(Q + A V)``, then ``LN(H + relu(Dense(H)))``; A by ``num_heads`` over the elements where mask is True."""

    num_heads: int
    dropout: float
    as_coded: bool

    @linen.compact
    def __call__(self, queries, elements, mask, train):
        width = queries.shape[-1]

        def heads(name, x):
            return linen.Dense(width, name=name)(x).reshape(*x.shape[:-1], self.num_heads, -1)

        q, k, v = heads("query", queries), heads("key", elements), heads("value", elements)
        scores = jnp.einsum("bqhd,bshd->bhqs", q, k) / width**0.5  # the whole width, as Lee et al. have it
        if mask is not None:  # [b 1 1 s]: every head and query of a row has that row's mask
            scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        share = linen.Dropout(self.dropout, deterministic=not train)(jax.nn.softmax(scores))
        mixed = jnp.einsum("bhqs,bshd->bqhd", share, v)
        h = (mixed if self.as_coded else q + mixed).reshape(queries.shape)
        h = linen.LayerNorm()(h)
        return linen.LayerNorm()(h + linen.relu(linen.Dense(width)(h)))


class _Heads(linen.Module):
    """Dropout, then ``Dense, GELU, Dense`` to a logit for each kind, and ``Dense, ReLU, Dense`` to the projection."""

    width: int
    num_kinds: int
    projection: int
    dropout: float

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dropout(self.dropout, deterministic=not train)(x)
        logits = [linen.Dense(1)(_gelu(linen.Dense(self.width // 2)(x))) for _ in range(self.num_kinds)]
        return jnp.concatenate(logits, axis=1), linen.Dense(self.projection)(linen.relu(linen.Dense(self.width)(x)))


def _gelu(x):
    return jax.nn.gelu(x, approximate=False)
