"""Derivatives of the last state of a training by what each example weighs, in reverse mode.

Step k maps state ``s`` (variables, optimiser state, counters) to the next one, under factors e of the examples' losses:

    s_{k+1} = h_k(s_k, e),    batch loss = (1/b) sum_{i in batch k} e_i w_i loss_i(theta_k),    e = 1

Batches and denominator do not depend on e: at e_i = 0 the same run goes on without example i. In reverse, ``lam_S``
being the derivative of a function f by the last state,

    (lam_k, d_k) = vjp of h_k at (s_k, e), applied to lam_{k+1}        d f / d e = sum_k d_k

The *adjoints* lam of many functions are pulled back at once: the run is replayed once for all. All S states are kept,
or those at the starts of q segments, and the S / q states of one segment at a time are computed again: two levels of
``q + S / q`` states, at one more run; ``q = sqrt(S)`` needs fewest.

Sources: Maclaurin, Duvenaud and Adams, "Gradient-based hyperparameter optimization through reversible learning", 2015;
Ilyas and Engstrom, "MAGIC: near-optimal data attribution for deep learning", 2025, whose levels are two here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from d3mjax.types import Split, Trainer, TrainState

Draws = tuple[Int[Array, "s b"], Float[Array, "s b"]]
"""Index and weight of every example of every step, as `Trainer.draw` gives them."""


class Adjoints(NamedTuple):
    """Derivatives of k functions by the state before a step, and by the factors, as far as steps have been pulled."""

    floats: PyTree  # by variables and by the floats of the optimiser state, leaves with a leading axis k
    factors: jax.Array  # Float[k n]


class Replayed(NamedTuple):
    """Derivatives, and diagnostics of the replay."""

    derivatives: jax.Array  # Float[k n], of function k by the factor of example i
    losses: jax.Array  # Float[s], of the run
    finite: jax.Array  # Bool[s], whether all adjoints after each step are finite
    drift: jax.Array  # Float[s], at the ends of segments: distance of the state from that of the run, relative; else 0


def forward(trainer: Trainer, state: TrainState, split: Split, draws: Draws) -> tuple[TrainState, Float[Array, "s"]]:
    """The last state and the loss of every step: ``trainer.run`` on given draws."""
    return jax.lax.scan(lambda state, draw: trainer.step(state, split, *draw), state, draws)


def kept(
    trainer: Trainer, state: TrainState, split: Split, draws: Draws
) -> tuple[TrainState, TrainState, Float[Array, "s"]]:
    """The last state, the states before each step with a leading axis s, and the losses."""

    def step(state, draw):
        after, loss = trainer.step(state, split, *draw)
        return after, (state, loss)

    last, (states, losses) = jax.lax.scan(step, state, draws)
    return last, states, losses


def first_adjoints(last: TrainState, gradients: PyTree[Float[Array, "k ..."]], num_train: int) -> Adjoints:
    """Adjoints before any step is pulled: ``gradients`` of the functions, trees of variables, and 0 for the rest."""
    count = jax.tree.leaves(gradients)[0].shape[0]
    variables, of_optimiser = _floats(last)
    gradients = jax.tree.map(lambda g, v: g.astype(v.dtype), gradients, variables)
    zeros = [jnp.zeros((count, *a.shape), a.dtype) for a in of_optimiser]
    return Adjoints((gradients, zeros), jnp.zeros((count, num_train), jax.tree.leaves(gradients)[0].dtype))


def pull(
    trainer: Trainer,
    states: TrainState,
    split: Split,
    draws: Draws,
    adjoints: Adjoints,
    *,
    width: int | None = None,
) -> tuple[Adjoints, Bool[Array, "s"]]:
    """Adjoints before the first of s steps from those after the last; ``states``: before each of them, axis s.

    ``width`` functions at a time, None for all: memory and speed only. Second: whether the adjoints after each step
    are finite.
    """

    def back(adjoints, at):
        state, (index, weight) = at

        def step(floats, factors):
            return _floats(trainer.step(_with_floats(state, floats), split, index, weight * factors)[0])

        _, pullback = jax.vjp(step, _floats(state), jnp.ones_like(weight))
        finite = jnp.array([jnp.isfinite(a).all() for a in jax.tree.leaves(adjoints.floats)]).all()
        floats, change = _mapped(pullback, adjoints.floats, width)
        return Adjoints(floats, adjoints.factors.at[:, index].add(change)), finite

    return jax.lax.scan(back, adjoints, (states, draws), reverse=True)


def pull_segment(
    trainer: Trainer,
    start: TrainState,
    split: Split,
    draws: Draws,
    adjoints: Adjoints,
    *,
    width: int | None = None,
) -> tuple[TrainState, Adjoints, Bool[Array, "s"]]:
    """`pull` with the states computed again from that before the first step; the state after the last one comes first.

    The caller compares it with the one it has: a training that does not repeat itself has no derivative.
    """
    end, states, _ = kept(trainer, start, split, draws)
    return end, *pull(trainer, states, split, draws, adjoints, width=width)


def reverse(
    trainer: Trainer,
    state: TrainState,
    split: Split,
    draws: Draws,
    gradients: Callable[[Any], PyTree[Float[Array, "k ..."]]],
    *,
    segments: int = 1,
    width: int | None = None,
) -> Replayed:
    """Derivatives of k functions of the trained variables by the factors of the n examples, in one program.

    ``gradients(variables)``: of the functions, a tree of variables with a leading axis k. ``segments``: 1 keeps every
    state. ``width`` as of `pull`. Both change memory and speed only.
    """
    num_steps, num_train = len(draws[0]), len(split.y)
    begin = lambda last: first_adjoints(last, gradients(last.variables), num_train)
    if segments == 1:
        last, states, losses = kept(trainer, state, split, draws)
        adjoints, finite = pull(trainer, states, split, draws, begin(last), width=width)
        return Replayed(adjoints.factors, losses, finite, jnp.zeros(num_steps))

    length = -(-num_steps // segments)
    full = num_steps // length * length
    head = jax.tree.map(lambda a: a[:full].reshape(-1, length, *a.shape[1:]), draws)
    tail = jax.tree.map(lambda a: a[full:], draws)

    def run_segment(state, draws):
        end, losses = forward(trainer, state, split, draws)
        return end, (state, losses)

    def back_segment(adjoints, at):
        start, end, draws = at
        replayed, adjoints, finite = pull_segment(trainer, start, split, draws, adjoints, width=width)
        drift = jnp.zeros(len(finite)).at[-1].set(distance(replayed, end))
        return adjoints, (finite, drift)

    middle, (starts, losses) = jax.lax.scan(run_segment, state, head)
    last, more_losses = forward(trainer, middle, split, tail)
    ends = jax.tree.map(lambda a, b: jnp.concatenate([a[1:], b[None]]), starts, middle)
    adjoints, of_tail = begin(last), (jnp.ones(0, bool), jnp.zeros(0))
    if full < num_steps:
        adjoints, of_tail = back_segment(adjoints, (middle, last, tail))
    adjoints, of_head = jax.lax.scan(back_segment, adjoints, (starts, ends, head), reverse=True)
    joined = lambda a, b: jnp.concatenate([a.reshape(-1), b])
    return Replayed(adjoints.factors, joined(losses, more_losses), *map(joined, of_head, of_tail))


def distance(state: TrainState, other: TrainState) -> Float[Array, ""]:
    """Largest difference of the floats of two states, relative to the largest float of the second; NaN stays NaN."""
    pairs = list(zip(jax.tree.leaves(_floats(state)), jax.tree.leaves(_floats(other)), strict=True))
    apart = jnp.stack([jnp.abs(a - b).max(initial=0) for a, b in pairs]).max()
    return apart / jnp.maximum(jnp.stack([jnp.abs(b).max(initial=0) for _, b in pairs]).max(), 1e-30)


def _mapped(pullback: Callable, adjoints: PyTree, width: int | None):
    """All at once, or ``width`` at a time."""
    many = width is None or width >= jax.tree.leaves(adjoints)[0].shape[0]
    return jax.vmap(pullback)(adjoints) if many else jax.lax.map(pullback, adjoints, batch_size=width)


def _floats(state: TrainState):
    """What is differentiated: variables, and the floats of the optimiser state; counters are constants."""
    return state.variables, [a for a in jax.tree.leaves(state.opt_state) if is_float(a)]


def _with_floats(state: TrainState, floats) -> TrainState:
    variables, of_optimiser = floats
    leaves, tree = jax.tree.flatten(state.opt_state)
    rest = iter(of_optimiser)
    return state._replace(
        variables=variables, opt_state=tree.unflatten(next(rest) if is_float(a) else a for a in leaves)
    )


def is_float(a: Any) -> bool:
    """Whether an array can be differentiated."""
    return jnp.issubdtype(jnp.result_type(a), jnp.inexact)
