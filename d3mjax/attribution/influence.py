"""Influence functions: what a little more weight on a train example does to any output, by one Newton step.

For the objective ``J = sum_i w_i loss_i(theta)``, at its minimiser, with its curvature ``H``, a sum over examples, and
``W = sum_i w_i``:

    tau[z, i] = d f(z) / d w_i = - grad f(z) . (H + damping W I)^-1 grad loss_i     positive: including i raises f(z)

so removing i changes f by about ``-tau``. Solves are for the few directions ``grad f``, never for train examples; each
is followed by one forward-mode pass over them, so gradients of single examples never exist. Over checkpoints tau is
averaged. `along` takes gradients of anything else, such as a fairness measure. Weight decay is in ``damping``:
``(decay / 2) ||theta||^2`` beside a *mean* of losses adds decay.

Functions, arguments and results are those of `trak`; the options are the curvature (`curvatures.ggn`, the default, or
`curvatures.hessian`) and how its inverse is applied (`inverses`, `ekfac`). Sources: Koh and Liang, 2017; Schioppa et
al., 2022.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from d3mjax.attribution import gradients, per_checkpoint
from d3mjax.attribution.curvatures import Inverse, Problem, cross_entropy, ggn, loss
from d3mjax.attribution.inverses import by_cg
from d3mjax.attribution.microbatches import default_microbatch
from d3mjax.attribution.per_checkpoint import CheckpointColumns, GroupScores, Scores
from d3mjax.types import AnyArray, Model, Split, checked_names


class Info(NamedTuple):
    """Diagnostics of the solves, one for each direction; `linalg.iterative.check` judges them."""

    residual: jax.Array  # Float[*c k], relative
    steps: jax.Array  # Int[*c k]


@checked_names
class Options(NamedTuple):
    """Options of `scores`, `group_scores`, `group_columns` and `problem_of`.

    damping: relative to the sum of weights, so of the mean curvature, which must be positive definite with it; .01
      predicted retraining best for networks (study ``lds_influence``).
    inverse: how the inverse curvature is applied (`inverses`, `ekfac`).
    curvature: `curvatures.ggn`, `curvatures.hessian` or `curvatures.one_vs_rest`.
    target_output: makes an output function from ``(model, variables)`` (`gradients`).
    loss: of one example, from its logits and ``y``, convex in the logits; cross-entropy needs two logits or more.
    keep: parameters that are attributed, by path (`gradients.subset`); None for all.
    microbatch: examples at a time; None for `microbatches.default_microbatch`. Memory and speed only.
    """

    damping: Any = 0.01
    inverse: Inverse = by_cg()
    curvature: Callable = ggn
    target_output: Callable = gradients.margin_output
    loss: Callable = cross_entropy
    keep: Callable[[str], bool] | None = None
    microbatch: int | None = None


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
    """Influence ``tau[t, n]`` of every train example on every target, averaged over checkpoints: one solve a target.

    Arguments as of `trak.scores`; ``fold_in(key, ids[a])`` is for inverses that draw, such as `inverses.by_lissa`.
    Nothing is raised for values: look at the residuals in `Info`.

    Raises:
      ValueError: leading axes of checkpoints differ, or ``options.keep`` accepts no parameter.

    >>> import jax
    >>> import d3mjax
    >>> data = d3mjax.planted_shortcut(0, train=60, target=24)
    >>> model = d3mjax.linear(2)
    >>> init = jax.vmap(lambda key: model.init(key, data.train.x[:1]))
    >>> checkpoints = init(jax.random.split(jax.random.key(0), 3))  # in practice: trained
    >>> tau, info = d3mjax.influence.scores(jax.random.key(1), model, checkpoints, data.train, data.target)
    >>> tau.shape, info.residual.shape, bool((info.residual < 1e-3).all())
    ((24, 60), (3, 24), True)
    """

    def one(key, variables):
        output, params = per_checkpoint.attributed(options.target_output(model, variables), variables, options.keep)
        grads = gradients.per_example(output, params, per_checkpoint.as_arrays(target), microbatch=options.microbatch)
        problem = problem_of(model, variables, train, weights=weights, options=options)._replace(key=key)
        tau, info = along(problem, options.inverse, grads)
        return tau.T, info

    keys = per_checkpoint.checkpoint_keys(key, checkpoints, ids=ids)
    return Scores(*per_checkpoint.mean_over_checkpoints(one, keys, checkpoints))


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
    """Group columns ``B[n, G]``: mean influence on the targets of each group, averaged over checkpoints.

    One solve a group and checkpoint; the matrix of single targets never exists. Arguments, results and errors as of
    `trak.group_scores`; the factor is 1.

    >>> import jax
    >>> import d3mjax
    >>> data = d3mjax.planted_shortcut(0, train=60, target=24)
    >>> model = d3mjax.linear(2)
    >>> init = jax.vmap(lambda key: model.init(key, data.train.x[:1]))
    >>> checkpoints = init(jax.random.split(jax.random.key(0), 3))  # in practice: trained
    >>> result = d3mjax.influence.group_scores(jax.random.key(1), model, checkpoints, data.train, data.target, 4)
    >>> result.columns.shape, result.info.residual.shape
    ((60, 4), (3, 4))
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
) -> CheckpointColumns:
    """Group columns of one checkpoint under its own key: the unit of work of `group_scores`."""
    target = per_checkpoint.as_arrays(target)
    output, params = per_checkpoint.attributed(options.target_output(model, variables), variables, options.keep)
    mix, size = per_checkpoint.group_mix(target.group, num_groups)
    grads = gradients.weighted_gradients(output, params, mix, target, microbatch=options.microbatch)
    problem = problem_of(model, variables, train, weights=weights, options=options)._replace(key=key)
    columns, info = along(problem, options.inverse, grads)
    columns = jnp.where((size > 0)[None], columns, jnp.nan)
    return CheckpointColumns(columns, jnp.ones(columns.shape[0], columns.dtype), info)


