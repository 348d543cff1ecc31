"""Influence vectors: channels of numbers for each pair of training row and validation row, the input of DeMix.

For training row i, validation row j and the final model, with ``g = grad loss`` by all parameters:

    V[i, 0, j] = - <g_i, g_j> / (||g_i|| ||g_j||)     negative: i helps j, the opposite of tau (`d3mjax.types`)
    V[i, 1, j] = cosine of the encoded features
    V[i, 2, j] = 1[y_i = y_j], or 1 / (1 + |y_i - y_j|) for numbers
    V[i, 3, j] = loss_i, the same for all j

`tensor` and `gram` never form the gradient of a dense layer with inputs a and derivatives s by its outputs:

    <g_i, g_j> = (a_i . a_j + 1) (s_i . s_j)          + 1 where there is a bias

which is two matrix products ``[b t]`` a layer. Layers with positions, and other parameters, enter by their gradients.
Any attribution ``tau [t n]`` of this package (TRAK, influence functions with curvature) can replace it:
`from_attribution`.

For two classes ``g_i = (p_i - y_i) grad f(x_i)``: the cosine is a label agreement times one of the network's tangent
features, and does not depend on how well the label fits. The loss, the scale (``normalise=False``) and curvature do.
Source: Deng et al., arXiv 2606.11616; its public code ``demix/influence.py``.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float16, PyTree, Shaped

from d3mjax.attribution import curvatures, dense_gradients, gradients
from d3mjax.attribution.microbatches import map_microbatches
from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray, Model, Split

CHANNELS = ("influence", "cosine", "agreement", "loss")


def tensor(
    model: Model,
    variables: PyTree,
    train: Split,
    validation: Split,
    *,
    loss: Any = curvatures.cross_entropy,
    normalise: bool = True,
    microbatch: int | None = 1024,
) -> Float16[Array, "n 4 t"]:
    """The four channels, computed in float32 for ``microbatch`` training rows at a time and stored as float16.

    Numbers beyond the range of half precision are clipped: standardise the targets of a regression.
    """
    train, validation = (jax.tree.map(jnp.asarray, split) for split in (train, validation))
    dots = _dots(model, variables, validation, loss=loss, normalise=normalise, microbatch=microbatch)

    def rows(part):
        own, products = dots(part)
        same = agreement(part.y, validation.y)
        lost = jnp.broadcast_to(own[:, None], products.shape)
        channels = (-products, cosine(part.x, validation.x), same, lost)
        largest = float(jnp.finfo(jnp.float16).max)
        return jnp.clip(jnp.stack(channels, 1), -largest, largest).astype(jnp.float16)

    return map_microbatches(rows, train, microbatch=microbatch)


def gram(
    model: Model,
    variables: PyTree,
    train: Split,
    validation: Split,
    *,
    loss: Any = curvatures.cross_entropy,
    normalise: bool = True,
    microbatch: int | None = 1024,
) -> Float[Array, "n t"]:
    """``<g_i, g_j>`` of every training row with every validation row, or its cosine; positive: i helps j.

    Layers that are not dense (embeddings, layer norms) enter by their ordinary gradients, which are few numbers. A
    gradient of zero has cosine 0 with everything.
    """
    train, validation = (jax.tree.map(jnp.asarray, split) for split in (train, validation))
    dots = _dots(model, variables, validation, loss=loss, normalise=normalise, microbatch=microbatch)
    return map_microbatches(lambda part: dots(part)[1], train, microbatch=microbatch)


def norms(
    model: Model,
    variables: PyTree,
    split: Split,
    *,
    loss: Any = curvatures.cross_entropy,
    microbatch: int | None = 1024,
) -> Float[Array, "n"]:
    """``||g_i||`` of every row, by the same products."""
    value_and_factors = _value_and_factors(model, variables, loss)
    squares = lambda part: _squares(value_and_factors(part)[1])
    return jnp.sqrt(map_microbatches(squares, jax.tree.map(jnp.asarray, split), microbatch=microbatch))


def from_attribution(tau: Float[AnyArray, "t n"]) -> Float[Array, "n t"]:
    """An attribution as channel 0: transposed, and with DeMix's sign. Scaled so that its largest entry is 1 or -1."""
    scale = jnp.abs(tau).max()
    return -jnp.asarray(tau).T / jnp.where(scale > 0, scale, 1)


