"""Metagradients: the exact derivative of what a training ends at by what each training example weighs in it.

With factors e of the examples' losses, batches and denominators fixed (`replay`),

    tau[z, i] = d f(z; theta_S(e)) / d e_i  at e = 1        positive: including i raises f(z)

so leaving i out of the same run changes f by about ``-tau``, and a set R by ``-sum_{i in R} tau``. Where examples have
weights w, a factor multiplies a weight: ``tau_i = w_i d f / d w_i``; an example that no batch holds has 0.

One run has one derivative; that of another initialisation and order differs, and the mean over several keys predicts
what retraining from fresh keys does. Unlike `trak` and `influence`, which start from checkpoints, these functions take
the trainer and the keys of its models. Any Optax transformation works whose updates are differentiable
(`check_trainer`), and any model; the statistics of batch norm are part of the run, and an example with factor 0 still
counts in them.

`derivatives` takes any functions of the trained variables, `along` goes forward along directions of factors, `rerun`
trains under other factors, and `metasmoothness` measures whether the derivative holds for more than small changes.
Sources: Ilyas and Engstrom, "MAGIC: near-optimal data attribution for deep learning", 2025; Engstrom et al.,
"Optimizing ML training with metagradient descent", 2025.
"""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key, PyTree

from d3mjax.attribution import gradients, per_checkpoint, replay
from d3mjax.attribution.per_checkpoint import CheckpointColumns, GroupScores, Scores
from d3mjax.training.ensemble import check_losses, map_models
from d3mjax.types import AnyArray, Model, Split, Trainer, checked_names


@checked_names
class Options(NamedTuple):
    """Options of `scores`, `group_scores`, `group_columns` and `derivatives`.

    target_output: makes an output function from ``(model, variables)`` (`gradients`).
    segments: of the training, whose states are computed again one segment at a time; 1 keeps all states, None takes 1
      where they fit ``memory``, else the root of the number of steps, which needs fewest.
    memory: bytes of the states of one run, and of the adjoints that are pulled at a time.
    width: targets or groups whose adjoints are pulled through a step at a time; None for what fits ``memory``.
    microbatch: target examples at a time; None for `microbatches.default_microbatch`.

    All but the first change memory and speed only.
    """

    target_output: Callable = gradients.margin_output
    segments: int | None = None
    memory: int = 2**30
    width: int | None = None
    microbatch: int | None = None


class Info(NamedTuple):
    """Diagnostics of a run, one row a model; `check` judges them."""

    losses: jax.Array  # Float[*c s], of the training
    finite: jax.Array  # Bool[*c s], whether the adjoints after each step are finite
    drift: jax.Array  # Float[*c s], at the ends of segments: relative distance of the state computed again; else 0


