"""Influence vectors as a table of features: order statistics of each row's channels over the validation rows.

A row's vectors are a set, so its features do not depend on their order: quantiles, means, shares, votes of the nearest.
The number of validation rows may change between tables, and no feature depends on a table's columns. Ranks are among
the rows of one *cell*: one table with one model.

Signs are those of the channels (Deng et al., arXiv 2606.11616): negative influence is helpful.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from d3mjax import metrics
from d3mjax.attribution.microbatches import map_microbatches
from d3mjax.types import AnyArray

QUANTILES = (0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0)
NEIGHBOURS = (0.01, 0.03, 0.1, 0.3)


class Layout(NamedTuple):
    """Positions of the channels. Closeness is the size of an influence, whose sign is for or against, or a cosine."""

    influence: tuple[int, ...] = (0,)
    cosine: tuple[int, ...] = (1,)
    agreement: int = 2  # above 1/2: of the own class
    loss: int = 3  # the same for all validation rows


LAYOUT = Layout()


def order_statistics(
    vectors: Float[AnyArray, "n k t"],
    y: Int[AnyArray, "n"],
    num_classes: int,
    *,
    rows: Float[AnyArray, "n r"] | None = None,
    layout: Layout = LAYOUT,
    quantiles: tuple[float, ...] = QUANTILES,
    neighbours: tuple[float, ...] = NEIGHBOURS,
    microbatch: int | None = 512,
) -> Float[Array, "n f"]:
    """Features in the order of `feature_names`; NaN for statistics of no row, such as none of the own class.

    For every influence and cosine, over all validation rows, those of the own class and those of others: ``quantiles``
    (linear in between) and the mean. The share of negative entries, by own and other classes. Votes, the share of the
    own class among the nearest ``ceil(share t)`` validation rows for every share of ``neighbours`` (ties all count),
    and among all of them weighted by closeness. The loss, its normal score in the cell and among rows of the same
    class. Of ``rows``, further numbers of each train row, the values and their normal scores in the cell.

    All rows must be of one cell. Memory is ``microbatch k t`` beyond the vectors; it changes nothing else.
    """
    rows = jnp.zeros((len(y), 0)) if rows is None else jnp.asarray(rows)
    options = num_classes, layout, tuple(quantiles), tuple(neighbours), microbatch
    return _features(jnp.asarray(vectors), jnp.asarray(y), rows, *options)


def feature_names(
    *,
    rows: tuple[str, ...] = (),
    layout: Layout = LAYOUT,
    quantiles: tuple[float, ...] = QUANTILES,
    neighbours: tuple[float, ...] = NEIGHBOURS,
) -> tuple[str, ...]:
    """Names of the features of `order_statistics` called with the same options, ``rows`` being the names of its."""
    names = []
    for kind, channels in (("influence", layout.influence), ("cosine", layout.cosine)):
        for c in channels:
            channel = f"{kind} {c}"
            names += [f"{channel}, {of}: {q:.0%} quantile" for of in ("all", "own", "other") for q in quantiles]
            names += [f"{channel}, {of}: mean" for of in ("all", "own", "other")]
            names += [f"{channel}, {of}: negative" for of in ("own", "other")]
            names += [f"{channel}: vote of the nearest {share:.0%}" for share in neighbours] + [f"{channel}: vote"]
    names += ["share of the own class", "loss", "loss in the cell", "loss in the class"]
    return (*names, *rows, *(f"{name} in the cell" for name in rows))


def normal_scores(x: Float[AnyArray, "*b n"]) -> Float[Array, "*b n"]:
    """``Phi^-1((rank - 1/2) / n)`` along the last axis, ties sharing their average rank: robust, and never saturated.

    NaN stays NaN and is not counted. Infinite values are ranked, too, but must not occur beside NaN.
    """
    x = jnp.asarray(x)
    missing = jnp.isnan(x)
    count = (~missing).sum(-1, keepdims=True)
    ranks = metrics.rank(jnp.where(missing, jnp.inf, x))
    return jnp.where(missing, jnp.nan, jax.scipy.special.ndtri((ranks - 0.5) / jnp.maximum(count, 1)))


@partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _features(vectors, y, rows, num_classes, layout, quantiles, neighbours, microbatch) -> Float[Array, "n f"]:
    """`order_statistics`, one program for all of them."""
    described = _described(vectors, layout, quantiles, neighbours, microbatch)
    loss = vectors[:, layout.loss, 0].astype(jnp.float32)
    member = jax.nn.one_hot(y, num_classes, axis=0, dtype=bool)
    within = normal_scores(jnp.where(member, loss[None], jnp.nan))
    within = jnp.take_along_axis(within, y[None], axis=0)[0]
    own = jnp.stack([loss, normal_scores(loss), within], 1)
    return jnp.concatenate([described, own, rows, normal_scores(rows.T).T], axis=1, dtype=jnp.float32)


def _described(vectors, layout, quantiles, neighbours, microbatch) -> Float[Array, "n f"]:
    """Features from the vectors alone."""

    def describe(part):
        part = part.astype(jnp.float32)
        own = part[:, layout.agreement] > 0.5
        parts = [_channel(part[:, c], own, jnp.abs, quantiles, neighbours) for c in layout.influence]
        parts += [_channel(part[:, c], own, jax.nn.relu, quantiles, neighbours) for c in layout.cosine]
        return jnp.concatenate([*parts, own.mean(1, keepdims=True)], axis=1)

    return map_microbatches(describe, vectors, microbatch=microbatch)


def _channel(v, own, closeness, quantiles, neighbours) -> Float[Array, "b f"]:
    """Quantiles, means, negative shares and votes of one channel ``v [b t]``."""
    everyone, t = jnp.ones_like(own), v.shape[1]
    ordered = jnp.sort(_key(v), axis=1)
    parted = jnp.sort(_key(v) + jnp.where(own, -(2**30), 2**30), axis=1)  # own ones first: both parts in one sort
    count, none = own.sum(1, keepdims=True), jnp.zeros((len(v), 1), jnp.int32)
    parts = [
        _quantiles(ordered, none, none + t, quantiles),
        _quantiles(parted + 2**30, none, count, quantiles),
        _quantiles(parted - 2**30, count, t - count, quantiles),
    ]
    parts += [_mean(v, among) for among in (everyone, own, ~own)]
    parts += [_mean(v < 0, among) for among in (own, ~own)]
    close = closeness(v)
    nearest = jnp.sort(_key(close), axis=1)
    counts = [min(max(math.ceil(share * t), 1), t) for share in neighbours]
    parts += [_mean(own, close >= _value(nearest[:, t - k, None])) for k in counts]
    parts.append((close * own).sum(1, keepdims=True) / close.sum(1, keepdims=True))
    return jnp.concatenate(parts, axis=1)


def _quantiles(keys, start, count, quantiles) -> Float[Array, "b q"]:
    """Quantiles of the ``count`` entries from ``start [b 1]`` of each row of sorted keys; NaN without any."""
    at = jnp.asarray(quantiles, jnp.float32)[None] * jnp.maximum(count - 1, 0)
    below = jnp.floor(at).astype(jnp.int32)
    above = jnp.minimum(below + 1, jnp.maximum(count - 1, 0))
    last = keys.shape[1] - 1
    low, high = (_value(jnp.take_along_axis(keys, jnp.minimum(start + i, last), axis=1)) for i in (below, above))
    return jnp.where(count > 0, low + (high - low) * (at - below), jnp.nan)


def _key(v) -> Int[Array, "*b"]:
    """Whole numbers below 2^30 by size in the order of ``v``: sorting these is four times as fast as sorting floats.

    `_value` restores numbers of half precision exactly; other floats lose their last bit.
    """
    bits = jax.lax.bitcast_convert_type(v, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits) >> 1


def _value(key) -> Float[Array, "*b"]:
    bits = jnp.where(key < 0, ((key << 1) | 1) ^ 0x7FFFFFFF, key << 1)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _mean(v, among) -> Float[Array, "b 1"]:
    """Mean of the entries of each row that are ``among``; NaN without any."""
    return jnp.where(among, v, 0).sum(1, keepdims=True) / among.sum(1, keepdims=True)
