"""Learning from Failure: a network that is led by shortcuts, and beside it one that learns from the failures of it.

Both train together as one model of twice the logits: `twins` makes the model, `objective` its loss, `second` the
network that is wanted. The biased twin minimises the generalised cross-entropy, which prefers what is easy; the second
minimises the cross-entropy weighted by `relative_difficulty`, which is high where only the biased twin fails.

Source: Nam, Cha, Ahn, Lee and Shin, "Learning from failure: de-biasing classifier from biased classifier", NeurIPS
2020. Its running means of losses, normalised within classes, are in its code (alinlab/LfF), which also multiplies the
generalised cross-entropy by q; under Adam that factor cancels.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from d3mjax.training import objectives
from d3mjax.types import Model, Objective


class Difficulty(NamedTuple):
    """Running mean of the loss of every training example, for the biased twin and the second."""

    loss: Float[Array, "2 n"]  # 0 where not seen yet
    y: Int[Array, "n"]  # label, -1 where not seen yet


def twins(model: Model) -> Model:
    """Two networks of one kind on the same input: ``x [b, ...] -> logits [b, 2 C]``, the biased twin's first."""

    def init(key, x):
        return _both(*(model.init(jax.random.fold_in(key, i), x) for i in range(2)))

    def apply(variables, x, *, train=False):
        (biased, one), (unbiased, other) = (model.apply(part(variables), x, train=train) for part in (first, second))
        return jnp.concatenate([biased, unbiased], axis=-1), _both(one, other)

    return Model(init, apply)


def first(variables: Any) -> Any:
    """Variables of the biased twin."""
    return {name: twin[0] for name, twin in variables.items()}


def second(variables: Any) -> Any:
    """Variables of the twin that learns from failures, for the model that was given to `twins`."""
    return {name: twin[1] for name, twin in variables.items()}


def _both(one: Any, other: Any) -> Any:
    return {name: (one[name], other[name]) for name in one}


def relative_difficulty(
    loss: Float[Array, "2 b"], highest: Float[Array, "2 C"], y: Int[Array, "b"]
) -> Float[Array, "b"]:
    """Weights ``r / (r + s)`` in [0, 1]: losses r of the biased twin, s of the second, over the highest of the class.

    1/2 where neither has a loss.
    """
    share = loss / jnp.where(highest > 0, highest, 1)[:, y]
    total = share.sum(0)
    return jnp.where(total > 0, share[0] / jnp.where(total > 0, total, 1), 0.5)


def objective(
    num_examples: int, num_classes: int, *, q: Float[Array, ""] | float = 0.7, memory: float = 0.7
) -> Objective:
    """Loss of `twins`: ``(1/b) sum_i w_i (gce(biased_i) + difficulty_i cross_entropy(second_i))`` in nats.

    ``batch.id`` must be the row numbers 0 .. ``num_examples`` - 1 of the training set. The state is a `Difficulty`:
    before each loss the running means of the examples in the batch move to ``memory old + (1 - memory) new``, from the
    first loss seen. Examples of weight 0 have no influence. No gradient passes through the weights.

    >>> import jax, jax.numpy as jnp, numpy as np, optax, d3mjax
    >>> from d3mjax.training import lff
    >>> split = d3mjax.Split(np.eye(4, dtype=np.float32), np.arange(4) % 2, np.zeros(4, int), np.arange(4))
    >>> model = d3mjax.linear(2)
    >>> objective, sampler = lff.objective(4, num_classes=2), d3mjax.shuffled()
    >>> trainer = d3mjax.make_trainer(lff.twins(model), objective, optax.adam(0.1), sampler, batch_size=4)
    >>> state, _ = trainer.run(trainer.init(jax.random.key(0), split.x), split, jnp.ones(4), 50)
    >>> model.apply(lff.second(state.variables), split.x)[0].argmax(1).tolist()
    [0, 1, 0, 1]

    Raises:
      ValueError: if ``q`` is a number not in (0, 1], or ``memory`` is not in [0, 1).
    """
    if not 0 <= memory < 1:
        raise ValueError(f"memory: found {memory}, expected at least 0 and below 1")
    easy = objectives.generalised_losses(q)

    def value(state: Difficulty, logits, batch, weight):
        biased, unbiased = logits[:, :num_classes], logits[:, num_classes:]
        new = jnp.stack([objectives.losses(biased, batch.y), objectives.losses(unbiased, batch.y)])
        row = jnp.where(weight > 0, batch.id, num_examples)  # past the end: dropped
        old, known = state.loss[:, batch.id], state.y[batch.id] >= 0
        mean = jax.lax.stop_gradient(jnp.where(known, memory * old + (1 - memory) * new, new))
        state = Difficulty(
            state.loss.at[:, row].set(mean, mode="drop"), state.y.at[row].set(batch.y.astype(jnp.int32), mode="drop")
        )
        member = state.y[None] == jnp.arange(num_classes)[:, None]
        highest = jnp.where(member[None], state.loss[:, None], 0).max(-1)
        difficulty = relative_difficulty(mean, highest, batch.y)
        return jnp.mean(weight * (easy(biased, batch.y) + difficulty * new[1])), state

    def init():
        return Difficulty(jnp.zeros((2, num_examples)), jnp.full(num_examples, -1, jnp.int32))

    return Objective(init, value)
