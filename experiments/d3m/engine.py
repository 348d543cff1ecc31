"""Compiled training of many models of one task, and the datamodel source of group columns: shared by experiments.

Programs copy the data that they are given to every device of their mesh; data that lie there, because the caller has
placed them once for many calls, are not copied again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from d3mjax import metrics
from d3mjax.attribution import datamodels, influence, inverses, outputs, per_checkpoint, projections, trak
from d3mjax.linalg import iterative, lasso
from d3mjax.runtime.hosts import models_at_once, place
from d3mjax.runtime.sweep import sweep
from d3mjax.training import ensemble, masks, sampling
from d3mjax.types import AnyArray, Data, Sampler, Split
from experiments.tasks import Task


class Evaluation(NamedTuple):
    """What one trained model is judged by; a leading model axis where there are many."""

    losses: Float[Array, "G"]  # mean cross-entropy of each target group, nats
    selection: Float[Array, "G"]  # group accuracies on the selection split
    test: Float[Array, "G"]  # group accuracies on the test split
    average: Float[Array, ""]  # accuracy on the test split


def evaluate(task: Task, variables: Any, data: Data) -> Evaluation:
    """What the task's network with these variables is judged by."""
    model, num_groups = task.network(), len(task.group_names)

    def right(split):
        return outputs.hard_margins(model, variables, split, microbatch=4096) > 0

    test = right(data.test)
    losses = outputs.losses(model, variables, data.target)
    return Evaluation(
        metrics.group_means(losses, data.target.group, num_groups),
        metrics.group_means(right(data.selection), data.selection.group, num_groups),
        metrics.group_means(test, data.test.group, num_groups),
        metrics.average_accuracy(test),
    )


def make_fit(task: Task, mesh: Mesh, sampler: Sampler, *, steps: int) -> Callable:
    """``fit(train, data, keys [m], weights [m n]) -> Evaluation`` with a leading model axis, compiled once a shape."""
    run = task.trainer(steps, sampler)

    @jax.jit
    def compiled(split: Split, data: Data, keys, weights):
        def one(split, data, key, weight):
            state, info = run.run(run.init(key, split.x[:1]), split, weight, steps)
            return evaluate(task, state.variables, data), info.loss

        return ensemble.map_models(one, width=models_at_once(), mesh=mesh, shared=(split, data))(keys, weights)

    def fit(split: Split, data: Data, keys: Key[Array, "m"], weights: Float[AnyArray, "m n"]) -> Evaluation:
        masks.check_weights(np.asarray(weights), split.y)
        split, data = place((split, data), mesh)
        evaluation, losses = jax.device_get(compiled(split, data, keys, jnp.asarray(weights, jnp.float32)))
        ensemble.check_losses(losses, np.arange(len(losses)))
        return evaluation

    return fit


class Bank(NamedTuple):
    """Datamodels as source: small subsets, trained for as many epochs as the full set, are cheap and say much."""

    models: int = 5000
    min_share: float = 0.1  # a subset keeps a share of the training set drawn uniformly between the two
    max_share: float = 0.2
    steps: int = 120
    block: int = 250
    fit: Literal["ridge", "LASSO"] = "ridge"


class Trak(NamedTuple):
    """TRAK as source: full trainings, and the projection of their gradients."""

    models: int = 20  # checkpoints
    size: int = 256  # projected dimension
    damping: float = 0.01  # of the mean eigenvalue
    microbatch: int = 20
    last_layer: bool = False  # attribute the last layer of the task's MLP alone, without projection


class Influence(NamedTuple):
    """Influence functions as source: full trainings, and one solve with the GGN a group."""

    models: int = 5  # checkpoints
    damping: float = 0.01
    rtol: float = 1e-3
    microbatch: int = 1000


SMOKE = {Influence: Influence(models=2), Bank: Bank(models=60, block=30, steps=20), Trak: Trak(models=2, size=32)}


class Checkpoints(NamedTuple):
    """What the single checkpoints behind group columns say, before they are averaged."""

    kernel: Float[AnyArray, "c n G"]
    right: Bool[AnyArray, "c n"]  # whether a train example is classified as its label says


class Programs(NamedTuple):
    """All that a task compiles: ordinary training, training on resampled examples, and the source of group columns."""

    fit: Callable
    resample: Callable
    columns: Callable


def make_programs(
    task: Task, mesh: Mesh, source: Bank | Trak | Influence, *, others: tuple[float, ...] = ()
) -> Programs:
    """Compiled once, used for every seed; ``others``: dampings for which TRAK gives columns beside those of its own."""
    fit = make_fit(task, mesh, sampling.shuffled(), steps=task.steps)
    resample = make_fit(task, mesh, sampling.resampled(), steps=task.steps)
    match source:
        case Trak():
            columns = make_trak_columns(task, mesh, source, (source.damping, *others))
        case Influence():
            columns = make_influence_columns(task, mesh, source)
        case Bank():
            columns = make_datamodel_columns(task, mesh, source)
    return Programs(fit, resample, columns)


def trak_options(task: Task, source: Trak) -> trak.Options:
    """`trak.Options` of a source."""
    options = trak.Options(projections.sjlt(source.size), source.damping, source.microbatch)
    if not source.last_layer:
        return options
    last = f"Dense_{len(task.hidden)}"
    return options._replace(projection=projections.identity(), keep=lambda path: last in path)


