"""Dense networks: multi-layer perceptrons and linear models."""

from collections.abc import Sequence

from flax import linen
from jaxtyping import Array, Float

from d3mjax.networks.adapt import from_linen
from d3mjax.types import AnyArray, Model


class _Mlp(linen.Module):
    features: Sequence[int]

    @linen.compact
    def __call__(self, x: Float[AnyArray, "b d"]) -> Float[Array, "b C"]:
        for width in self.features[:-1]:
            x = linen.relu(linen.Dense(width)(x))
        return linen.Dense(self.features[-1])(x)


def mlp(hidden: Sequence[int], num_classes: int) -> Model:
    """ReLU network on flat features: ``hidden`` layer widths, then ``num_classes`` logits."""
    return from_linen(_Mlp((*hidden, num_classes)))


def linear(num_classes: int) -> Model:
    """Multinomial logistic regression: one dense layer."""
    return mlp((), num_classes)