def along(problem: Problem, inverse: Inverse, grads: PyTree[Float[Array, "k ..."]]) -> tuple[Float[Array, "n k"], Info]:
    """``d f_k / d w_i`` for functions of the parameters given by their gradients, trees with a leading axis ``k``."""
    solve, (_, unravel) = inverse(problem), ravel_pytree(problem.params)
    solved = jax.vmap(lambda grad: solve(ravel_pytree(grad)[0]))(grads)
    # d theta / d w_i is the inverse times the gradient of minus loss_i
    output = lambda params, example: -loss(problem, params, example)
    tangents = jax.vmap(unravel)(solved.value)
    _, columns = gradients.jvp(output, problem.params, tangents, problem.examples, microbatch=problem.microbatch)
    return columns, Info(solved.residual, solved.steps)


def problem_of(
    model: Model,
    variables: PyTree,
    train: Split,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    options: Options = Options(),
) -> Problem:
    """The training objective at ``variables``, as an `Inverse` takes it; ``weights`` are those it was trained under.

    Examples of weight 0 are not in the curvature, and scored all the same. Replace ``key``, which is fixed, where an
    inverse draws.
    """
    train, weights = per_checkpoint.as_arrays(train), per_checkpoint.weights_of(train, weights)
    logits, params = per_checkpoint.attributed(gradients.logits_of(model, variables), variables, options.keep)
    weights = weights.astype(ravel_pytree(params)[0].dtype)
    damping, key = options.damping * weights.sum(), jax.random.key(0)
    problem = Problem(logits, options.loss, params, train, weights, damping, 1, options.curvature, key)
    output = lambda params, example: loss(problem, params, example)
    microbatch = default_microbatch(output, params, train) if options.microbatch is None else options.microbatch
    return problem._replace(microbatch=microbatch)
