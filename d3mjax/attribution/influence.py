"""Influence functions: what a little more weight on a train example does to any output, by one Newton step.

For the objective ``J = sum_i w_i loss_i(theta)``, at its minimiser, with its curvature ``H``, a sum over examples, and
``W = sum_i w_i``:

    tau[z, i] = d f(z) / d w_i = - grad f(z) . (H + damping W I)^-1 grad loss_i     positive: including i raises f(z)

so removing i changes f by about ``-tau``. Solves are for the few directions ``grad f``, never for train examples; each
is followed by one forward-mode pass over them, so gradients of single examples never exist. ``scores`` is the matrix
``[t n]``, `group_columns` the means ``[n G]`` of one checkpoint for D3M, `along` takes gradients of anything else, such
as a fairness measure. Weight decay is in ``damping``: ``(decay / 2) ||theta||^2`` beside a *mean* of losses adds decay.

How the inverse is applied is a function, ``inverse(problem) -> solve``: `by_cg`, `by_dense`, `by_lissa`, `by_arnoldi`
here, and `ekfac.by_ekfac`. Which curvature, too: `ggn` (default; positive semi-definite) or `hessian` (indefinite away
from a minimum). Sources: Koh and Liang, 2017; Martens, 2020 (GGN); Schioppa et al., 2022.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from d3mjax.attribution import gradients
from d3mjax.linalg import iterative
from d3mjax.types import AnyArray, Model, Solve, Split


class Problem(NamedTuple):
    """A training objective at its solution; parameters as a flat vector ``[d]``."""

    logits: Callable[[Any, Any], jax.Array]  # (params, example) -> logits [C]
    loss: Callable[[Any, Any], jax.Array]  # (logits [C], y) -> scalar
    params: Any
    examples: Split
    weights: jax.Array  # Float[n]
    damping: jax.Array  # Float[], absolute: relative damping times the sum of weights
    microbatch: int | None
    curvature: Callable  # (problem) -> matvec, without damping


Inverse = Callable[[Problem], Callable[[Float[Array, "d"]], Solve]]


class Info(NamedTuple):
    """Of every direction: the relative residual of its solve, and the steps it took."""

    residual: jax.Array  # Float[k]
    steps: jax.Array  # Int[k]


def cross_entropy(logits: Float[Array, "C"], y: Any) -> Float[Array, ""]:
    """``-log softmax(logits)[y]``, in float32 at least."""
    return -jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))[y]


def squared_error(logits: Float[Array, "C"], y: Any) -> Float[Array, ""]:
    """``||logits - y||^2 / 2``: regression, ``y`` a number or a vector."""
    return ((logits - y) ** 2).sum() / 2


def ggn(problem: Problem) -> iterative.Matvec:
    """``v -> sum_i w_i J_i' L_i J_i v``: J the Jacobian of the logits, L the loss's Hessian by them.

    For cross-entropy ``L = diag(p) - p p'`` of softmax probabilities; positive semi-definite for any convex loss.
    """

    gradient = jax.grad(problem.loss)
    return _through_logits(problem, lambda logits, u, y: jax.jvp(lambda z: gradient(z, y), (logits,), (u,))[1])


def one_vs_rest(problem: Problem) -> iterative.Matvec:
    """``v -> sum_i w_i J_i' diag(s_i (1 - s_i)) J_i v`` with ``s = sigmoid(logits)``: a logistic curvature per class.

    What FMD's code has in place of the GGN; it is not the curvature of the cross-entropy that is minimised.
    """
    return _through_logits(problem, lambda logits, u, _: jax.nn.sigmoid(logits) * jax.nn.sigmoid(-logits) * u)


def hessian(problem: Problem) -> iterative.Matvec:
    """``v -> sum_i w_i (second derivative of loss_i) v``: forward over reverse."""
    _, unravel = ravel_pytree(problem.params)

    def rows(params, part, weight):
        total = lambda p: (weight * jax.vmap(partial(loss, problem), (None, 0))(p, part)).sum()
        return lambda v: jax.jvp(jax.grad(total), (params,), (v,))[1]

    return partial(_summed, problem, rows, unravel)


def by_cg(*, rtol: float = 1e-4, max_steps: int = 200) -> Inverse:
    """Conjugate gradients. A product costs a forward and a backward pass over all examples."""

    def inverse(problem: Problem):
        return partial(
            iterative.cg, problem.curvature(problem), damping=problem.damping, rtol=rtol, max_steps=max_steps
        )

    return inverse


def by_dense() -> Inverse:
    """The whole curvature ``[d d]``, factored: for some thousands of parameters, such as a last layer (``keep``)."""
    return lambda problem: partial(iterative.dense, problem.curvature(problem), damping=problem.damping)


def by_lissa(key: Key[Array, ""], *, depth: int) -> Inverse:
    """LiSSA with full products, scaled by 1.05 times the largest eigenvalue, which `iterative.extremes` estimates."""

    def inverse(problem: Problem):
        matvec, like = problem.curvature(problem), ravel_pytree(problem.params)[0]
        _, largest = iterative.extremes(key, matvec, like)
        scale = 1.05 * (largest + problem.damping)
        return partial(iterative.lissa, matvec, damping=problem.damping, scale=scale, depth=depth)

    return inverse


def by_arnoldi(key: Key[Array, ""], *, num: int, keep: int) -> Inverse:
    """The ``keep`` largest of ``num`` Ritz pairs, found once for all directions; the rest counts as zero."""

    def inverse(problem: Problem):
        like = ravel_pytree(problem.params)[0]
        space = iterative.lanczos(key, problem.curvature(problem), like, num)
        return partial(iterative.arnoldi, space, damping=problem.damping, keep=keep)

    return inverse


class Options(NamedTuple):
    """How to attribute.

    ``loss``: of one example, from its logits and ``y``, convex in the logits.
    ``damping``: of the mean curvature, which must be positive definite with it; .01 predicted retraining best for
    networks (`experiments.lds_influence`). ``target_output``: makes an output function from ``(model, variables)``.
    ``keep``: which parameters, by path (`gradients.subset`); None for all. ``microbatch``: memory and speed only.
    """

    damping: Any = 0.01
    inverse: Inverse = by_cg()
    curvature: Callable = ggn
    target_output: Callable = gradients.margin_output
    loss: Callable = cross_entropy
    keep: Callable[[str], bool] | None = None
    microbatch: int | None = None


def scores(
    model: Model,
    variables: PyTree,
    train: Split,
    target: Split,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    options: Options = Options(),
) -> tuple[Float[Array, "t n"], Info]:
    """``tau`` of one checkpoint, ``[t n]``: one solve for every target. Average it over checkpoints.

    ``weights`` are those the checkpoint was trained under: examples of weight 0 are not in the curvature, but scored
    all the same. Raises nothing for values: look at the residuals in `Info`.
    """
    o = options
    output, params = _output(o, o.target_output(model, variables), variables)
    grads = gradients.per_example(output, params, _arrays(target), microbatch=o.microbatch)
    tau, info = along(model, variables, train, grads, weights=weights, options=options)
    return tau.T, info


def group_columns(
    model: Model,
    variables: PyTree,
    train: Split,
    target: Split,
    num_groups: int,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    options: Options = Options(),
) -> tuple[Float[Array, "n G"], Info]:
    """Mean of ``tau`` over each group of ``target`` (-1: none), by one solve a group; NaN if a group is empty."""
    o, target = options, _arrays(target)
    output, params = _output(o, o.target_output(model, variables), variables)
    member = jax.nn.one_hot(target.group, num_groups)
    size = member.sum(0)
    mix = member / jnp.maximum(size, 1)[None]
    grads = gradients.weighted_gradients(output, params, mix, target, microbatch=o.microbatch)
    columns, info = along(model, variables, train, grads, weights=weights, options=options)
    return jnp.where((size > 0)[None], columns, jnp.nan), info


def along(
    model: Model,
    variables: PyTree,
    train: Split,
    grads: PyTree[Float[Array, "k ..."]],
    *,
    weights: Float[AnyArray, "n"] | None = None,
    options: Options = Options(),
) -> tuple[Float[Array, "n k"], Info]:
    """``d f_k / d w_i`` for functions of the parameters given by their gradients, trees with a leading axis ``k``."""
    o = options
    problem = problem_of(model, variables, train, weights=weights, options=options)
    solve, (_, unravel) = o.inverse(problem), ravel_pytree(problem.params)
    found = jax.vmap(lambda grad: solve(ravel_pytree(grad)[0]))(grads)
    # d theta / d w_i is the inverse times the gradient of minus loss_i
    output = lambda params, example: -loss(problem, params, example)
    tangents = jax.vmap(unravel)(found.value)
    _, columns = gradients.jvp(output, problem.params, tangents, problem.examples, microbatch=o.microbatch)
    return columns, Info(found.residual, found.steps)


def problem_of(
    model: Model,
    variables: PyTree,
    train: Split,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    options: Options = Options(),
) -> Problem:
    """What an `Inverse` is given; cross-entropy needs two logits or more."""
    o, train = options, _arrays(train)
    logits, params = _output(o, gradients.logits_of(model, variables), variables)
    weights = jnp.ones(train.y.shape[0]) if weights is None else jnp.asarray(weights)
    weights = weights.astype(ravel_pytree(params)[0].dtype)
    return Problem(logits, o.loss, params, train, weights, o.damping * weights.sum(), o.microbatch, o.curvature)


def loss(problem: Problem, params: PyTree, example: Split) -> Float[Array, ""]:
    """The loss of one example."""
    return problem.loss(problem.logits(params, example), example.y)


def _arrays(split: Split) -> Split:
    return jax.tree.map(jnp.asarray, split)


def _output(o: Options, output, variables):
    """A function of the attributed parameters, and those parameters."""
    params = variables["params"]
    return (output, params) if o.keep is None else gradients.subset(output, params, o.keep)


def _through_logits(problem: Problem, inner: Callable) -> iterative.Matvec:
    """``v -> sum_i w_i J_i' inner(logits_i, J_i v, y_i)``."""
    flat, unravel = ravel_pytree(problem.params)

    def rows(params, part, weight):
        of_all = lambda p: jax.vmap(problem.logits, (None, 0))(p, part)
        logits, push = jax.linearize(of_all, params)
        _, pull = jax.vjp(of_all, params)

        def product(v):
            u = jax.vmap(inner)(logits.astype(flat.dtype), push(v).astype(flat.dtype), part.y)
            u = weight[:, None] * u
            return pull(u.astype(logits.dtype))[0]

        return product

    return partial(_summed, problem, rows, unravel)


def _summed(problem: Problem, rows: Callable, unravel: Callable, vector):
    """Sum over microbatches of ``rows(params, part, weight)(v)``, as a flat vector."""
    v = unravel(vector)

    def add(total, part, valid):
        examples, weight = part
        product = rows(problem.params, examples, jnp.where(valid, weight, 0))(v)
        return jax.tree.map(jnp.add, total, product), None

    zeros = jax.tree.map(jnp.zeros_like, v)
    total, _ = gradients.scan_microbatches(
        add, zeros, (problem.examples, problem.weights), microbatch=problem.microbatch
    )
    return ravel_pytree(total)[0]
