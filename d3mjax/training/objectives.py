"""Training losses as `Objective(init, value)`; ``value`` averages over the batch with a constant denominator.

For classes `cross_entropy` and `group_dro`, for numbers `squared_error` and `huber`, which expect models of one output.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from d3mjax.types import AnyArray, Objective


def losses(logits: Float[Array, "b C"], y: Int[AnyArray, "b"], *, smoothing: float = 0.0) -> Float[Array, "b"]:
    """Cross-entropy of each example in nats, ``logsumexp(logits) - logits[y]``, in float32 or better.

    With label ``smoothing`` s the target is ``(1 - s) one_hot(y) + s / C``.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # A one-hot product instead of indexing: its transpose is no scatter, which is slow on every device.
    one_hot = jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype)
    target = (1 - smoothing) * one_hot + smoothing / logits.shape[-1]
    return jax.nn.logsumexp(logits, axis=-1) - (logits * target).sum(-1)


def cross_entropy(*, smoothing: float = 0.0) -> Objective:
    """Weighted mean cross-entropy ``(1/b) sum_i w_i loss_i`` in nats; plain ERM where all weights are 1.

    >>> import jax.numpy as jnp, numpy as np, d3mjax
    >>> objective = d3mjax.cross_entropy()
    >>> batch = d3mjax.Split(np.zeros((2, 1)), np.array([0, 1]), np.zeros(2, int), np.arange(2))
    >>> value, _ = objective.value(objective.init(), jnp.zeros((2, 4)), batch, jnp.array([1.0, 1.0]))
    >>> bool(jnp.isclose(value, np.log(4)))  # all classes equally likely
    True

    Raises:
      ValueError: if the label ``smoothing`` is not in [0, 1].
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing: found {smoothing}, expected a share in [0, 1]")

    def value(state, logits, batch, weight):
        return jnp.mean(weight * losses(logits, batch.y, smoothing=smoothing)), state

    return Objective(init=lambda: (), value=value)


def squared_errors(predictions: Float[Array, "b 1"], y: Float[AnyArray, "b"]) -> Float[Array, "b"]:
    """Half the squared error of each example, ``(prediction - y)^2 / 2``, in float32 or better."""
    predictions = predictions.astype(jnp.promote_types(predictions.dtype, jnp.float32))
    return (predictions[:, 0] - y) ** 2 / 2


def squared_error() -> Objective:
    """Weighted mean of half the squared error, ``(1/b) sum_i w_i (prediction_i - y_i)^2 / 2``: least squares.

    Standardise the labels by those of training, as steps and rates are made for numbers around 1.

    >>> import jax.numpy as jnp, numpy as np, d3mjax
    >>> objective = d3mjax.squared_error()
    >>> batch = d3mjax.Split(np.zeros((2, 1)), np.array([0.0, 4.0]), np.zeros(2, int), np.arange(2))
    >>> value, _ = objective.value(objective.init(), jnp.ones((2, 1)), batch, jnp.ones(2))
    >>> float(value)  # errors of 1 and 3: (1/2 + 9/2) / 2
    2.5
    """

    def value(state, logits, batch, weight):
        return jnp.mean(weight * squared_errors(logits, batch.y)), state

    return Objective(init=lambda: (), value=value)


def huber(delta: float) -> Objective:
    """Weighted mean of the Huber loss: half the squared error up to ``delta``, linear beyond, in the label's unit.

    The gradient of an example by its prediction is at most ``delta``, which bounds what a wrong label does.

    >>> import jax.numpy as jnp, numpy as np, d3mjax
    >>> objective = d3mjax.huber(1.0)
    >>> batch = d3mjax.Split(np.zeros((2, 1)), np.array([0.0, 4.0]), np.zeros(2, int), np.arange(2))
    >>> value, _ = objective.value(objective.init(), jnp.ones((2, 1)), batch, jnp.ones(2))
    >>> float(value)  # errors of 1 and 3: (1/2 + 3 - 1/2) / 2
    1.5

    Source: Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics, 1964.

    Raises:
      ValueError: if ``delta`` is not positive.
    """
    if not delta > 0:
        raise ValueError(f"delta: found {delta}, expected a positive error")

    def value(state, logits, batch, weight):
        squares = squared_errors(logits, batch.y)
        linear = delta * (jnp.sqrt(2 * jnp.maximum(squares, delta**2 / 2)) - delta / 2)  # the root is of no zero
        return jnp.mean(weight * jnp.where(squares <= delta**2 / 2, squares, linear)), state

    return Objective(init=lambda: (), value=value)


def generalised_losses(
    q: Float[Array, ""] | float,
) -> Callable[[Float[Array, "b C"], Int[AnyArray, "b"]], Float[Array, "b"]]:
    """Generalised cross-entropy of each example: ``(logits, y) -> (1 - p_y^q) / q``, at most 1/q.

    Its gradient is that of the cross-entropy times ``p_y^q``: examples that the model gets wrong count for little. As q
    goes to 0 it becomes the cross-entropy in nats; at q = 1 it is the mean absolute error.

    Source: Zhang and Sabuncu, "Generalized cross entropy loss for training deep neural networks with noisy labels",
    NeurIPS 2018, equation 6.

    Raises:
      ValueError: if ``q`` is a number and not in (0, 1]; an array, which may be traced, is not checked.
    """
    if isinstance(q, int | float) and not 0 < q <= 1:
        raise ValueError(f"q: found {q}, expected a power in (0, 1]")
    return lambda logits, y: -jnp.expm1(-q * losses(logits, y)) / q


def group_dro(
    num_groups: int,
    *,
    eta: Float[Array, ""] | float = 0.01,
    adjustment: Float[AnyArray, "G"] | float = 0.0,
    loss: Callable[..., Float[Array, "b"]] = losses,
) -> Objective:
    """GroupDRO: the loss ``sum_g q_g l_g``, whose weights ``q`` grow for groups of high loss.

    ``l_g`` is the weighted mean ``loss(logits, y)``, in nats, or `squared_errors` of a regression, of the examples of
    group g in the batch. The state ``q [G]`` starts at
    ``1 / G``. Before each loss the groups in the batch share their mass anew, in proportion to
    ``q_g exp(eta (l_g + adjustment_g))``; absent groups keep theirs. No gradient passes through q. The usual
    adjustment is ``C / sqrt(n_g)``. At ``eta = 0`` this is the mean of the group losses, with one group plain ERM.
    Reads ``batch.group``; examples of group -1 have no influence. The method includes a sampler that draws all groups
    equally: `sampling.resampled` under `baselines.balanced_weights`.

    Source: Sagawa, Koh, Hashimoto and Liang, "Distributionally robust neural networks", ICLR 2020, algorithm 1.

    >>> import jax.numpy as jnp, numpy as np, d3mjax
    >>> objective = d3mjax.group_dro(2, eta=1.0)
    >>> batch = d3mjax.Split(np.zeros((2, 1)), np.array([0, 0]), np.array([0, 1]), np.arange(2))
    >>> logits = jnp.array([[3.0, 0.0], [0.0, 3.0]])  # group 0 is right, group 1 is wrong
    >>> _, weights = objective.value(objective.init(), logits, batch, jnp.ones(2))
    >>> bool(weights[1] > 0.9), bool(jnp.isclose(weights.sum(), 1))
    (True, True)
    """

    def value(q, logits, batch, weight):
        member = jax.nn.one_hot(batch.group, num_groups, axis=0) * weight[None]
        mass = member.sum(1)
        present = mass > 0
        group_loss = (member * loss(logits, batch.y)[None]).sum(1) / jnp.where(present, mass, 1)
        q = _exponentiated(q, jax.lax.stop_gradient(eta * (group_loss + adjustment)), present)
        return (q * group_loss).sum(), q

    return Objective(init=lambda: jnp.full(num_groups, 1 / num_groups), value=value)


def _exponentiated(q, gain, present):
    """``q exp(gain)`` where present, scaled to the mass that those had before."""
    grown = jnp.where(present, q * jnp.exp(gain - jnp.max(gain, where=present, initial=-jnp.inf)), 0)
    total = grown.sum()
    share = grown / jnp.where(total > 0, total, 1)
    return jnp.where(present, jnp.where(present, q, 0).sum() * share, q)
