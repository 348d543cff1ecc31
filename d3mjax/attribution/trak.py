"""TRAK: attribution by one Newton step of a linearised model on projected gradients, averaged over checkpoints.

For checkpoint a, output f with gradient g, projection P_a, and example weights w (all ones unless given):

    phi_a(z) = P_a' g_a(z)        K_a = Phi_a' diag(w) Phi_a + damping * trace(Phi_a' diag(w) Phi_a) / p * I
    q_a(i)   = 1 - p(y_i | x_i; theta_a)
    tau[z,i] = [ mean_a phi_a(z)' K_a^-1 phi_a(i) ] * [ mean_a q_a(i) ]          positive: including i raises f(z)

tau is in units of f, the predicted change when example i enters with weight one. As K counts every example, it falls as
1/n. The kernel ``phi' K^-1 phi`` does not change with the scale of gradients, so checkpoints need no normalisation.

`group_scores` gives the mean of tau over each group of targets without ever forming it. With ``u_g`` the projected
gradient of the group's mean output, one reverse pass, and ``v_g = P_a K_a^-1 u_g`` in parameter space,

    mean over g of phi_a(z)' K_a^-1 phi_a(i)  =  g_a(i)' v_g  =  d/de f(i; theta_a + e v_g) at e = 0,

one forward-mode pass over the training set: neither features nor gradients are stored, and only K_a needs gradients of
single examples. `scores` keeps the features of one checkpoint at a time and forms tau.

Everything is pure and can be jitted and mapped; `check` judges *values* on the host.
Source: Park, Georgiev, Ilyas, Leclerc, Madry, "TRAK: Attributing Model Behavior at Scale", ICML 2023.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from d3mjax.attribution import dense_gradients, gradients, per_checkpoint
from d3mjax.attribution.microbatches import default_microbatch, map_microbatches, scan_microbatches
from d3mjax.attribution.per_checkpoint import CheckpointColumns, GroupScores, Scores
from d3mjax.attribution.projections import MakeProjection, default_size, sjlt
from d3mjax.linalg.products import dot
from d3mjax.types import AnyArray, Model, Split, checked_names


@checked_names
class Options(NamedTuple):
    """Options of `scores`, `group_scores`, `group_columns` and `self_influence`.

    projection: of gradients to p numbers (`projections`); None for ``sjlt(min(256, default_size(n)))``.
    damping: ridge relative to the mean eigenvalue of the Gram matrix; .1 is safe and near the best for predicting
      retraining, .01 was better for the sign of D3M's scores; above 1 scores tend to gradient dot products, 0 needs n
      far above p.
    microbatch: examples at a time; None for `microbatches.default_microbatch`. Memory and speed only.
    keep: parameters that are attributed, by path (`gradients.subset`); None for all.
    output: makes an output function from ``(model, variables)`` (`gradients`).
    target_output: the same for targets, if different, such as `gradients.negative_loss_output`.
    factor: train-side factor q from ``(values [n], examples)``.
    factor_inside: mean over checkpoints of kernel times q, instead of two means; parity only.
    curvature: weight of an example in K beside its own, from the arguments of ``factor``; None for 1, as published.
      `gradients.logistic_curvature` makes K the Hessian of the linearised problem, whose Newton step TRAK simplifies:
      it predicts retraining much better, and chooses examples for D3M worse (study ``lds_trak``).
    library_scale: divide each ``K_a^-1`` by its mean absolute entry, as the authors' library does; parity only, as it
      weighs checkpoints by their squared gradient scale.
    """

    projection: MakeProjection | None = None
    damping: Any = 0.1
    microbatch: int | None = None
    keep: Callable[[str], bool] | None = None
    output: Callable = gradients.margin_output
    target_output: Callable | None = None
    factor: Callable = gradients.logistic_factor
    factor_inside: bool = False
    curvature: Callable | None = None
    library_scale: bool = False


class Info(NamedTuple):
    """Diagnostics of a run, one row a checkpoint; `check` judges them."""

    residual: jax.Array  # Float[*c], largest relative residual ||K x - u|| / ||u|| of the solves
    pivot: jax.Array  # Float[*c], smallest over largest squared pivot of the Cholesky factor of K; NaN: not definite
    finite: jax.Array  # Bool[*c n], whether the projected gradient of each train example is finite


def group_scores(
    key: Key[Array, ""],
    model: Model,
    checkpoints: PyTree,
    train: Split,
    target: Split,
    num_groups: int,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    ids: Int[AnyArray, "c"] | None = None,
    options: Options = Options(),
) -> GroupScores:
    """Group columns ``B[n, G]``: mean attribution of every train example to the targets of each group.

    The matrix of single targets never exists. ``checkpoints`` are variables with a leading axis ``c``
    (`per_checkpoint.stack_checkpoints`); number a is projected under ``fold_in(key, ids[a])``, ids being 0..c-1 unless
    given. ``weights`` are those the checkpoints were trained under: examples of weight 0 stay out of K and are scored
    all the same. Targets of group -1 are left out. Memory: ``c n G`` numbers, K, some p features, and the gradients of
    a microbatch.

    Raises:
      ValueError: no target has a group, or one is beyond ``num_groups``; leading axes of checkpoints differ; the
        projection is as wide as n and damping is 0. Values that are not finite and a singular K are left to `check`.

    >>> import jax
    >>> import d3mjax
    >>> data = d3mjax.planted_shortcut(0, train=60, target=24)
    >>> model = d3mjax.linear(2)
    >>> init = jax.vmap(lambda key: model.init(key, data.train.x[:1]))
    >>> checkpoints = init(jax.random.split(jax.random.key(0), 3))  # in practice: trained
    >>> result = d3mjax.trak.group_scores(jax.random.key(1), model, checkpoints, data.train, data.target, 4)
    >>> result.columns.shape, result.kernel.shape
    ((60, 4), (3, 60, 4))
    >>> d3mjax.trak.check(result.info)
    """
    per_checkpoint.check_groups(target.group, num_groups)
    one = lambda key, variables: group_columns(
        key, model, variables, train, target, num_groups, weights=weights, options=options
    )
    return per_checkpoint.group_scores(one, per_checkpoint.checkpoint_keys(key, checkpoints, ids=ids), checkpoints)


def group_columns(
    key: Key[Array, ""],
    model: Model,
    variables: PyTree,
    train: Split,
    target: Split,
    num_groups: int,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    options: Options = Options(),
    reduce: Callable[[PyTree], PyTree] = lambda tree: tree,
    shares: int = 1,
) -> CheckpointColumns:
    """Group columns of one checkpoint under its own key: the unit of work of `group_scores`.

    ``target.group`` may be ``[t D]``, D groupings of the targets, whose columns ``[n D*G]`` follow each other: targets
    and train examples are then visited once for all. Projections that take factors of gradients need no reverse and
    forward pass a group: the train examples are projected twice instead.

    ``reduce`` sums over devices, ``shares`` of them, each with as many train examples (`runtime.sharded`).
    """
    train, target = map(per_checkpoint.as_arrays, (train, target))
    weights = per_checkpoint.weights_of(train, weights)
    o, output, target_output, params = _prepared(options, model, variables, train)
    num_train = len(train.y) * shares
    projection = _projection(o, num_train)(key, params)

    mix, size = per_checkpoint.group_mix(target.group, num_groups)
    if projection.factored:
        target_phi = dot(mix.T, _features(o, target_output, params, projection, target)[1])
    else:
        directions = gradients.weighted_gradients(target_output, params, mix, target, microbatch=o.microbatch)
        target_phi = projection.project(directions)

    def add(gram, part, valid):
        rows, weight = part
        values, phi = _features(o, output, params, projection, rows)
        return gram + _gram(phi, jnp.where(valid, _curved(o, weight, values, rows), 0)), jnp.isfinite(phi).all(-1)

    p = target_phi.shape[1]
    # K is touched once for p rows or more, however few gradients fit into a microbatch: an update costs p * p.
    assert o.microbatch is not None  # `_prepared` has set it
    slab = o.microbatch * -(-p // o.microbatch)
    gram = jnp.zeros((p, p), target_phi.dtype)
    gram, finite = scan_microbatches(add, gram, (train, weights), microbatch=slab)
    solution, info = _solve(o, reduce(gram), target_phi, finite, num_train)
    if projection.factored:

        def rows(part):
            values, phi = _features(o, output, params, projection, part)
            return values, dot(phi, solution.T)

        values, kernel = map_microbatches(rows, train, microbatch=slab)
    else:
        tangents = jax.tree.map(lambda v, p: v.astype(p.dtype), projection.unproject(solution), params)
        values, kernel = gradients.jvp(output, params, tangents, train, microbatch=o.microbatch)
    kernel = jnp.where((size > 0)[None, :], kernel, jnp.nan).astype(gram.dtype)
    return CheckpointColumns(*_with_factor(o, kernel, values, train), info)


def scores(
    key: Key[Array, ""],
    model: Model,
    checkpoints: PyTree,
    train: Split,
    target: Split,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    ids: Int[AnyArray, "c"] | None = None,
    options: Options = Options(),
) -> Scores:
    """Attribution ``tau[t, n]`` of every train example to every target, in units of the output.

    Arguments and errors as of `group_scores`. Memory: tau, ``(n + t) p`` features, and K.

    >>> import jax
    >>> import d3mjax
    >>> data = d3mjax.planted_shortcut(0, train=60, target=24)
    >>> model = d3mjax.linear(2)
    >>> init = jax.vmap(lambda key: model.init(key, data.train.x[:1]))
    >>> checkpoints = init(jax.random.split(jax.random.key(0), 3))  # in practice: trained
    >>> options = d3mjax.trak.Options(damping=0.01)
    >>> tau, info = d3mjax.trak.scores(
    ...     jax.random.key(1), model, checkpoints, data.train, data.target, options=options
    ... )
    >>> tau.shape, info.residual.shape
    ((24, 60), (3,))
    """
    train, target = map(per_checkpoint.as_arrays, (train, target))
    weights = per_checkpoint.weights_of(train, weights)

    def one(key, variables):
        o, output, target_output, params = _prepared(options, model, variables, train)
        projection = _projection(o, len(train.y))(key, params)
        values, phi = _features(o, output, params, projection, train)
        _, target_phi = _features(o, target_output, params, projection, target)
        gram = _gram(phi, _curved(o, weights, values, train))
        solution, info = _solve(o, gram, target_phi, jnp.isfinite(phi).all(-1), len(train.y))
        return _with_factor(o, dot(solution, phi.T), values, train, axis=0), info

    keys = per_checkpoint.checkpoint_keys(key, checkpoints, ids=ids)
    (kernel, factor), info = per_checkpoint.mean_over_checkpoints(one, keys, checkpoints)
    return Scores(kernel * factor[None, :], info)


def self_influence(
    key: Key[Array, ""],
    model: Model,
    checkpoints: PyTree,
    train: Split,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    ids: Int[AnyArray, "c"] | None = None,
    options: Options = Options(),
) -> tuple[Float[Array, "n"], Info]:
    """``tau[i, i]`` of every train example, its support of itself: large for the memorised and the mislabelled.

    Arguments and errors as of `group_scores`.
    """
    train, weights = per_checkpoint.as_arrays(train), per_checkpoint.weights_of(train, weights)

    def one(key, variables):
        o, output, _, params = _prepared(options, model, variables, train)
        values, phi = _features(o, output, params, _projection(o, len(train.y))(key, params), train)
        gram = _gram(phi, _curved(o, weights, values, train))
        solution, info = _solve(o, gram, phi, jnp.isfinite(phi).all(-1), len(train.y))
        kernel, factor = _with_factor(o, (solution * phi).sum(-1)[:, None], values, train)
        return (kernel[:, 0], factor), info

    keys = per_checkpoint.checkpoint_keys(key, checkpoints, ids=ids)
    (kernel, factor), info = per_checkpoint.mean_over_checkpoints(one, keys, checkpoints)
    return kernel * factor, info


def check(
    info: Info, *, example_ids: Int[AnyArray, "n"] | None = None, checkpoint_ids: Sequence[int] | None = None
) -> None:
    """Judge a finished run on the host: warn (RuntimeWarning) where K was close to singular, raise where it failed.

    Raises:
      FloatingPointError: gradients that are not finite (names checkpoints, and examples if they are of training), or a
        K that could not be factored (names checkpoints).
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
    if not np.isfinite(pivot).all():
        failed = names[~np.isfinite(pivot)].tolist()
        raise FloatingPointError(f"the Gram matrix of checkpoints {failed} is not positive definite: {advice}")
    if not np.isfinite(residual).all():
        failed = names[~np.isfinite(residual)].tolist()
        raise FloatingPointError(f"gradients of targets are not finite at checkpoints {failed}")
    if (pivot < 1e-5).any() or (residual > 1e-2).any():
        warnings.warn(
            f"the Gram matrix is close to singular (smallest pivot {pivot.min():.1e} of the largest, relative residual "
            f"{residual.max():.1e}): {advice}",
            RuntimeWarning,
            stacklevel=2,
        )


