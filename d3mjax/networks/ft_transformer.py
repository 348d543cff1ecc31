"""FT-transformer: the columns of a table as tokens.

Source: Gorishniy, Rubachev, Khrulkov, Babenko, "Revisiting deep learning models for tabular data", NeurIPS 2021.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jaxtyping import Array, Float

from d3mjax.networks.adapt import from_linen
from d3mjax.types import AnyArray, Model


class _FtTransformer(linen.Module):
    owner: tuple[int, ...]  # the column of each feature
    num_classes: int
    width: int
    heads: int
    layers: int

    @linen.compact
    def __call__(self, x: Float[AnyArray, "b d"]) -> Float[Array, "b C"]:
        num_columns = max(self.owner) + 1
        small = linen.initializers.uniform(2 * self.width**-0.5)
        centred = lambda key, shape: small(key, shape) - self.width**-0.5
        weight = self.param("weight", centred, (len(self.owner), self.width))
        bias = self.param("bias", centred, (num_columns, self.width))
        membership = jax.nn.one_hot(np.array(self.owner), num_columns)
        tokens = jnp.einsum("bd,dk,de->bke", x, membership, weight) + bias[None]
        first = self.param("token", centred, (1, 1, self.width))
        tokens = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, self.width)), tokens], axis=1)
        for _ in range(self.layers):
            attended = linen.LayerNorm()(tokens)
            tokens += linen.MultiHeadDotProductAttention(self.heads)(attended, attended)
            gate, value = jnp.split(linen.Dense(2 * (4 * self.width // 3))(linen.LayerNorm()(tokens)), 2, axis=-1)
            tokens += linen.Dense(self.width)(value * linen.relu(gate))
        return linen.Dense(self.num_classes)(linen.relu(linen.LayerNorm()(tokens[:, 0])))


def ft_transformer(
    columns: Sequence[slice], num_classes: int, *, width: int = 64, heads: int = 2, layers: int = 2
) -> Model:
    """FT-transformer on features ``[b d]``: one token for each column, ``columns[k]`` being the features of column k.

    A token is its features times learned vectors (the vector of the category, for one-hot features) plus a bias; the
    logits are read from one further, learned token. Pre-norm blocks with ReGLU, no dropout. The default sizes are those
    of DeMix.
    """
    owner = np.repeat(np.arange(len(columns)), [span.stop - span.start for span in columns])
    return from_linen(_FtTransformer(tuple(owner.tolist()), num_classes, width, heads, layers))
