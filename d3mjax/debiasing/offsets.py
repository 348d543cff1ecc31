"""Class offsets: a number for each class, added to the logits, under which the worst group does best.

With two classes that is a decision threshold on the difference of the logits. Offsets need no training, only the groups
of validation examples, so they are the control of every method that trains again.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from d3mjax.types import AnyArray

LARGEST = 1e30  # of a margin, so that offsets stay finite where logits do not


def choose(
    logits: Float[AnyArray, "t C"],
    y: Int[AnyArray, "t"],
    group: Int[AnyArray, "t"],
    num_groups: int,
    *,
    tolerance: float = 0.01,
    rounds: int = 3,
) -> Float[Array, "C"]:
    """Offsets, the first 0, under which the worst group of ``argmax(logits + offsets)`` does best.

    Of all offsets within ``tolerance`` of the best worst-group accuracy those of best average accuracy, of these the
    nearest to 0: a step of one example in a group of a hundred is noise, and the average is what offsets cost. Examples
    of group -1 and empty groups count nowhere; without examples all offsets are 0.

    Exact for two classes: one sort covers every threshold. With more, classes are moved in turn, each exactly, in
    ``rounds`` rounds for the worst group and as many for the average: a local optimum, never worse than no offsets.
    A threshold lies midway between neighbouring margins, the farthest from examples that it could misjudge. Neighbours
    nearer than rounding are not divided, as another device would divide them otherwise.

    >>> import numpy as np, d3mjax
    >>> logits = np.array([[2.0, 0.0], [1.0, 0.5], [1.0, 0.0], [3.0, 0.0]])  # all are predicted to be of class 0
    >>> d3mjax.offsets.choose(logits, np.array([0, 1, 1, 0]), np.array([0, 1, 1, 0]), 2).tolist()
    [0.0, 1.5]
    """
    logits = jnp.asarray(logits, jnp.promote_types(jnp.asarray(logits).dtype, jnp.float32))
    logits, num_classes = jnp.clip(jnp.nan_to_num(logits), -LARGEST, LARGEST), logits.shape[1]
    member = jax.nn.one_hot(group, num_groups, dtype=jnp.int32)  # [t G]; a row of -1 is all zero
    moved, slack = jnp.array([1]), jnp.array([tolerance])
    if num_classes > 2:
        moved = jnp.tile(jnp.arange(num_classes), 2 * rounds)
        slack = jnp.repeat(jnp.array([0.0, tolerance]), rounds * num_classes)
    start = (jnp.zeros(num_classes, logits.dtype), jnp.array(-jnp.inf))
    (offsets, _), _ = jax.lax.scan(partial(_move, logits, jnp.asarray(y), member), start, (moved, slack))
    return offsets - offsets[0]


def _move(logits, y, member, state, step):
    """Move one class; ``state``: offsets, and the best worst-group accuracy so far, of which ``slack`` may be lost."""
    (offsets, best), (c, slack) = state, step
    count, known = member.sum(0), member.any(1)
    others = jnp.where(jnp.arange(logits.shape[1])[None] == c, -jnp.inf, logits + offsets[None])
    # Example i is predicted to be of class c where its margin is above the threshold, which is minus the offset of c.
    margins = logits[:, c] - others.max(1)
    margins = jnp.where(known, margins, jnp.where(known, margins, -LARGEST).max())  # no threshold of their own
    order = jnp.argsort(margins)
    above = member * (y == c)[:, None]  # right if the margin is above the threshold
    below = member * (y == others.argmax(1))[:, None]
    # [t + 1, G]: correct examples with the threshold below the first margin, between neighbours, above the last.
    right = jnp.pad(jnp.cumsum((below - above)[order], axis=0), ((1, 0), (0, 0))) + above.sum(0)[None]
    worst = jnp.where(count[None] > 0, right / jnp.maximum(count, 1)[None], jnp.inf).min(1)

    ordered, size = margins[order], jnp.abs(margins).max()
    end = jnp.maximum(1.0, 1e-3 * size)
    lower = jnp.concatenate([ordered[:1] - 2 * end, ordered])
    upper = jnp.concatenate([ordered, ordered[-1:] + 2 * end])
    now = -offsets[c]
    stays = (lower <= now).at[0].set(True) & (now < upper).at[-1].set(True)
    threshold = jnp.where(stays, now, lower / 2 + upper / 2)
    rounding = 8 * jnp.finfo(logits.dtype).eps * jnp.maximum(size, jnp.abs(logits).max())
    worst = jnp.where(stays | (upper - lower > rounding), worst, -jnp.inf)

    best = jnp.maximum(best, worst.max())
    average = jnp.where(worst >= best - slack - 1e-6, right.sum(1), -1)
    nearest = jnp.argmin(jnp.where(average == average.max(), jnp.abs(threshold), jnp.inf))
    return (offsets.at[c].set(-threshold[nearest]), best), None
