"""One large problem over many devices: examples, targets and parameters are sharded, and devices exchange sums.

    mesh = hosts.global_mesh(data=8)
    result = sharded.group_scores(key, model, checkpoints, train, target, 4, mesh=mesh)
    linear, info = sharded.fit_lasso(masks, outputs, heldout, mesh=mesh)
    linear = sharded.fit_ridge(masks, outputs, lambdas, mesh=mesh)
    trainer = make_trainer(model, objective, tx, sampler, batch_size=256, constrain=sharded.by_example(mesh))
    state = sharded.spread(state, mesh, rule)

The functions are those of `attribution`, with the sum over devices as an argument. Gram matrices are summed in
float32: results differ from those of one device only by the order of sums. Every host passes the same arguments.
Results are sharded; `hosts.gather` collects them on every host.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from d3mjax.attribution import datamodels, per_checkpoint, trak
from d3mjax.attribution.per_checkpoint import GroupScores
from d3mjax.linalg import lasso, ridge
from d3mjax.runtime.hosts import put
from d3mjax.types import AnyArray, Linear, Model, Split


def group_scores(
    key: Key[Array, ""],
    model: Model,
    checkpoints: PyTree,
    train: Split,
    target: Split,
    num_groups: int,
    *,
    mesh: Mesh,
    weights: Float[AnyArray, "n"] | None = None,
    ids: Int[AnyArray, "c"] | None = None,
    options: trak.Options = trak.Options(),
) -> GroupScores:
    """`trak.group_scores` with an equal share of the train examples on each device along the axis ``data`` of the mesh.

    Each device keeps the gradients of its own examples; only the Gram ``[p p]`` of a checkpoint is summed over devices.
    Targets, fewer than train examples, are replicated. Arguments, results and errors are those of `trak.group_scores`.
    Every call compiles: put repeated calls under `jax.jit`. Results are replicated unless n is a multiple of the number
    of devices.
    """
    per_checkpoint.check_groups(target.group, num_groups)
    count = mesh.shape["data"]
    n = len(train.y)
    counted = np.ones(n, np.float32) if weights is None else np.asarray(weights, np.float32)
    train = _padded(train, count)
    counted = np.pad(counted, (0, -n % count))  # padding of the last share has weight 0
    reduce = partial(jax.lax.psum, axis_name="data")

    def share(train, weights, target, keys, checkpoints):
        def one(at):
            return trak.group_columns(
                *(at[0], model, at[1], train, target, num_groups),
                weights=weights,
                options=options,
                reduce=reduce,
                shares=count,
            )

        kernel, factor, info = jax.lax.map(one, (keys, checkpoints))
        return (kernel, factor, info.finite), (info.residual, info.pivot)

    rows, everywhere = PartitionSpec("data"), PartitionSpec()
    spread = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(rows, rows, everywhere, everywhere, everywhere),
        out_specs=(PartitionSpec(None, "data"), everywhere),
        axis_names={"data"},  # checkpoints keep their shares along other axes
        check_vma=False,  # the sums over devices are explicit, and no gradient passes through them
    )
    keys = per_checkpoint.checkpoint_keys(key, checkpoints, ids=ids)
    of_example, (residual, pivot) = jax.jit(spread)(train, counted, target, keys, checkpoints)
    kernel, factor, finite = (a[:, :n] for a in of_example)
    info = trak.Info(residual, pivot, finite)
    return GroupScores(per_checkpoint.combine(kernel, factor), kernel, factor, info)


def fit_lasso(
    masks: Shaped[AnyArray, "m n"],
    outputs: Float[AnyArray, "m t"],
    heldout: Int[AnyArray, " v"],
    *,
    mesh: Mesh,
    axis: str = "model",
    options: lasso.Options = lasso.Options(),
) -> tuple[Linear, datamodels.LassoInfo]:
    """`datamodels.fit_lasso` with models sharded for the Gram matrix, and targets sharded for the fits.

    Every call compiles. Masks are replicated unless m is a multiple of the number of devices.
    """
    spread = {
        "moments": partial(moments, mesh=mesh, axis=axis),
        "map_targets": partial(map_targets, mesh=mesh, axis=axis),
    }
    fit = lambda *arrays: datamodels.fit_lasso(*arrays, options=options, **spread)
    return jax.jit(fit)(np.asarray(masks), np.asarray(outputs), np.asarray(heldout))


def fit_ridge(
    masks: Shaped[AnyArray, "m n"],
    outputs: Float[AnyArray, "m t"],
    lambdas: Float[AnyArray, " l"],
    *,
    mesh: Mesh,
    axis: str = "model",
    target_block: int = 256,
) -> Linear:
    """Weights of `datamodels.fit_ridge`, with models sharded for the Gram matrix, and targets sharded for the fits.

    Always the primal form, which suits more models than examples: every device decomposes the Gram ``[n n]`` and fits
    its targets, ``target_block`` at a time. Every call compiles.
    """

    def fit(masks, outputs, lambdas):
        sums = moments(masks, outputs, mesh=mesh, axis=axis)
        solve = partial(ridge.solve_moments, ridge.factor_moments(sums), lambdas=lambdas)
        weight, bias = map_targets(solve, sums, block=target_block, mesh=mesh, axis=axis)
        return Linear(jnp.swapaxes(weight, 0, 1), bias.T)

    return jax.jit(fit)(np.asarray(masks), np.asarray(outputs), np.asarray(lambdas))


def moments(
    x: Shaped[AnyArray, "m n"],
    y: Float[AnyArray, "m t"],
    *,
    mesh: Mesh,
    axis: str = "model",
    keep: Bool[AnyArray, " m"] | None = None,
) -> lasso.Moments:
    """`lasso.moments` of rows sharded along ``axis``: sums over the rows of each device, then one over devices."""
    keep = jnp.ones(x.shape[0], bool) if keep is None else keep
    padding = -x.shape[0] % mesh.shape[axis]
    rows = [jnp.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1)) for a in map(jnp.asarray, (x, y, keep))]
    reduce = partial(jax.lax.psum, axis_name=axis)
    share = lambda x, y, keep: lasso.moments(x, y, keep=keep, reduce=reduce)
    spec = PartitionSpec(axis)
    return jax.shard_map(share, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False)(*rows)


def map_targets(
    fn: Callable[..., PyTree], moments: lasso.Moments, *args: Any, block: int, mesh: Mesh, axis: str = "model"
) -> PyTree:
    """`lasso.map_targets` with an equal share of the targets on each device along ``axis``, without communication."""
    t, count = moments.power.shape[0], mesh.shape[axis]
    padding = -t % count
    fill = lambda a: jnp.pad(a, [(0, padding)] + [(0, 0)] * (a.ndim - 1))

    def share(moments, cross, power, target_mean, *args):
        moments = moments._replace(cross=cross, power=power, target_mean=target_mean)
        return lasso.map_targets(fn, moments, *args, block=min(block, (t + padding) // count))

    rows = PartitionSpec(axis)
    shares = list(map(fill, (moments.cross, moments.power, moments.target_mean, *args)))
    specs = (PartitionSpec(), *(rows for _ in shares))
    out = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(moments, *shares)
    return jax.tree.map(lambda a: a[:t], out)


def by_example(mesh: Mesh, *, axis: str = "data") -> Callable[[PyTree], PyTree]:
    """Return ``constrain`` of `make_trainer`: batches are sharded along ``axis``."""
    sharding = NamedSharding(mesh, PartitionSpec(axis))
    return lambda batch: jax.lax.with_sharding_constraint(batch, sharding)


def spread(tree: PyTree, mesh: Mesh, rule: Callable[[str, Any], PartitionSpec]) -> PyTree:
    """Shard parameters, or a whole training state, by ``rule(path, leaf)``; ``PartitionSpec()`` replicates a leaf.

    A path is a string such as ``".variables['params']['Dense_0']['kernel']"``; the path of an optimiser's state for a
    parameter ends with the keys of the parameter. A compiled ``run`` keeps the sharding of its state.

    Raises:
      ValueError: the size of an axis is no multiple of the number of its devices; names the leaf.
    """

    def one(path, leaf):
        name = jax.tree_util.keystr(path)
        spec = rule(name, leaf)
        for size, axis in zip(jnp.shape(leaf), spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise ValueError(
                    f"{name}: found {size} rows for {mesh.shape[axis]} devices along {axis!r}, expected a multiple"
                )
        return put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map_with_path(one, tree)


def _padded(tree: PyTree, count: int) -> PyTree:
    """Host arrays, padded along the leading axis to a multiple of ``count`` by copies of the last row."""

    def fill(a):
        a = np.asarray(a)
        return np.concatenate([a, np.repeat(a[-1:], -len(a) % count, axis=0)])

    return jax.tree.map(fill, tree)
