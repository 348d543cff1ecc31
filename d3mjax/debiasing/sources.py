"""Sources of group columns ``B[n, G]``: TRAK or influence functions at checkpoints, metagradients, or datamodels.

A source is trained and attributed on the same devices and returns `Columns`. How a checkpoint is attributed is an
`Attribution`, a value: make it once and pass it to many calls, as every new one is compiled anew.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from d3mjax import metrics
from d3mjax.attribution import datamodels, influence, metagradient, outputs, per_checkpoint, trak
from d3mjax.linalg import iterative, lasso
from d3mjax.runtime.hosts import local_mesh, place
from d3mjax.runtime.sweep import sweep
from d3mjax.training import ensemble, masks
from d3mjax.types import AnyArray, Data, Model, Trainer, is_regression


class Attribution(NamedTuple):
    """How one checkpoint is attributed to train examples, and how the result is checked on the host.

    ``attribute(key, model, variables, data, num_groups) -> (kernel [r n G], factor [r n], info)`` gives r readings of
    one checkpoint, such as columns at r dampings; group columns are ``mean kernel * mean factor`` over checkpoints.
    ``check(info, data) -> facts`` raises where values went wrong, and returns numbers for the record. ``readings``:
    their names.
    """

    attribute: Callable[..., tuple[Array, Array, PyTree]]
    check: Callable[[PyTree, Data], dict[str, Any]]
    readings: tuple[str, ...] = ("D3M",)


class Columns(NamedTuple):
    """Group columns at r readings, and the checkpoints behind the first of them (None for datamodels)."""

    columns: Float[np.ndarray, "r n G"]  # B: positive where including the example raises the group's output
    kernel: Float[np.ndarray, "c n G"] | None  # per checkpoint, before averaging
    right: Bool[np.ndarray, "c n"] | None  # whether the checkpoint predicts the class of the label; None for numbers
    facts: dict[str, Any]  # residuals and the like


class Bank(NamedTuple):
    """Recipe of datamodels as a source: small subsets, trained for as many epochs as the full set, are cheap."""

    models: int = 5000
    min_share: float = 0.1  # a subset keeps a share of the training set drawn uniformly between the two
    max_share: float = 0.2
    steps: int = 120
    block: int = 250
    fit: Literal["ridge", "LASSO"] = "ridge"


def by_trak(options: trak.Options, *, dampings: tuple[float, ...] = ()) -> Attribution:
    """TRAK at its own damping and at ``dampings``, which share everything but the solve and the pass along its result.

    Source: Park et al., 2023; `attribution.trak`.
    """

    def attribute(key, model: Model, variables, data: Data, num_groups: int):
        def damped(damping):
            settings = options._replace(damping=damping)
            return trak.group_columns(key, model, variables, data.train, data.target, num_groups, options=settings)

        return jax.vmap(damped)(jnp.array([options.damping, *dampings]))

    def check(info, data: Data) -> dict[str, Any]:
        worst = trak.Info(info.residual.max(1), info.pivot.min(1), info.finite.all(1))
        trak.check(worst, example_ids=data.train.id)
        return {"residual": info.residual.max(), "smallest_pivot": info.pivot.min()}

    return Attribution(attribute, check, ("D3M", *(f"D3M, damping {damping:g}" for damping in dampings)))


def by_influence(options: influence.Options, *, rtol: float) -> Attribution:
    """Influence functions, one solve a group; ``rtol``: of the solver in ``options.inverse``, checked ten times wider.

    Source: Koh and Liang, 2017; `attribution.influence`.
    """

    def attribute(key, model: Model, variables, data: Data, num_groups: int):
        args = (key, model, variables, data.train, data.target, num_groups)
        return jax.tree.map(lambda a: a[None], influence.group_columns(*args, options=options))

    def check(info, data: Data) -> dict[str, Any]:
        iterative.check(info.residual, info.steps, rtol=10 * rtol)
        return {"residual": info.residual.max(), "steps": info.steps.max()}

    return Attribution(attribute, check)


def from_checkpoints(
    key: Key[Array, ""],
    model: Model,
    trainer: Trainer,
    data: Data,
    num_groups: int,
    num_steps: int,
    attribution: Attribution,
    *,
    checkpoints: int = 20,
    width: int = 1,
    mesh: Mesh | None = None,
) -> Columns:
    """Train ``checkpoints`` models on the whole training set and average the attribution of each to the target groups.

    Checkpoint c derives from ``fold_in(key, c)``. Each is trained and attributed on one device: one set of variables
    exists at a time and device (``width`` of them). Compiled once for one ``model``, ``trainer`` and ``attribution``.

    Raises:
      FloatingPointError: a training diverged, or gradients are not finite; names models, steps and examples.
    """
    mesh = mesh or local_mesh()
    keys = ensemble.model_keys(key, np.arange(checkpoints))
    statics = {"model": model, "trainer": trainer, "num_groups": num_groups, "num_steps": num_steps}
    results, losses = jax.device_get(
        _attributed(place(data, mesh), keys, attribution=attribution, width=width, mesh=mesh, **statics)
    )
    (kernel, factor, info), right = results
    ensemble.check_losses(losses, np.arange(checkpoints))
    facts = attribution.check(info, data)
    # Means over checkpoints are taken here: within the program devices would have to wait for each other.
    columns = jax.vmap(per_checkpoint.combine, 1)(jnp.asarray(kernel), jnp.asarray(factor))
    return Columns(np.asarray(columns), kernel[:, 0], right, facts)


def from_metagradients(
    key: Key[Array, ""],
    model: Model,
    trainer: Trainer,
    data: Data,
    num_groups: int,
    num_steps: int,
    *,
    checkpoints: int = 20,
    mesh: Mesh | None = None,
    options: metagradient.Options = metagradient.Options(),
) -> Columns:
    """Train as many models as `from_checkpoints`, from the same keys, and differentiate each training itself.

    One run backwards a model gives the columns of all groups. For a regression give options with
    `gradients.negative_squared_error_output`. Source: Ilyas and Engstrom, 2025; `attribution.metagradient`.

    Raises:
      ValueError: the trainer has no such derivative (`metagradient.check_trainer`).
      FloatingPointError: a training diverged, or adjoints are not finite; names models and steps.
    """
    metagradient.check_trainer(trainer, data.train)
    mesh = mesh or local_mesh()
    keys, _ = _keys_of(ensemble.model_keys(key, np.arange(checkpoints)))
    statics = {"model": model, "trainer": trainer, "num_groups": num_groups, "num_steps": num_steps}
    result = jax.device_get(_differentiated(place(data, mesh), keys, options=options, mesh=mesh, **statics))
    metagradient.check(result.info)
    return Columns(result.columns[None], result.kernel, None, {"drift": result.info.drift.max()})


@partial(jax.jit, static_argnames=("model", "trainer", "num_groups", "num_steps", "options", "mesh"))
def _differentiated(data: Data, keys, *, model, trainer, num_groups, num_steps, options, mesh):
    arrays = (data.train, data.target, num_groups, num_steps)
    return metagradient.group_scores(keys, model, trainer, *arrays, mesh=mesh, options=options)


def _keys_of(keys: Key[Array, "c"]) -> tuple[Key[Array, "c"], Key[Array, "c"]]:
    """Keys of the training of each checkpoint, and of its attribution."""
    return jax.vmap(lambda key: (jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)))(keys)


def add_checkpoints(
    sums: tuple[AnyArray, AnyArray] | None, kernel: Float[np.ndarray, "c r n k"], factor: Float[np.ndarray, "c r n"]
) -> tuple[Float[np.ndarray, "r n k"], Float[np.ndarray, "r n"]]:
    """Sums of kernels and factors over more checkpoints; ``sums`` of those before, None at first.

    Over their number the sums are the two means whose product are the columns, with one block of checkpoints in memory.
    """
    first, second = sums or (0, 0)
    return first + kernel.sum(0), second + factor.sum(0)


def covariances(kernel: Float[AnyArray, "c n k"], num_groupings: int) -> Float[np.ndarray, "c D G G"]:
    """Covariances over train examples of the columns of each grouping, ``k = D G``; 0 for an empty group.

    With group weights w the scores of a checkpoint have the variance ``w' C w``
    (`group_weighting.effective_number`).
    """
    known = np.nan_to_num(np.asarray(kernel)).reshape(*kernel.shape[:2], num_groupings, -1)
    centred = known - known.mean(1, keepdims=True)
    return np.einsum("cndg,cndh->cdgh", centred, centred, optimize=True) / kernel.shape[1]


@partial(jax.jit, static_argnames=("model", "trainer", "num_groups", "num_steps", "attribution", "width", "mesh"))
def _attributed(data: Data, keys, *, model, trainer, num_groups, num_steps, attribution, width, mesh):
    training_keys, attribution_keys = _keys_of(keys)

    def look(variables, data, key):
        columns = attribution.attribute(key, model, variables, data, num_groups)
        if is_regression(data.train.y):
            return columns, None
        return columns, outputs.hard_margins(model, variables, data.train, microbatch=4096) > 0

    return ensemble.train_many(
        trainer,
        training_keys,
        data.train,
        jnp.ones(data.train.y.shape[0]),
        num_steps,
        look=look,
        shared=(data,),
        each=(attribution_keys,),
        width=width,
        mesh=mesh,
    )


def from_datamodels(
    key: Key[Array, ""],
    model: Model,
    trainer: Trainer,
    data: Data,
    num_groups: int,
    bank: Bank,
    *,
    width: int = 1,
    mesh: Mesh | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Columns:
    """Datamodels of the mean output of every target group, fitted to ``bank.models`` trainings on random subsets.

    The output is the soft margin, of a regression minus half the squared error. ``trainer`` is meant for ``bank.steps``
    steps. Models see subsets alone, so the result has no checkpoints.
    Source: Ilyas et al., 2022; `attribution.datamodels`.
    """
    mesh, num_examples = mesh or local_mesh(), len(data.train.y)
    on_device = place(data, mesh)
    statics = {"model": model, "trainer": trainer, "num_groups": num_groups, "bank": bank}

    def run(ids):
        return _margins_of(on_device, key, ids, width=width, mesh=mesh, **statics)

    ids = np.arange(bank.models)
    margins = sweep(run, ids, block=bank.block, progress=progress)
    columns, facts = jax.device_get(_regress(key, ids, margins, bank=bank, num_examples=num_examples))
    return Columns(columns, None, None, facts)


def _subsets(key, ids: Int[Array, "m"], bank: Bank, num_examples: int):
    sizes = (int(bank.min_share * num_examples), int(bank.max_share * num_examples))
    return masks.mixed_sizes(jax.random.fold_in(key, 0), ids, num_examples, *sizes)


@partial(jax.jit, static_argnames=("model", "trainer", "num_groups", "bank", "width", "mesh"))
def _margins_of(data: Data, key, ids, *, model, trainer, num_groups, bank, width, mesh):
    def look(variables, target):
        of = outputs.negative_squared_errors if is_regression(target.y) else outputs.soft_margins
        margins = of(model, variables, target)
        return metrics.group_means(margins, target.group, num_groups)

    keys = ensemble.model_keys(jax.random.fold_in(key, 1), ids)
    subsets = _subsets(key, ids, bank, data.train.y.shape[0]).astype(jnp.float32)
    options = {"look": look, "shared": (data.target,), "width": width, "mesh": mesh}
    return ensemble.train_many(trainer, keys, data.train, subsets, bank.steps, **options)


@partial(jax.jit, static_argnames=("bank", "num_examples"))  # on one device, wherever the data lie
def _regress(key, ids, margins, *, bank: Bank, num_examples: int):
    subsets, heldout = _subsets(key, ids, bank, num_examples), jnp.arange(bank.models // 8)
    if bank.fit == "LASSO":
        # Few dense targets: the last digits of a path cost most of its time and change no sign.
        path = lasso.Options(num_lambdas=20, smallest=0.01, max_steps=200)
        linear, info = datamodels.fit_lasso(subsets, margins, heldout, options=path)
        return linear.weight.T[None], {"heldout_r2": info.r2, "support": info.support}
    lambdas = datamodels.default_lambdas(subsets)[4:]  # outputs of single models are never 95 % signal
    linear, info = datamodels.fit_ridge_few(subsets, margins, lambdas, heldout)
    return linear.weight.T[None], {"heldout_r2": info.r2, "lambda": info.chosen[0], "residual": info.residual}