def scores(
    keys: Key[Array, "c"],
    model: Model,
    trainer: Trainer,
    train: Split,
    target: Split,
    num_steps: int,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    mesh: Mesh | None = None,
    options: Options = Options(),
) -> Scores:
    """Metagradients ``tau[t, n]``, averaged over the trainings of ``keys``, in units of the output.

    Each model is trained once on ``train`` under ``weights`` (1 unless given), and the adjoints of all targets are
    pulled back through it together. The devices of ``mesh`` share the targets. Memory: tau, the states, and
    ``t`` adjoints as large as a state.

    Raises:
      ValueError: ``weights`` or ``options.segments`` do not fit, or the trainer has no such derivative
        (`check_trainer`). Values that are not finite are left to `check`.

    >>> import jax, optax, d3mjax
    >>> data, model = d3mjax.planted_shortcut(0, train=60, target=24), d3mjax.mlp((8,), 2)
    >>> trainer = d3mjax.make_trainer(
    ...     model, d3mjax.cross_entropy(), optax.sgd(0.1, momentum=0.9), d3mjax.shuffled(), batch_size=20
    ... )
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> tau, info = d3mjax.metagradient.scores(keys, model, trainer, data.train, data.target, num_steps=30)
    >>> tau.shape, info.losses.shape
    ((24, 60), (2, 30))
    >>> d3mjax.metagradient.check(info)
    """
    train, target, weights = _checked(keys, trainer, train, target, num_steps, weights, options)
    count = len(target.y)
    devices = 1 if mesh is None else mesh.shape[mesh.axis_names[0]]
    rows = np.minimum(np.arange(-(-count // devices) * devices), count - 1).reshape(devices, -1)

    def share(train, target, weights, keys, rows):
        part = jax.tree.map(lambda a: a[rows], target)

        def one(key, _):
            def grads(variables):
                output = _output(options.target_output, model)
                return gradients.per_example(output, variables, part, microbatch=options.microbatch)

            return derivatives(key, trainer, train, num_steps, grads, weights=weights, options=options)

        return per_checkpoint.mean_over_checkpoints(one, keys, keys)

    shared = (train, target, weights, keys)
    tau, info = map_models(share, width=1, mesh=mesh, shared=shared)(jnp.asarray(rows))
    info = Info(info.losses[0], info.finite.all(0), info.drift.max(0))
    return Scores(tau.reshape(-1, tau.shape[-1])[:count], info)


def group_scores(
    keys: Key[Array, "c"],
    model: Model,
    trainer: Trainer,
    train: Split,
    target: Split,
    num_groups: int,
    num_steps: int,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    mesh: Mesh | None = None,
    options: Options = Options(),
) -> GroupScores:
    """Group columns ``B[n, G]``: mean metagradient of the targets of each group, averaged over trainings.

    One training and G adjoints a key; the matrix of single targets never exists. The devices of ``mesh`` share the
    keys. Targets of group -1 are left out; the factor is 1. Arguments and errors as of `scores`, and ValueError if no
    target has a group, or one is beyond ``num_groups``.

    >>> import jax, optax, d3mjax
    >>> data, model = d3mjax.planted_shortcut(0, train=60, target=24), d3mjax.mlp((8,), 2)
    >>> trainer = d3mjax.make_trainer(
    ...     model, d3mjax.cross_entropy(), optax.sgd(0.1, momentum=0.9), d3mjax.shuffled(), batch_size=20
    ... )
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> result = d3mjax.metagradient.group_scores(keys, model, trainer, data.train, data.target, 4, num_steps=30)
    >>> result.columns.shape, result.kernel.shape
    ((60, 4), (2, 60, 4))
    """
    per_checkpoint.check_groups(target.group, num_groups)
    train, target, weights = _checked(keys, trainer, train, target, num_steps, weights, options)

    def one(train, target, weights, key):
        arrays = (train, target, num_groups, num_steps)
        return group_columns(key, model, trainer, *arrays, weights=weights, options=options)

    kernel, factor, info = map_models(one, width=1, mesh=mesh, shared=(train, target, weights))(keys)
    return GroupScores(per_checkpoint.combine(kernel, factor), kernel, factor, info)


def group_columns(
    key: Key[Array, ""],
    model: Model,
    trainer: Trainer,
    train: Split,
    target: Split,
    num_groups: int,
    num_steps: int,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    options: Options = Options(),
) -> CheckpointColumns:
    """Group columns of the training of one key: the unit of work of `group_scores`, not checked."""
    mix, size = per_checkpoint.group_mix(target.group, num_groups)

    def grads(variables):
        output = _output(options.target_output, model)
        return gradients.weighted_gradients(output, variables, mix, target, microbatch=options.microbatch)

    rows, info = derivatives(key, trainer, train, num_steps, grads, weights=weights, options=options)
    columns = jnp.where((size > 0)[None], rows.T, jnp.nan)
    return CheckpointColumns(columns, jnp.ones(columns.shape[0], columns.dtype), info)


def derivatives(
    key: Key[Array, ""],
    trainer: Trainer,
    train: Split,
    num_steps: int,
    grads: Callable[[Any], PyTree[Float[Array, "k ..."]]],
    *,
    weights: Float[AnyArray, "n"] | None = None,
    options: Options = Options(),
) -> tuple[Float[Array, "k n"], Info]:
    """Derivatives of any k functions of the trained variables, such as minus a counterfactual bias, not checked.

    ``grads(variables)``: gradients of the functions, a tree of the variables with a leading axis k, such as
    ``jax.jacrev(function)`` of a function with k values.
    """
    train, weights = per_checkpoint.as_arrays(train), per_checkpoint.weights_of(train, weights)
    state = trainer.init(key, jax.tree.map(lambda a: a[:1], train.x))
    draws = trainer.draw(state, weights, num_steps)
    count = jax.tree.leaves(jax.eval_shape(grads, state.variables))[0].shape[0]
    size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves((state.variables, state.opt_state)))
    segments = segments_of(num_steps, size, options)
    width = options.width or max(1, min(count, options.memory // (8 * size)))
    replayed = replay.reverse(trainer, state, train, draws, grads, segments=segments, width=width)
    return replayed.derivatives, Info(replayed.losses, replayed.finite, replayed.drift)


def segments_of(num_steps: int, size: int, options: Options) -> int:
    """Segments of a training whose states take ``size`` bytes each."""
    if options.segments is not None:
        return options.segments
    return 1 if num_steps * size <= options.memory else math.isqrt(num_steps)


def check_segments(options: Options, num_steps: int) -> None:
    """Raise ValueError unless there is a step or more for each segment."""
    if options.segments is not None and not 1 <= options.segments <= num_steps:
        raise ValueError(f"options.segments: found {options.segments}, expected 1 to {num_steps}, the number of steps")


def along(
    key: Key[Array, ""],
    trainer: Trainer,
    train: Split,
    num_steps: int,
    directions: Float[AnyArray, "k n"],
    look: Callable[[Any], PyTree[Array]],
    *,
    weights: Float[AnyArray, "n"] | None = None,
) -> tuple[PyTree[Array], PyTree[Array]]:
    """``look`` of the trained variables, and its derivatives along k directions of the factors, in forward mode.

    A direction -1 on a set R and 0 elsewhere gives what the removal of R does to every output of ``look``, to first
    order. No state is kept: memory is that of k + 1 trainings side by side. Second: leading axis k.

    >>> import jax, jax.numpy as jnp, numpy as np, optax, d3mjax
    >>> data, model = d3mjax.planted_shortcut(0, train=60, target=24), d3mjax.mlp((8,), 2)
    >>> trainer = d3mjax.make_trainer(
    ...     model, d3mjax.cross_entropy(), optax.sgd(0.1), d3mjax.shuffled(), batch_size=20
    ... )
    >>> margins = lambda variables: d3mjax.outputs.soft_margins(model, variables, data.target)
    >>> removal = -np.eye(60, dtype=np.float32)[:3]  # of each of the first three examples
    >>> values, changes = d3mjax.metagradient.along(jax.random.key(0), trainer, data.train, 30, removal, margins)
    >>> values.shape, changes.shape
    ((24,), (3, 24))
    """
    ones = jnp.ones_like(per_checkpoint.weights_of(train, weights))
    run = lambda factors: look(rerun(key, trainer, train, num_steps, factors, weights=weights))
    push = lambda direction: jax.jvp(run, (ones,), (direction.astype(ones.dtype),))
    return jax.vmap(push, out_axes=(None, 0))(jnp.asarray(directions))


def rerun(
    key: Key[Array, ""],
    trainer: Trainer,
    train: Split,
    num_steps: int,
    factors: Float[AnyArray, "n"],
    *,
    weights: Float[AnyArray, "n"] | None = None,
) -> Any:
    """The trained variables of the run of ``key`` with the loss of each example times its factor.

    Batches and denominators are those of the run itself: a factor of 0 leaves an example out of it, which is what
    metagradients predict, and not a training on the others from the start.
    """
    train, weights = per_checkpoint.as_arrays(train), per_checkpoint.weights_of(train, weights)
    state = trainer.init(key, jax.tree.map(lambda a: a[:1], train.x))
    index, weight = trainer.draw(state, weights, num_steps)
    draws = index, weight * jnp.take(jnp.asarray(factors), index, mode="clip")
    return replay.forward(trainer, state, train, draws)[0].variables


def metasmoothness(
    key: Key[Array, ""],
    trainer: Trainer,
    train: Split,
    num_steps: int,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    size: float = 0.1,
) -> Float[Array, ""]:
    """Whether parameters go on in the direction in which a change of the weights sets out: from -1 to 1, 1 is smooth.

    With theta_0, theta_h, theta_2h trained under factors 1, 1 + h v and 1 + 2 h v, v standard normal and h ``size``,
    ``sum_j d_j sign((theta_h - theta_0)_j (theta_2h - theta_h)_j) / sum_j d_j`` with d = |theta_2h - theta_0|. Low
    values mean that metagradients predict little: try larger batches, a smooth activation, a smaller rate, clipping.
    Three trainings. Source: Engstrom et al., 2025, definition 2.
    """
    weights = per_checkpoint.weights_of(train, weights)
    key_of_run, key_of_direction = jax.random.split(key)
    direction = jax.random.normal(key_of_direction, weights.shape, weights.dtype)

    def params(distance):
        last = rerun(key_of_run, trainer, train, num_steps, 1 + distance * direction, weights=weights)
        return ravel_pytree(last["params"])[0]

    start, middle, end = jax.lax.map(params, size * jnp.arange(3.0, dtype=weights.dtype))
    moved = jnp.abs(end - start)
    return (moved * jnp.sign(middle - start) * jnp.sign(end - middle)).sum() / moved.sum()


def check(info: Info) -> None:
    """Judge a finished run on the host.

    Raises:
      FloatingPointError: a training diverged, or adjoints are not finite; names models and steps.
      ValueError: a segment computed again ends elsewhere than the run did: the trainer does not repeat itself.
    """
    losses, finite, drift = np.atleast_2d(info.losses), np.atleast_2d(info.finite), np.atleast_2d(info.drift)
    check_losses(losses, np.arange(len(losses)))
    for model, row in enumerate(finite):
        if not row.all():
            raise FloatingPointError(
                f"model {model}: the derivative by the state after step {np.flatnonzero(~row).max()} is not finite, "
                "those after later steps are: lower the learning rate, or take smooth activations"
            )
    # Programs may round differently, which training magnifies; a trainer that draws anew ends somewhere else.
    if (drift > 0.01).any():
        model, step = np.argwhere(drift > 0.01)[0]
        raise ValueError(
            f"trainer: model {model} computed again differs after step {step} by {drift[model, step]:.1e} of its "
            "largest parameter; expected a training that depends on its key alone"
        )
    if (drift > 1e-4).any():
        warnings.warn(f"segments computed again differ by up to {drift.max():.1e}", RuntimeWarning, stacklevel=2)


def check_trainer(trainer: Trainer, train: Split) -> None:
    """Raise unless the steps of ``trainer`` have derivatives, also where the gradient is zero.

    Raises:
      ValueError: an objective with a state, such as GroupDRO, which stops gradients; variables that are integers; a
        counter of the optimiser that depends on gradients; an update that is not differentiable at zero, such as
        Adam's without ``eps_root``.
    """
    first = jax.tree.map(lambda a: jnp.asarray(a[:1]), train)
    state = trainer.init(jax.random.key(0), first.x)
    if jax.tree.leaves(state.objective_state):
        raise ValueError("trainer: found an objective with a state, which stops gradients; expected one without")
    for path, leaf in jax.tree.leaves_with_path(state.variables):
        if not replay.is_float(leaf):
            raise ValueError(f"variables: found {leaf.dtype} in {jax.tree_util.keystr(path)}, expected floats")
    slopes, counters, others = jax.jit(partial(_probed, trainer))(state, first)
    for (path, counter), other in zip(jax.tree.leaves_with_path(counters), jax.tree.leaves(others), strict=True):
        if not np.array_equal(counter, other):
            raise ValueError(
                f"trainer: {jax.tree_util.keystr(path)} of the optimiser state depends on gradients and is "
                f"{counter.dtype}: its update has no derivative"
            )
    for path, slope in jax.tree.leaves_with_path(slopes):
        if not np.isfinite(slope).all():
            raise ValueError(
                f"trainer: the derivative of an update at gradient 0 is not finite, at {jax.tree_util.keystr(path)}: "
                "give Adam eps_root, such as optax.adam(rate, eps_root=1e-8)"
            )


def _probed(trainer: Trainer, state, first: Split):
    """Derivatives of one step by its factor at weight 0, and the optimiser's counters after steps of weight 0 and 1."""
    index = jnp.zeros(1, jnp.int32)
    after = lambda weight: trainer.step(state, first, index, weight)[0]
    floats = lambda weight: (after(weight).variables["params"], [a for a in leaves(weight) if replay.is_float(a)])
    leaves = lambda weight: jax.tree.leaves(after(weight).opt_state)
    dtype = jax.tree.leaves(state.variables)[0].dtype
    zero, one = jnp.zeros(1, dtype), jnp.ones(1, dtype)
    counters = lambda weight: jax.tree.map(lambda a: None if replay.is_float(a) else a, after(weight).opt_state)
    return jax.jvp(floats, (zero,), (one,))[1][0], counters(zero), counters(one)


def _output(make: Callable, model: Model):
    """An output of ``(variables, example)``: the statistics of a model are functions of its training, too."""
    return lambda variables, example: make(model, variables)(variables["params"], example)


def _checked(keys, trainer, train, target, num_steps, weights, options):
    """Arrays, and checks of what is known before tracing."""
    check_segments(options, num_steps)
    if weights is not None and len(weights) != len(train.y):
        raise ValueError(f"weights: found {len(weights)}, expected one for each of {len(train.y)} train examples")
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((train, target, keys))):
        check_trainer(trainer, train)
    train, target = map(per_checkpoint.as_arrays, (train, target))
    return train, target, per_checkpoint.weights_of(train, weights)
