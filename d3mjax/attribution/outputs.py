"""Model outputs: the one number per example that is attributed. Margins grow as the model does better."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from d3mjax.training import objectives
from d3mjax.types import AnyArray, Model, Split


def hard_margin(logits: Float[Array, "*t C"], y: Int[AnyArray, "*t"]) -> Float[Array, "*t"]:
    """``logit_y - max_{c != y} logit_c`` (Ilyas et al., 2022); positive exactly when the prediction is right."""
    own, others = _own_and_others(logits, y)
    return own - others.max(-1)


def soft_margin(logits: Float[Array, "*t C"], y: Int[AnyArray, "*t"]) -> Float[Array, "*t"]:
    """``logit_y - logsumexp_{c != y} logit_c = log(p / (1 - p))`` (Park et al., 2023); smooth and unsaturated."""
    own, others = _own_and_others(logits, y)
    return own - jax.nn.logsumexp(others, axis=-1)


def hard_margins(model: Model, variables: Any, split: Split, *, microbatch: int | None = None) -> Float[Array, "t"]:
    """`hard_margin` of every example of ``split`` in evaluation mode, ``microbatch`` examples at a time."""
    return hard_margin(logits(model, variables, split.x, microbatch=microbatch), split.y)


def soft_margins(model: Model, variables: Any, split: Split, *, microbatch: int | None = None) -> Float[Array, "t"]:
    """`soft_margin` of every example of ``split`` in evaluation mode, ``microbatch`` examples at a time."""
    return soft_margin(logits(model, variables, split.x, microbatch=microbatch), split.y)


def losses(model: Model, variables: Any, split: Split, *, microbatch: int | None = None) -> Float[Array, "t"]:
    """Cross-entropy in nats of every example of ``split`` in evaluation mode, ``microbatch`` examples at a time."""
    return objectives.losses(logits(model, variables, split.x, microbatch=microbatch), split.y)


def logits(model: Model, variables: Any, x: PyTree[AnyArray], *, microbatch: int | None = None) -> Float[Array, "t C"]:
    """Logits in evaluation mode; ``microbatch`` bounds memory and changes nothing else (None: all at once)."""
    return map_microbatches(lambda part: model.apply(variables, part)[0], x, microbatch=microbatch)


def map_microbatches(fn: Callable, x: PyTree[AnyArray], *, microbatch: int | None) -> PyTree[Array]:
    """``fn`` over slices of ``microbatch`` rows of ``x``, outputs joined; the last slice is padded with repeated rows.

    Raises:
      ValueError: if ``microbatch`` is below 1.
    """
    if microbatch is not None and microbatch < 1:
        raise ValueError(f"microbatch: found {microbatch}, expected at least 1, or None for all at once")
    num_rows = jax.tree.leaves(x)[0].shape[0]
    if microbatch is None or microbatch >= num_rows:
        return fn(x)
    index = jnp.arange(-(-num_rows // microbatch) * microbatch).reshape(-1, microbatch)
    parts = jax.lax.map(lambda i: fn(jax.tree.map(lambda a: jnp.take(a, i, axis=0, mode="clip"), x)), index)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:num_rows], parts)


def _own_and_others(logits, y):
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    own = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    return jnp.where(own, logits, 0).sum(-1), jnp.where(own, -jnp.inf, logits)
