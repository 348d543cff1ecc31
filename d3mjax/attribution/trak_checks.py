"""What goes into and comes out of TRAK, checked: checkpoints, their keys, groups, and values that went wrong."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, Key, PyTree

from d3mjax.types import AnyArray


class Info(NamedTuple):
    """What to look at after a run, one row a checkpoint; `check` does."""

    residual: jax.Array  # Float[*c], largest relative residual ||K x - u|| / ||u|| of the solves
    pivot: jax.Array  # Float[*c], smallest over largest squared pivot of the Cholesky factor of K; NaN: not definite
    finite: jax.Array  # Bool[*c n], whether the projected gradient of each train example is finite


def stack_checkpoints(checkpoints: Sequence[PyTree]) -> PyTree:
    """Variables of several models as one tree with a leading axis ``c``; raises as `check_same`."""
    if not checkpoints:
        raise ValueError("checkpoints: found none, expected at least one")
    check_same(checkpoints, range(len(checkpoints)))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *checkpoints)


def check_same(checkpoints: Sequence[PyTree], names: Sequence[int]) -> None:
    """Raises ValueError, naming checkpoint and leaves, if one differs from the first in structure, shape or dtype."""

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
    """The key of each checkpoint's projection, ``fold_in(key, id)``; raises ValueError if leading axes differ."""
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(checkpoints)}
    if len(sizes) != 1 or () in sizes or 0 in (size := next(iter(sizes))):
        raise ValueError(f"checkpoints: found leading axes {sorted(sizes)}, expected one number c for all, at least 1")
    if ids is not None and len(ids) != size[0]:
        raise ValueError(f"ids: found {len(ids)}, expected one for each of {size[0]} checkpoints")
    return jax.vmap(lambda a: jax.random.fold_in(key, a))(jnp.arange(size[0]) if ids is None else jnp.asarray(ids))


def check_groups(group: Int[AnyArray, "t"], num_groups: int) -> None:
    """Raises ValueError unless some target has a group and all are in ``-1..num_groups-1``. Passes tracers."""
    if isinstance(group, Tracer):
        return
    found = np.unique(np.asarray(group))
    if not (found >= 0).any():
        raise ValueError("target.group: no target has a group; label the targets, or use pseudo-groups or `scores`")
    if found[0] < -1 or found[-1] >= num_groups:
        raise ValueError(f"target.group: found {found.tolist()}, expected groups 0 to {num_groups - 1}, or -1 for none")


def check(
    info: Info, *, example_ids: Int[AnyArray, "n"] | None = None, checkpoint_ids: Sequence[int] | None = None
) -> None:
    """Look at a finished run, on the host. Warns (RuntimeWarning) where K was close to singular.

    Raises:
      FloatingPointError: gradients that are not finite (names examples and checkpoints), or a K that could not be
        factored (names checkpoints).
    """
    residual, pivot, finite = np.atleast_1d(info.residual), np.atleast_1d(info.pivot), np.atleast_2d(info.finite)
    names = np.arange(len(pivot)) if checkpoint_ids is None else np.asarray(checkpoint_ids)
    if not finite.all():
        examples = np.arange(finite.shape[1]) if example_ids is None else np.asarray(example_ids)
        bad = examples[~finite.all(0)]
        raise FloatingPointError(
            f"gradients are not finite for {len(bad)} train examples, first {bad[:5].tolist()}, at checkpoints "
            f"{names[~finite.all(1)][:5].tolist()}"
        )
    advice = "raise damping (0.1 is safe) or take a smaller projection (projections.default_size)"
    if not np.isfinite(residual + pivot).all():
        failed = names[~np.isfinite(residual + pivot)].tolist()
        raise FloatingPointError(f"the Gram matrix of checkpoints {failed} is not positive definite: {advice}")
    if (pivot < 1e-5).any() or (residual > 1e-2).any():
        warnings.warn(
            f"the Gram matrix is close to singular (smallest pivot {pivot.min():.1e} of the largest, relative residual "
            f"{residual.max():.1e}): {advice}",
            RuntimeWarning,
            stacklevel=2,
        )
