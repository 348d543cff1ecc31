"""Model outputs: one number per example, for attribution. Margins grow as the model does better.

Of a regression, whose models have one output, the residual ``y - prediction`` and minus half its square.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from d3mjax.attribution.microbatches import map_microbatches
from d3mjax.linalg.products import LARGEST
from d3mjax.training import objectives
from d3mjax.types import AnyArray, Model, Split


def hard_margin(logits: Float[Array, "*t C"], y: Int[AnyArray, "*t"]) -> Float[Array, "*t"]:
    """Hard margin ``logit_y - max_{c != y} logit_c``: positive exactly when the prediction is right.

    Source: Ilyas et al., 2022.
    """
    of_label, others = _label_and_others(logits, y)
    return of_label - others.max(-1)


def soft_margin(logits: Float[Array, "*t C"], y: Int[AnyArray, "*t"]) -> Float[Array, "*t"]:
    """Soft margin ``logit_y - logsumexp_{c != y} logit_c = log(p / (1 - p))``: smooth and unsaturated.

    Source: Park et al., 2023.
    """
    of_label, others = _label_and_others(logits, y)
    return of_label - jax.nn.logsumexp(others, axis=-1)


def error_norm(logits: Float[Array, "*t C"], y: Int[AnyArray, "*t"]) -> Float[Array, "*t"]:
    """EL2N ``||softmax(logits) - onehot(y)||_2``, from 0 to the root of 2: of a network early in training, difficulty.

    Unlike a margin it grows as the model does worse. Source: Paul, Ganguli and Dziugaite, 2021.

    >>> import jax.numpy as jnp
    >>> from d3mjax.attribution import outputs
    >>> round(float(outputs.error_norm(jnp.zeros((1, 2)), jnp.array([1]))[0]), 4)
    0.7071
    """
    p = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    return jnp.linalg.norm(p - jax.nn.one_hot(y, p.shape[-1], dtype=p.dtype), axis=-1)


def residual(logits: Float[Array, "*t 1"], y: Float[AnyArray, "*t"]) -> Float[Array, "*t"]:
    """Residual ``y - prediction`` of a regression, in the label's unit: positive where the prediction is too low."""
    return jnp.asarray(y) - logits[..., 0].astype(jnp.promote_types(logits.dtype, jnp.float32))


def negative_squared_error(logits: Float[Array, "*t 1"], y: Float[AnyArray, "*t"]) -> Float[Array, "*t"]:
    """Minus half the squared residual of a regression: at most 0, larger is better."""
    return -(residual(logits, y) ** 2) / 2


def hard_margins(model: Model, variables: Any, split: Split, *, microbatch: int | None = LARGEST) -> Float[Array, "t"]:
    """`hard_margin` of every example of ``split`` in evaluation mode, ``microbatch`` examples at a time."""
    return hard_margin(logits(model, variables, split.x, microbatch=microbatch), split.y)


def soft_margins(model: Model, variables: Any, split: Split, *, microbatch: int | None = LARGEST) -> Float[Array, "t"]:
    """`soft_margin` of every example of ``split`` in evaluation mode, ``microbatch`` examples at a time."""
    return soft_margin(logits(model, variables, split.x, microbatch=microbatch), split.y)


def error_norms(model: Model, variables: Any, split: Split, *, microbatch: int | None = LARGEST) -> Float[Array, "t"]:
    """`error_norm` of every example of ``split`` in evaluation mode, ``microbatch`` examples at a time."""
    return error_norm(logits(model, variables, split.x, microbatch=microbatch), split.y)


def residuals(model: Model, variables: Any, split: Split, *, microbatch: int | None = LARGEST) -> Float[Array, "t"]:
    """`residual` of every example of ``split`` in evaluation mode, ``microbatch`` examples at a time."""
    return residual(logits(model, variables, split.x, microbatch=microbatch), split.y)


def negative_squared_errors(
    model: Model, variables: Any, split: Split, *, microbatch: int | None = LARGEST
) -> Float[Array, "t"]:
    """`negative_squared_error` of every example of ``split`` in evaluation mode, ``microbatch`` examples at a time."""
    return negative_squared_error(logits(model, variables, split.x, microbatch=microbatch), split.y)


def losses(model: Model, variables: Any, split: Split, *, microbatch: int | None = LARGEST) -> Float[Array, "t"]:
    """Cross-entropy in nats of every example of ``split`` in evaluation mode, ``microbatch`` examples at a time."""
    return objectives.losses(logits(model, variables, split.x, microbatch=microbatch), split.y)


def logits(
    model: Model, variables: Any, x: PyTree[AnyArray], *, microbatch: int | None = LARGEST
) -> Float[Array, "t C"]:
    """Logits in evaluation mode; ``microbatch`` bounds memory and changes nothing else (None: all at once)."""
    return map_microbatches(lambda part: model.apply(variables, part)[0], x, microbatch=microbatch)


def _label_and_others(logits, y):
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    label = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    return jnp.where(label, logits, 0).sum(-1), jnp.where(label, -jnp.inf, logits)