def cosine(x: Float[AnyArray, "n d"], of: Float[AnyArray, "t d"]) -> Float[Array, "n t"]:
    """Cosine of rows of features; 0 where a row is zero."""
    unit = lambda a: a * jax.lax.rsqrt(jnp.maximum((a**2).sum(1, keepdims=True), 1e-24))
    return dot(unit(jnp.asarray(x)), unit(jnp.asarray(of)).T)


def agreement(y: Shaped[AnyArray, "n"], of: Shaped[AnyArray, "t"]) -> Float[Array, "n t"]:
    """``1[y_i = y_j]`` of classes, ``1 / (1 + |y_i - y_j|)`` of numbers."""
    y, of = jnp.asarray(y), jnp.asarray(of)
    if jnp.issubdtype(y.dtype, jnp.integer):
        return (y[:, None] == of[None]).astype(jnp.float32)
    return 1 / (1 + jnp.abs(y[:, None] - of[None]))


def losses(
    model: Model,
    variables: PyTree,
    split: Split,
    *,
    loss: Any = curvatures.cross_entropy,
    microbatch: int | None = 1024,
) -> Float[Array, "n"]:
    """``loss_i`` of every row, in evaluation mode."""
    rows = lambda part: jax.vmap(loss)(model.apply(variables, part.x)[0], part.y)
    return map_microbatches(rows, jax.tree.map(jnp.asarray, split), microbatch=microbatch)


def _value_and_factors(model, variables, loss):
    logits = gradients.logits_of(model, variables)
    output = lambda params, example: loss(logits(params, example), example.y)
    return lambda part: dense_gradients.value_and_factors(output, variables["params"], part)


def _dots(model, variables, validation, *, loss, normalise, microbatch):
    """``part -> losses [b], products [b t]`` with the validation rows, whose factors are held in memory."""
    value_and_factors = _value_and_factors(model, variables, loss)
    _, of = map_microbatches(value_and_factors, validation, microbatch=microbatch)
    scale = jax.lax.rsqrt(jnp.maximum(_squares(of), 1e-24))

    def dots(part):
        values, own = value_and_factors(part)
        total = jnp.stack(list(map(_products, dense_gradients.leaves(own), dense_gradients.leaves(of)))).sum(0)
        if normalise:
            total = total * jax.lax.rsqrt(jnp.maximum(_squares(own), 1e-24))[:, None] * scale[None]
        return values, total

    return dots


def _products(a, b) -> Float[Array, "b t"]:
    """Inner products of the gradients of one parameter."""
    product = lambda x, y: dot(x, y.T)
    flat = lambda g: g.reshape(len(g), -1)
    if not isinstance(a, dense_gradients.Factors):
        return product(flat(a), flat(b))
    pairs = [(i, j) for i in range(a.inputs.shape[1]) for j in range(b.inputs.shape[1])]
    if _by_positions(a, b) and len(pairs) <= 16:  # each is a part of the program
        at = lambda i, j: product(a.inputs[:, i], b.inputs[:, j]) * product(a.deltas[:, i], b.deltas[:, j])
        return sum((at(*pair) for pair in pairs[1:]), at(*pairs[0]))
    return product(flat(a.matrix()), flat(b.matrix()))


def _by_positions(a: dense_gradients.Factors, b: dense_gradients.Factors) -> bool:
    """With s and r positions the Gram needs s r products of i + o numbers, the gradients themselves one of i o."""
    (_, s, i), r, o = a.inputs.shape, b.inputs.shape[1], a.deltas.shape[2]
    return s * r * (i + o) <= i * o or s * r == 1


def _squares(grads: PyTree) -> Float[Array, "b"]:
    """``||g||^2`` of every row."""

    def one(g):
        if not isinstance(g, dense_gradients.Factors):
            return (g.reshape(len(g), -1) ** 2).sum(1)
        if _by_positions(g, g):
            of = lambda a: (a[:, :, None] * a[:, None]).sum(3)
            return (of(g.inputs) * of(g.deltas)).sum((1, 2))
        return (g.matrix() ** 2).sum((1, 2))

    return jnp.stack(list(map(one, dense_gradients.leaves(grads)))).sum(0)
