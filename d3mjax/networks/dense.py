"""Dense networks: multi-layer perceptrons and linear models."""

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
from flax import linen
from jaxtyping import Array, Float

from d3mjax.networks.adapt import from_linen
from d3mjax.types import AnyArray, Model


class _Mlp(linen.Module):
    features: Sequence[int]
    activation: Callable[[Array], Array]

    @linen.compact
    def __call__(self, x: Float[AnyArray, "b d"]) -> Float[Array, "b C"]:
        for width in self.features[:-1]:
            x = self.activation(linen.Dense(width)(x))
        return linen.Dense(self.features[-1])(x)


class _Difference(linen.Module):
    features: Sequence[int]
    num_classes: int

    @linen.compact
    def __call__(self, x: Mapping[str, AnyArray]) -> Float[Array, "b C"]:
        sides = jnp.stack([x["first"], x["second"]])
        for width in self.features:
            sides = linen.relu(linen.Dense(width)(sides))
        return linen.Dense(self.num_classes, name="logits")(sides[0] - sides[1])


def mlp(hidden: Sequence[int], num_classes: int, *, activation: Callable[[Array], Array] = linen.relu) -> Model:
    """Multi-layer perceptron on features ``[b d]``: widths ``hidden``, then ``num_classes`` logits.

    A smooth ``activation``, such as ``jax.nn.gelu``, makes training a differentiable map, for metagradients.

    >>> import jax, jax.numpy as jnp, d3mjax
    >>> variables = d3mjax.mlp((8,), 3).init(jax.random.key(0), jnp.ones((1, 5)))
    >>> {name: layer["kernel"].shape for name, layer in variables["params"].items()}
    {'Dense_0': (5, 8), 'Dense_1': (8, 3)}
    """
    return from_linen(_Mlp((*hidden, num_classes), activation))


def linear(num_classes: int) -> Model:
    """Multinomial logistic regression: one dense layer on features ``[b d]``.

    >>> import jax, jax.numpy as jnp, d3mjax
    >>> model = d3mjax.linear(3)
    >>> logits, _ = model.apply(model.init(jax.random.key(0), jnp.ones((1, 5))), jnp.ones((2, 5)))
    >>> logits.shape
    (2, 3)
    """
    return mlp((), num_classes)


def difference(hidden: Sequence[int], num_classes: int) -> Model:
    """Logits of the difference of two encodings by one MLP: ``{"first": [b d], "second": [b d]} -> [b C]``.

    ``hidden`` are its widths, with ReLU; the last layer is "logits". With two classes it tells which side is preferred.
    """
    return from_linen(_Difference(tuple(hidden), num_classes))
