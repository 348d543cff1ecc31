"""The same function of many models: vmap inside, lax.map over chunks, shard_map over devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from d3mjax.types import AnyArray


def model_keys(key: Key[Array, ""], ids: Int[AnyArray, "m"]) -> Key[Array, "m"]:
    """The identity of each model, ``fold_in(key, id)``: all randomness of a model derives from its own key."""
    return jax.vmap(lambda j: jax.random.fold_in(key, j))(ids)


def map_models(
    fn: Callable[..., PyTree[Array]], *, width: int, mesh: Mesh | None = None, shared: tuple[PyTree, ...] = ()
) -> Callable:
    """``fn`` of one model's arguments, turned into a function of arrays with a leading model axis ``m``.

    ``width`` models are trained side by side by one vmap, chunks of them in sequence, and equal shares on each device
    of ``mesh`` (its first axis; None means no mesh). ``m`` is padded to a multiple of the number of devices by
    repeating the last model. ``shared`` are arguments of ``fn`` before those of each model, the same for all; so are
    values that it closes over, but arrays that lie on several devices must be passed: JAX refuses some operations on
    them otherwise. Memory grows with ``width``; results do not depend on ``width``, ``mesh`` or ``m`` beyond the
    rounding of the compiled kernels.

    On CPUs one model at a time (``width=1``) on one virtual device per core is fastest for small networks, because
    a wider vmap leaves the cache; on accelerators take as many as fit.

    Raises:
      ValueError: if ``width`` is below 1, or the leading axes of the arguments differ.
    """
    if width < 1:
        raise ValueError(f"width: found {width}, expected at least 1")

    def chunked(shared, args):
        call = lambda a: fn(*shared, *a)  # lax.map takes one argument
        return jax.lax.map(call, args, batch_size=width) if width > 1 else jax.lax.map(call, args)

    def mapped(*args):
        sizes = {leaf.shape[0] for leaf in jax.tree.leaves(args)}
        if len(sizes) != 1:
            raise ValueError(f"args: found leading axes {sorted(sizes)}, expected one number of models for all")
        if mesh is None:
            return chunked(shared, args)
        (num_models,) = sizes
        axis = mesh.axis_names[0]
        auto = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
        padding = -num_models % mesh.shape[axis]
        if padding:  # even of nothing, it would go between devices where arguments are spread over them
            args = jax.tree.map(lambda a: jnp.concatenate([a, jnp.repeat(a[-1:], padding, axis=0)]), args)
        spec = PartitionSpec(axis)
        # check_vma=False: with it on, JAX sums the gradients of parameters that start equal on all devices (biases at
        # zero), tying models together that have nothing to do with each other.
        specs = (PartitionSpec(), spec)
        out = jax.shard_map(chunked, mesh=auto, in_specs=specs, out_specs=spec, check_vma=False)(shared, args)
        return jax.tree.map(lambda a: a[:num_models], out) if padding else out

    return mapped


def check_losses(loss: Float[AnyArray, "m s"], ids: Int[AnyArray, "m"]) -> None:
    """Host-side check that no training diverged.

    Raises:
      FloatingPointError: naming the models and the first steps at which their loss was not finite.
    """
    bad = ~np.isfinite(np.asarray(loss))
    if bad.any():
        models = np.flatnonzero(bad.any(axis=1))
        named = ", ".join(f"{int(np.asarray(ids)[j])} (step {int(bad[j].argmax())})" for j in models[:5])
        more = f" and {len(models) - 5} more" if len(models) > 5 else ""
        raise FloatingPointError(
            f"training diverged: loss not finite for models {named}{more}; lower the learning rate"
        )
