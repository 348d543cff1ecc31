"""Training losses as `Objective(init, value)`; ``value`` averages over the batch with a constant denominator."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from d3mjax.types import AnyArray, Objective


def losses(logits: Float[Array, "b C"], y: Int[AnyArray, "b"], *, smoothing: float = 0.0) -> Float[Array, "b"]:
    """Cross-entropy of each example in nats, ``logsumexp(logits) - logits[y]``, computed in float32.

    With ``smoothing`` s it is that of the target ``(1 - s) one_hot(y) + s / C``.
    """
    logits = logits.astype(jnp.float32)
    # A one-hot product instead of indexing: its transpose is no scatter, which is slow on every device.
    target = (1 - smoothing) * jax.nn.one_hot(y, logits.shape[-1]) + smoothing / logits.shape[-1]
    own = (logits * target).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - own


def cross_entropy(*, smoothing: float = 0.0) -> Objective:
    """Weighted mean cross-entropy ``(1/b) sum_i w_i loss_i``; with all weights one this is plain ERM.

    Raises:
      ValueError: if the label ``smoothing`` is not in [0, 1].
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing: found {smoothing}, expected a share in [0, 1]")

    def value(state, logits, batch, weight):
        return jnp.mean(weight * losses(logits, batch.y, smoothing=smoothing)), state

    return Objective(init=lambda: (), value=value)
