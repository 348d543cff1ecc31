"""One function applied to many models: vmap inside, lax.map over chunks, shard_map over devices."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from d3mjax.keys import model_keys
from d3mjax.types import AnyArray, Split, Trainer

__all__ = ["check_losses", "map_models", "model_keys", "train_many"]


def map_models(
    fn: Callable[..., PyTree[Array]], *, width: int, mesh: Mesh | None = None, shared: tuple[PyTree, ...] = ()
) -> Callable:
    """Map ``fn`` over models: a function of one model's arrays becomes one of arrays with a leading axis ``m``.

    One vmap computes ``width`` models side by side, chunks follow each other, and every device of ``mesh`` (its first
    axis; None means no mesh) gets an equal share. ``m`` is padded to a multiple of the number of devices by repeating
    the last model. ``shared`` are the first arguments of ``fn``, the same for all models. Values in the closure of
    ``fn`` are shared too, but arrays on several devices must be passed: JAX rejects some operations on them otherwise.
    Memory grows with ``width``; results do not depend on ``width``, ``mesh`` or ``m`` beyond the rounding of the
    compiled kernels.

    On CPUs one model at a time (``width=1``) on one virtual device per core is fastest for small networks, because
    a wider vmap leaves the cache; on accelerators take as many as fit.

    >>> import jax.numpy as jnp, d3mjax
    >>> mapped = d3mjax.map_models(lambda x, slope: slope * x.sum(), width=2, shared=(jnp.ones(4),))
    >>> mapped(jnp.arange(3.0)).tolist()
    [0.0, 4.0, 8.0]

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


def train_many(
    trainer: Trainer,
    keys: Key[Array, "m"],
    split: Split,
    weights: Float[AnyArray, "*m n"],
    num_steps: int,
    *,
    look: Callable[..., PyTree[Array]] = lambda variables: variables,
    shared: tuple[PyTree, ...] = (),
    each: tuple[PyTree, ...] = (),
    width: int = 1,
    mesh: Mesh | None = None,
) -> tuple[PyTree[Array], Float[Array, "m s"]]:
    """Train m models and read something of each: ``look(variables, *shared, *each_j) -> tree``, with the losses.

    Model j starts from ``trainer.init(keys[j])`` and takes ``num_steps`` steps on ``split`` under its row of
    ``weights`` (one row ``[n]`` serves all). ``look`` keeps of its variables what is needed, so that m sets of
    variables never exist together; ``shared`` are arguments of ``look`` that all models see, such as target examples,
    and ``each`` have a leading axis m. ``split.y`` and ``split.group`` may be ``[m n]``, labels of each model;
    ``split.x`` and ``split.id`` may have the axis together, examples of each model.

    Returns the tree of ``look`` with a leading axis m, and the loss of every step, in nats for cross-entropy; hand the
    losses to `check_losses`. Pure: jit the function that calls this one, with data as its arguments, not in its
    closure. ``width`` and ``mesh`` are those of `map_models`; results do not depend on them.

    >>> import jax, jax.numpy as jnp, numpy as np, optax, d3mjax
    >>> x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    >>> split = d3mjax.Split(x, (x[:, 0] > 0).astype(int), np.zeros(40, int), np.arange(40))
    >>> trainer = d3mjax.make_trainer(
    ...     d3mjax.mlp((8,), 2), d3mjax.cross_entropy(), optax.adam(0.05), d3mjax.shuffled(), batch_size=10
    ... )
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> margins = lambda variables, target: d3mjax.outputs.soft_margins(d3mjax.mlp((8,), 2), variables, target)
    >>> outputs, losses = d3mjax.train_many(trainer, keys, split, np.ones(40), 60, look=margins, shared=(split,))
    >>> outputs.shape, losses.shape, bool((outputs[:, 0] > 0).all())
    ((3, 40), (3, 60), True)

    Raises:
      ValueError: if ``width`` is below 1, or leading axes of ``keys``, ``weights`` and ``each`` differ.
    """
    weights, axes = jnp.asarray(weights), _model_axes(split)
    mapped = [weights.ndim == 2, *axes]
    fixed, varying = _partition((weights, *split), mapped)

    def one(fixed, shared, key, varying, each):
        weight, *fields = _merged(fixed, varying, mapped)
        part = Split(*fields)
        state = trainer.init(key, jax.tree.map(lambda a: a[:1], part.x))
        state, info = trainer.run(state, part, weight, num_steps)
        return look(state.variables, *shared, *each), info.loss

    return map_models(one, width=width, mesh=mesh, shared=(fixed, shared))(keys, varying, each)


def check_losses(loss: Float[AnyArray, "m s"], ids: Int[AnyArray, "m"]) -> None:
    """Check on the host that all losses of m trainings are finite; ``ids`` name the models in the message.

    >>> import numpy as np, d3mjax
    >>> d3mjax.check_losses(np.array([[0.7, 0.5, 0.4], [0.7, np.nan, np.nan]]), ids=np.array([20, 21]))
    Traceback (most recent call last):
        ...
    FloatingPointError: training diverged: loss not finite for models 21 (step 1); lower the learning rate

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


def _model_axes(split: Split) -> list[bool]:
    """Which of x, y, group, id have a leading model axis."""
    examples = jnp.ndim(split.id) == 2
    return [examples, jnp.ndim(split.y) == 2, jnp.ndim(split.group) == 2, examples]


def _partition(values, mapped):
    return (
        tuple(None if is_mapped else value for value, is_mapped in zip(values, mapped, strict=True)),
        tuple(value if is_mapped else None for value, is_mapped in zip(values, mapped, strict=True)),
    )


def _merged(fixed, varying, mapped):
    return [b if is_mapped else a for a, b, is_mapped in zip(fixed, varying, mapped, strict=True)]
