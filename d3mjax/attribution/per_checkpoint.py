"""Results and inputs that attribution from checkpoints shares, by TRAK (`trak`) and influence functions (`influence`).

A *checkpoint* is the variables of one trained model; ``checkpoints`` are one tree with a leading axis ``c``
(`stack_checkpoints`). Attribution of one checkpoint is the product of a kernel and a factor of the train example; over
checkpoints each is averaged by itself (`combine`), as TRAK does. The factor of influence functions is 1.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, PyTree

from d3mjax.attribution import gradients
from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray, Split


class Scores(NamedTuple):
    """Attribution ``tau[t, n]``: positive where including the train example raises the output of the target."""

    tau: jax.Array  # Float[t n], in units of the output
    info: Any  # diagnostics, with a leading axis c


class GroupScores(NamedTuple):
    """Group columns ``B[n, G]``: the mean of tau over the targets of each group; NaN for an empty group."""

    columns: jax.Array  # Float[n G], in units of the output
    kernel: jax.Array  # Float[c n G], of each checkpoint
    factor: jax.Array  # Float[c n], of each checkpoint
    info: Any  # diagnostics, with a leading axis c


class CheckpointColumns(NamedTuple):
    """Group columns of one checkpoint, ``kernel * factor[:, None]``."""

    kernel: jax.Array  # Float[n G]
    factor: jax.Array  # Float[n]
    info: Any


def combine(kernel: Float[Array, "c n G"], factor: Float[Array, "c n"]) -> Float[Array, "n G"]:
    """Group columns of several checkpoints: the mean kernel times the mean factor."""
    return kernel.mean(0) * factor.mean(0)[:, None]


def checkpoint_error(
    kernel: Float[AnyArray, "c n G"], group_weights: Float[AnyArray, "G"]
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Mean and standard error over checkpoints of ``kappa[a, i] = sum_g kernel[a, i, g] group_weights[g]``.

    The factor q is never negative, so it cannot change the sign of a score: "surely harmful" is ``mean + z error < 0``.
    Groups of weight 0 are ignored. One checkpoint has no spread: the error is NaN.
    """
    used = jnp.where(jnp.asarray(group_weights) > 0, jnp.asarray(kernel), 0)
    kappa = dot(used, jnp.asarray(group_weights, used.dtype))
    num = kappa.shape[0]
    squares = ((kappa - kappa.mean(0, keepdims=True)) ** 2).sum(0)
    return kappa.mean(0), jnp.sqrt(squares / num / (num - 1)) if num > 1 else jnp.full(kappa.shape[1:], jnp.nan)


def stack_checkpoints(checkpoints: Sequence[PyTree]) -> PyTree:
    """Variables of several models as one tree with a leading axis ``c``.

    Raises:
      ValueError: there are none, or one differs from the first (`check_same`).
    """
    if not checkpoints:
        raise ValueError("checkpoints: found none, expected at least one")
    check_same(checkpoints, range(len(checkpoints)))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *checkpoints)


def check_same(checkpoints: Sequence[PyTree], names: Sequence[int]) -> None:
    """Raise unless all checkpoints have the structure, shapes and dtypes of the first.

    Raises:
      ValueError: names the checkpoint, by ``names``, and the leaves that differ.
    """

    def facts(variables):
        leaves = jax.tree.leaves_with_path(variables)
        return {(jax.tree_util.keystr(path), jnp.shape(a), str(jnp.result_type(a))) for path, a in leaves}

    first = facts(checkpoints[0])
    for name, variables in zip(names, checkpoints, strict=True):
        differ = sorted({path for path, _, _ in first ^ facts(variables)})
        if differ:
            raise ValueError(f"checkpoints: number {name} differs from number {names[0]} in {differ[:5]}")


def checkpoint_keys(
    key: Key[Array, ""], checkpoints: PyTree, *, ids: Int[AnyArray, "c"] | None = None
) -> Key[Array, "c"]:
    """Key of each checkpoint, ``fold_in(key, id)``; ids are 0..c-1 unless given.

    Raises:
      ValueError: leading axes of checkpoints differ, or there is not one id for each.
    """
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(checkpoints)}
    if len(sizes) != 1 or () in sizes or 0 in (size := next(iter(sizes))):
        raise ValueError(f"checkpoints: found leading axes {sorted(sizes)}, expected one number c for all, at least 1")
    if ids is not None and len(ids) != size[0]:
        raise ValueError(f"ids: found {len(ids)}, expected one for each of {size[0]} checkpoints")
    return jax.vmap(lambda a: jax.random.fold_in(key, a))(jnp.arange(size[0]) if ids is None else jnp.asarray(ids))


def check_groups(group: Int[AnyArray, "t"], num_groups: int) -> None:
    """Raise unless some target has a group and all groups are in ``-1..num_groups-1``; tracers pass.

    Raises:
      ValueError: names the groups.
    """
    if isinstance(group, Tracer):
        return
    groups = np.unique(np.asarray(group))
    if not (groups >= 0).any():
        raise ValueError("target.group: no target has a group; label the targets, or use pseudo-groups or `scores`")
    if groups[0] < -1 or groups[-1] >= num_groups:
        raise ValueError(f"target.group: found {groups.tolist()}, expected 0 to {num_groups - 1}, or -1 for none")


def group_scores(one: Callable, keys: Key[Array, "c"], checkpoints: PyTree) -> GroupScores:
    """`GroupScores` of ``one(key, variables) -> CheckpointColumns``, one checkpoint after the other."""
    kernel, factor, info = jax.lax.map(lambda at: one(*at), (keys, checkpoints))
    return GroupScores(combine(kernel, factor), kernel, factor, info)


def mean_over_checkpoints(one: Callable, keys: Key[Array, "c"], checkpoints: PyTree) -> tuple[PyTree, PyTree]:
    """Mean of ``one(key, variables)[0]``, summed in place, and the second results with a leading axis ``c``."""
    shapes, _ = jax.eval_shape(one, keys[0], jax.tree.map(lambda a: a[0], checkpoints))

    def add(total, at):
        values, info = one(*at)
        return jax.tree.map(lambda a, b: a + b / len(keys), total, values), info

    return jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), (keys, checkpoints))


def group_mix(group: Int[AnyArray, "t *D"], num_groups: int) -> tuple[Float[Array, "t k"], Float[Array, "k"]]:
    """Weights of targets in the mean of each group, and the number of targets in each; -1 is in none.

    D groupings of the targets make ``k = D G`` groups, one grouping after the other.
    """
    member = jax.nn.one_hot(group, num_groups).reshape(len(group), -1)
    size = member.sum(0)
    return member / jnp.maximum(size, 1)[None], size


def as_arrays(split: Split) -> Split:
    """A split of JAX arrays."""
    return jax.tree.map(jnp.asarray, split)


def weights_of(train: Split, weights: Float[AnyArray, "n"] | None) -> Float[Array, "n"]:
    """Weights of train examples, 1 unless given."""
    return jnp.ones(train.y.shape[0]) if weights is None else jnp.asarray(weights)


def attributed(
    output: gradients.Output, variables: PyTree, keep: Callable[[str], bool] | None
) -> tuple[gradients.Output, PyTree]:
    """``output`` as a function of the attributed parameters, and those; ``keep`` as of `gradients.subset`."""
    params = variables["params"]
    return (output, params) if keep is None else gradients.subset(output, params, keep)