def _prepared(options: Options, model: Model, variables, train: Split):
    """Options with a microbatch, both outputs as functions of the attributed parameters, and those parameters."""
    outputs = (options.output, options.target_output or options.output)
    (output, params), (target_output, _) = (
        per_checkpoint.attributed(make(model, variables), variables, options.keep) for make in outputs
    )
    if options.microbatch is None:
        options = options._replace(microbatch=default_microbatch(output, params, train))
    return options, output, target_output, params


def _projection(o: Options, num_train: int) -> MakeProjection:
    return sjlt(min(256, default_size(num_train))) if o.projection is None else o.projection


def _features(o: Options, output, params, projection, examples):
    """Outputs ``[n]`` and projected gradients ``[n p]``."""

    def rows(part):
        if projection.factored:
            values, grads = dense_gradients.value_and_factors(output, params, part)
        else:
            values, grads = jax.vmap(jax.value_and_grad(output), (None, 0))(params, part)
        return values, projection.project(grads)

    return map_microbatches(rows, examples, microbatch=o.microbatch)


def _curved(o: Options, weights, values, examples):
    return weights if o.curvature is None else weights * o.curvature(values, examples)


def _gram(phi, weights):
    weighted = jnp.where(weights[:, None] > 0, phi, 0)  # a row left out must not bring in its NaN
    return dot(weighted.T, weighted * weights.astype(phi.dtype)[:, None])