def make_trak_columns(task: Task, mesh: Mesh, source: Trak, dampings: tuple[float, ...]) -> Callable:
    """`make_checkpoint_columns` by TRAK; the dampings share everything but the solve and the pass along its result."""

    def attribute(key, variables, data: Data):
        place = (key, task.network(), variables, data.train, data.target, len(task.group_names))
        options = trak_options(task, source)
        damped = lambda damping: trak.group_columns(*place, options=options._replace(damping=damping))
        return jax.vmap(damped)(jnp.array(dampings))

    def check(info, data: Data) -> dict[str, Any]:
        worst = trak.Info(info.residual.max(1), info.pivot.min(1), info.finite.all(1))
        trak.check(worst, example_ids=data.train.id)
        return {"residual": info.residual.max(), "smallest_pivot": info.pivot.min()}

    return make_checkpoint_columns(task, mesh, source.models, attribute, check)


def make_influence_columns(task: Task, mesh: Mesh, source: Influence) -> Callable:
    """`make_checkpoint_columns` by influence functions."""
    attribute = lambda *place: jax.tree.map(lambda a: a[None], influence_columns(task, source, *place))

    def check(info, data: Data) -> dict[str, Any]:
        iterative.check(info.residual, info.steps, rtol=10 * source.rtol)
        return {"residual": info.residual.max(), "steps": info.steps.max()}

    return make_checkpoint_columns(task, mesh, source.models, attribute, check)


def influence_columns(task: Task, source: Influence, key, variables, data: Data):
    """Columns ``[n G]`` of one checkpoint, a factor of 1, and the diagnostics of the solves."""
    options = influence.Options(
        damping=source.damping, microbatch=source.microbatch, inverse=inverses.by_cg(rtol=source.rtol)
    )
    place = (key, task.network(), variables, data.train, data.target, len(task.group_names))
    return influence.group_columns(*place, options=options)


def make_checkpoint_columns(task: Task, mesh: Mesh, count: int, attribute: Callable, check: Callable) -> Callable:
    """``columns(data, key, progress) -> (B [r n G], facts, Checkpoints)``, each trained and attributed on one device.

    ``attribute(key, variables, data) -> (kernel [r n G], factor [r n], info)``, r readings of one checkpoint;
    ``check(info, data)`` gives the facts. `Checkpoints` hold the first reading.
    """
    model, run = task.network(), task.trainer(task.steps, sampling.shuffled())

    @jax.jit
    def attributed(data: Data, keys):
        def one(data, key):
            state = run.init(jax.random.fold_in(key, 0), data.train.x[:1])
            state, info = run.run(state, data.train, jnp.ones(data.train.y.shape[0]), task.steps)
            columns = attribute(jax.random.fold_in(key, 1), state.variables, data)
            right = outputs.hard_margins(model, state.variables, data.train, microbatch=4096) > 0
            return columns, right, info.loss

        return ensemble.map_models(one, width=models_at_once(), mesh=mesh, shared=(data,))(keys)

    def columns(data: Data, key, progress: Callable[[int], object]):
        found = jax.device_get(attributed(place(data, mesh), ensemble.model_keys(key, jnp.arange(count))))
        (kernel, factor, info), right, losses = found
        ensemble.check_losses(losses, np.arange(count))
        facts = check(info, data)
        progress(count)
        # Means over checkpoints are taken here: within the program devices would have to wait for each other.
        b = jax.vmap(per_checkpoint.combine, 1)(jnp.asarray(kernel), jnp.asarray(factor))
        return np.asarray(b), facts, Checkpoints(kernel[:, 0], right)

    return columns


def make_datamodel_columns(task: Task, mesh: Mesh, bank: Bank) -> Callable:
    """``columns(data, key, progress) -> (B [1 n G], facts, None)`` from datamodels of group means of soft margins.

    None of its models has seen all examples: there are no checkpoints to look at.
    """
    model, run = task.network(), task.trainer(bank.steps, sampling.shuffled())
    num_groups = len(task.group_names)

    def subsets(key, ids: Int[Array, "m"], num_examples: int):
        keep = (int(bank.min_share * num_examples), int(bank.max_share * num_examples))
        return masks.mixed_sizes(jax.random.fold_in(key, 0), ids, num_examples, *keep)

    @jax.jit
    def outputs_of(data: Data, key, ids):
        def one(data, model_key, mask):
            state, info = run.run(
                run.init(model_key, data.train.x[:1]), data.train, mask.astype(jnp.float32), bank.steps
            )
            margins = outputs.soft_margins(model, state.variables, data.target)
            return metrics.group_means(margins, data.target.group, num_groups), info.loss

        keys, chosen = ensemble.model_keys(jax.random.fold_in(key, 1), ids), subsets(key, ids, data.train.y.shape[0])
        return ensemble.map_models(one, width=models_at_once(), mesh=mesh, shared=(data,))(keys, chosen)

    @partial(jax.jit, static_argnames="num_examples")  # on one device, wherever the data lie
    def regress(key, ids, margins, num_examples: int):
        subset = subsets(key, ids, num_examples)
        heldout = jnp.arange(bank.models // 8)
        if bank.fit == "LASSO":
            # Few dense targets: the last digits of a path cost most of its time and change no sign.
            options = lasso.Options(num_lambdas=20, smallest=0.01, max_steps=200)
            linear, info = datamodels.fit_lasso(subset, margins, heldout, options=options)
            return linear.weight.T[None], {"heldout_r2": info.r2, "support": info.support}
        lambdas = datamodels.default_lambdas(subset)[4:]  # outputs of single models are never 95 % signal
        linear, info = datamodels.fit_ridge_few(subset, margins, lambdas, heldout)
        return linear.weight.T[None], {"heldout_r2": info.r2, "lambda": info.chosen[0], "residual": info.residual}

    def columns(data: Data, key, progress: Callable[[int], object]):
        here, ids = place(data, mesh), np.arange(bank.models)
        margins = sweep(lambda part: outputs_of(here, key, part), ids, block=bank.block, progress=progress)
        return *jax.device_get(regress(key, ids, margins, num_examples=len(data.train.y))), None

    return columns
