"""Group-robust sample reweighting (GSR): train weights by implicit differentiation of the last layer's fit.

On features of a trained network the last layer is a ridge-logistic regression, whose minimiser is unique:

    theta(w) = argmin  (1/n) sum_i w_i loss_i(theta) + (l2 / 2) |theta|^2

The softmax of the losses of the target groups is lowered by changing w (implicit function theorem):

    F(w) = (1 / beta) log sum_g exp(beta L_g(theta(w)))       s_i = -dF/dw_i = (1/n) grad loss_i . H^-1 grad F
    w <- max(w + rate s / max |s|, 0), over its mean

with H the Hessian of the minimised function. The network below the head does not change.
Source: Qiao, Wu, Wang, Koh and Low, "Group-robust sample reweighting for subpopulation shifts via influence functions",
ICLR 2025 (arXiv 2503.07315). There the head is fitted to examples that the network was not trained on.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from d3mjax.attribution import influence, inverses, per_checkpoint
from d3mjax.linalg.products import dot
from d3mjax.networks import dense
from d3mjax.types import AnyArray, Linear, Split, checked_names


@checked_names
class Options(NamedTuple):
    """Options of `descend`.

    rounds: steps of the weights. rate: largest change of a weight in one step, of the mean weight. beta: sharpness of
      the group weights, per nat. newton: steps of each fit at most.
    """

    rounds: int = 30
    rate: float = 0.3
    beta: float = 4.0
    newton: int = 50


class Descent(NamedTuple):
    """Weights and heads before the first round and after every round, and how far each head is from its minimum."""

    weights: jax.Array  # Float[r+1 n], mean 1
    head: Linear  # weight Float[r+1 C p], bias Float[r+1 C]
    residual: jax.Array  # Float[r+1], largest entry of the gradient of the mean loss


def descend(
    train: Split,
    target: Split,
    num_classes: int,
    num_groups: int,
    *,
    weights: Float[AnyArray, "n"] | None = None,
    l2: Float[Array, ""] | float = 1e-3,
    options: Options = Options(),
) -> Descent:
    """GSR on features: ``train.x [n p]`` and ``target.x [t p]`` are inputs of the last layer, standardised.

    ``weights``: to start from, ones if not given. ``l2``: of all coefficients, the biases too. Cost of a round: a few
    Hessians of ``d = C (p + 1)`` coefficients, each ``n d^2 / 2``, and their solves, ``d^3 / 3``.

    >>> import d3mjax
    >>> from d3mjax.debiasing import head_reweighting
    >>> data = d3mjax.planted_shortcut(0, train=300, target=80)
    >>> found = head_reweighting.descend(data.train, data.target, 2, 4)
    >>> found.weights.shape, found.head.weight.shape
    ((31, 300), (31, 2, 6))
    >>> minority = data.train.group % 2 != data.train.y
    >>> bool(found.weights[-1, minority].mean() > found.weights[-1, ~minority].mean())
    True

    Raises:
      ValueError: no target has a group, or one is beyond ``num_groups``; ``weights`` of another length.
    """
    per_checkpoint.check_groups(target.group, num_groups)
    n = len(train.y)
    if weights is not None and len(weights) != n:
        raise ValueError(f"weights: found {len(weights)}, expected one for each of {n} train examples")
    start = jnp.ones(n) if weights is None else jnp.asarray(weights)
    return _descend(train, target, start / start.mean(), l2, num_classes, num_groups, options)


@partial(jax.jit, static_argnums=(4, 5, 6))
def _descend(train: Split, target: Split, start, l2, num_classes: int, num_groups: int, options: Options) -> Descent:
    mix, size = per_checkpoint.group_mix(jnp.asarray(target.group), num_groups)
    rows, seen = (jnp.concatenate([jnp.ones((len(s.y), 1), s.x.dtype), s.x], 1) for s in (train, target))
    model = dense.linear(num_classes)
    zero, unravel = ravel_pytree(model.init(jax.random.key(0), train.x[:1])["params"])  # bias, then kernel [p C]
    settings = influence.Options(damping=l2, microbatch=1)

    def losses(theta, rows, y):
        logits = dot(rows, theta.reshape(-1, num_classes))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(y))

    def inner(theta, w):
        return (w * losses(theta, rows, train.y)).sum() + len(rows) * l2 / 2 * theta @ theta

    def outer(theta):
        of_groups = jnp.where(size > 0, options.beta * dot(mix.T, losses(theta, seen, target.y)), -jnp.inf)
        return jax.nn.logsumexp(of_groups) / options.beta

    def solve(theta, w, vector):
        problem = influence.problem_of(model, {"params": unravel(theta)}, train, weights=w, options=settings)
        return inverses.by_last_layer()(problem)(vector).value

    def fit(theta, w):
        """Newton steps, shorter where logits move far: the curvature changes by exp of their moves at most."""

        def advance(state):
            theta, _, count = state
            move = solve(theta, w, jax.grad(inner)(theta, w))
            moved = 2 * jnp.abs(dot(rows, move.reshape(-1, num_classes))).max()
            return theta - move * jnp.log1p(moved) / jnp.maximum(moved, 1e-6), moved, count + 1

        # After a step that moves logits by m, they are off by about m^2.
        unsolved = lambda state: (state[1] > 1e-3) & (state[2] < options.newton)
        return jax.lax.while_loop(unsolved, advance, (theta, jnp.full((), jnp.inf, theta.dtype), jnp.int32(0)))[0]

    def turn(state, _):
        theta, w = state
        theta = fit(theta, w)
        adjoint = solve(theta, w, jax.grad(outer)(theta))
        score = jax.grad(lambda w: jax.grad(inner)(theta, w) @ adjoint)(w)
        moved = jnp.maximum(w + options.rate * score / jnp.maximum(jnp.abs(score).max(), 1e-30), 0)
        return (theta, moved / moved.mean()), (w, theta, jnp.abs(jax.grad(inner)(theta, w)).max() / len(rows))

    _, (weights, thetas, residual) = jax.lax.scan(turn, (jnp.zeros_like(zero), start), length=options.rounds + 1)
    heads = jnp.moveaxis(thetas.reshape(len(thetas), -1, num_classes), 1, 2)
    return Descent(weights, Linear(heads[..., 1:], heads[..., 0]), residual)