def _solve(o: Options, gram, targets, finite, num_train: int):
    """``K^-1 u`` for every row u of ``targets [k p]``, and its diagnostics."""
    p = gram.shape[0]
    if isinstance(o.damping, int | float) and (o.damping < 0 or (o.damping == 0 and p >= num_train)):
        raise ValueError(
            f"damping: found {o.damping} with a projection to p = {p} for n = {num_train} examples, where the Gram "
            f"matrix is singular; project to fewer dimensions (default_size({num_train}) = {default_size(num_train)}) "
            "or take damping = 0.1"
        )
    ridge = o.damping * jnp.trace(gram) / p
    matrix = gram + ridge.astype(gram.dtype) * jnp.eye(p, dtype=gram.dtype)
    factor, solution = _cholesky(matrix, targets)
    norm = jnp.linalg.norm(targets, axis=1)
    error = jnp.linalg.norm(dot(solution, matrix) - targets, axis=1)
    pivots = jnp.diagonal(factor) ** 2
    info = Info(jnp.max(error / jnp.where(norm > 0, norm, 1)), pivots.min() / pivots.max(), finite)
    if o.library_scale:
        inverse = jax.scipy.linalg.cho_solve((factor, True), jnp.eye(p, dtype=gram.dtype))
        solution = solution / jnp.abs(inverse).mean()
    return solution, info


# One after the other where mapped, over dampings say: as a batch they wait for each other's threads on CPUs when
# several devices share few cores, and can deadlock.
@jax.custom_batching.sequential_vmap
def _cholesky(matrix, targets):
    factor, lower = jax.scipy.linalg.cho_factor(matrix, lower=True)
    return factor, jax.scipy.linalg.cho_solve((factor, lower), targets.T).T


def _with_factor(o: Options, kernel, values, train, axis: int = 1):
    """Kernel and q; inside the mean over checkpoints if asked. ``axis`` is the one of ``kernel`` that is not train."""
    factor = o.factor(values, train).astype(kernel.dtype)
    return (kernel * jnp.expand_dims(factor, axis), jnp.ones_like(factor)) if o.factor_inside else (kernel, factor)
