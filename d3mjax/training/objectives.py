"""Training losses as `Objective(init, value)`; ``value`` averages over the batch with a constant denominator."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from d3mjax.types import AnyArray, Objective


def losses(logits: Float[Array, "b C"], y: Int[AnyArray, "b"]) -> Float[Array, "b"]:
    """Cross-entropy of each example in nats, ``logsumexp(logits) - logits[y]``, computed in float32."""
    logits = logits.astype(jnp.float32)
    # A one-hot product instead of indexing: its transpose is no scatter, which is slow on every device.
    own = (logits * jax.nn.one_hot(y, logits.shape[-1])).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - own


def cross_entropy() -> Objective:
    """Weighted mean cross-entropy ``(1/b) sum_i w_i loss_i``; with all weights one this is plain ERM."""

    def value(state, logits, batch, weight):
        return jnp.mean(weight * losses(logits, batch.y)), state

    return Objective(init=lambda: (), value=value)
