"""AUTO-D3M end to end: checkpoints, the attribution of every single target, and pseudo-groups split from it.

    checkpoints = train_checkpoints(keys, model, trainer, data, num_steps)
    tau = attribute_targets(key, model, checkpoints, data, options)                 # one row a target
    groups = split_targets(tau, checkpoints, data.target.y, num_classes)            # pseudo_groups.PseudoGroups
    columns = attribute_groups(keys, model, checkpoints, data, num_groups, attribution)

The same checkpoints serve the split and the columns of the groups that it finds. `differentiate_targets` makes tau of
metagradients instead; group columns are then its means over the targets of a group. How targets are split is in
`debiasing.pseudo_groups`. Memory: all variables, and one number for every pair of target and training example.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from d3mjax.attribution import metagradient, outputs, per_checkpoint, trak
from d3mjax.debiasing import pseudo_groups, regression, sources
from d3mjax.debiasing.pseudo_groups import PseudoGroups
from d3mjax.runtime.hosts import local_mesh, place
from d3mjax.training import ensemble
from d3mjax.types import AnyArray, Data, Model, Trainer, is_regression

SIMILARITY = 1000.0  # damping far above 1: tau is plain similarity of gradients


class Checkpoints(NamedTuple):
    """Models trained on the whole training set."""

    variables: PyTree  # leading axis c, on the host
    margins: Float[AnyArray, "c t"]  # soft margins of the targets; of a regression minus half their squared errors
    right: Bool[AnyArray, "c n"]  # whether the checkpoint predicts the label of the example, or a number near it


def train_checkpoints(
    model_keys: Key[Array, "c"],
    model: Model,
    trainer: Trainer,
    data: Data,
    num_steps: int,
    *,
    width: int = 1,
    mesh: Mesh | None = None,
) -> Checkpoints:
    """One model a key, trained on all of ``data.train``; ``width`` and ``mesh`` as in `ensemble.map_models`.

    Raises:
      FloatingPointError: a training diverged; names models and steps.
    """
    mesh = mesh or local_mesh()
    statics = {"model": model, "trainer": trainer, "num_steps": num_steps, "width": width, "mesh": mesh}
    everything = np.ones(len(data.train.y), np.float32)
    checkpoints, losses = jax.device_get(_trained(place(data, mesh), model_keys, everything, **statics))
    ensemble.check_losses(losses, np.arange(len(losses)))
    return checkpoints


@partial(jax.jit, static_argnames=("model", "trainer", "num_steps", "width", "mesh"))
def _trained(data: Data, model_keys, everything, *, model, trainer, num_steps, width, mesh):
    def look(variables, data):
        if is_regression(data.train.y):
            right = regression.fits(outputs.residuals(model, variables, data.train, microbatch=4096))
            return Checkpoints(variables, outputs.negative_squared_errors(model, variables, data.target), right)
        right = outputs.hard_margins(model, variables, data.train, microbatch=4096) > 0
        return Checkpoints(variables, outputs.soft_margins(model, variables, data.target), right)

    # As an argument: XLA would spend a minute on folding what samplers make of a constant of a million entries.
    options = {"look": look, "shared": (data,), "width": width, "mesh": mesh}
    return ensemble.train_many(trainer, model_keys, data.train, everything, num_steps, **options)


def attribute_targets(
    key: Key[Array, ""],
    model: Model,
    checkpoints: Checkpoints,
    data: Data,
    options: trak.Options,
    *,
    damping: float = SIMILARITY,
) -> Float[np.ndarray, "t n"]:
    """TRAK's ``tau[t, n]`` with ``damping`` instead of that of ``options``; another damping compiles nothing anew.

    Raises:
      FloatingPointError: gradients that are not finite; names examples and checkpoints.
    """
    train, target = _on_one_device((data.train, data.target))
    scores = _scores(key, checkpoints.variables, train, target, jnp.float32(damping), model=model, options=options)
    trak.check(jax.device_get(scores.info), example_ids=np.asarray(train.id))
    return np.asarray(scores.tau)


@partial(jax.jit, static_argnames=("model", "options"))
def _scores(key, variables, train, target, damping, *, model, options: trak.Options):
    return trak.scores(key, model, variables, train, target, options=options._replace(damping=damping))


def differentiate_targets(
    model_keys: Key[Array, "c"],
    model: Model,
    trainer: Trainer,
    data: Data,
    num_steps: int,
    *,
    mesh: Mesh | None = None,
    options: metagradient.Options = metagradient.Options(),
) -> Float[np.ndarray, "t n"]:
    """Metagradients ``tau[t, n]``: the mean over the trainings by which `train_checkpoints` makes models of these keys.

    One matrix serves the split and the columns of groups. The devices of ``mesh`` share the t adjoints of a training.

    Raises:
      ValueError: the trainer has no such derivative (`metagradient.check_trainer`).
      FloatingPointError: a training diverged, or adjoints are not finite; names models and steps.
    """
    metagradient.check_trainer(trainer, data.train)
    mesh = mesh or local_mesh()
    statics = {"model": model, "trainer": trainer, "num_steps": num_steps, "mesh": mesh, "options": options}
    scores = jax.device_get(_differentiated(place(data, mesh), model_keys, **statics))
    metagradient.check(scores.info)
    return scores.tau


@partial(jax.jit, static_argnames=("model", "trainer", "num_steps", "mesh", "options"))
def _differentiated(data: Data, keys, *, model, trainer, num_steps, mesh, options):
    return metagradient.scores(keys, model, trainer, data.train, data.target, num_steps, mesh=mesh, options=options)


def split_targets(
    tau: Float[AnyArray, "t n"],
    checkpoints: Checkpoints,
    y: Int[AnyArray, "t"],
    num_classes: int,
    *,
    min_loss_share: float = 0.15,
) -> PseudoGroups:
    """Pseudo-groups ``2 y + bit`` by similarity of gradients and the share of checkpoints that misclassify a target.

    No class is split where less than ``min_loss_share`` of the variance of that share lies between the sides; see
    `pseudo_groups.pseudo_groups`, also for what is raised.
    """
    misclassified = (checkpoints.margins < 0).mean(0).astype(np.float32)
    rows = pseudo_groups.gram([tau])
    return pseudo_groups.pseudo_groups(rows, y, misclassified, num_classes, min_loss_share=min_loss_share)


def attribute_kernels(
    keys: Key[Array, "c"],
    model: Model,
    checkpoints: Checkpoints,
    data: Data,
    num_groups: int,
    attribution: sources.Attribution,
    *,
    width: int = 1,
    mesh: Mesh | None = None,
) -> tuple[Float[np.ndarray, "c r n k"], Float[np.ndarray, "c r n"], PyTree]:
    """Kernels, factors and info of checkpoints that are trained already; see `sources.Attribution`.

    ``data.target.group [t]`` makes ``k = G`` columns; D groupings ``[t D]`` make ``k = D G`` in one pass over the
    training set, one grouping after the other. ``keys``: of the projection of each checkpoint.
    """
    mesh = mesh or local_mesh()
    statics = {"model": model, "num_groups": num_groups, "attribution": attribution, "width": width, "mesh": mesh}
    return jax.device_get(_attributed(place(data, mesh), keys, checkpoints.variables, **statics))


def attribute_groups(
    keys: Key[Array, "c"],
    model: Model,
    checkpoints: Checkpoints,
    data: Data,
    num_groups: int,
    attribution: sources.Attribution,
    *,
    width: int = 1,
    mesh: Mesh | None = None,
) -> sources.Columns:
    """Group columns of checkpoints that are trained already, as `sources.from_checkpoints` makes them of its own.

    Arguments as of `attribute_kernels`. Raises as `sources.from_checkpoints` does.
    """
    arguments = (keys, model, checkpoints, data, num_groups, attribution)
    kernel, factor, info = attribute_kernels(*arguments, width=width, mesh=mesh)
    facts = attribution.check(info, data)
    # As in `sources`: within the program devices would have to wait for each other.
    columns = jax.vmap(per_checkpoint.combine, 1)(jnp.asarray(kernel), jnp.asarray(factor))
    return sources.Columns(np.asarray(columns), kernel[:, 0], np.asarray(checkpoints.right), facts)


@partial(jax.jit, static_argnames=("model", "num_groups", "attribution", "width", "mesh"))
def _attributed(data: Data, keys, variables, *, model, num_groups, attribution, width, mesh):
    one = lambda data, key, variables: attribution.attribute(key, model, variables, data, num_groups)
    return ensemble.map_models(one, width=width, mesh=mesh, shared=(data,))(keys, variables)


def _on_one_device(tree: PyTree) -> PyTree:
    """Copies of arrays that lie on all devices, on the first of them."""
    return jax.tree.map(lambda a: a.addressable_data(0) if isinstance(a, jax.Array) else a, tree)
