"""Score, prune, retrain, evaluate: the loop around any attribution, rule and trainer, as a pure function."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree


class Rounds(NamedTuple):
    """Weights of each round, the scores that chose them, and the evaluation of the models trained with them.

    Round 0 is training before any removal; its scores are zero.
    """

    scores: Float[Array, "r n"]
    weights: Float[Array, "r n"]
    metrics: PyTree[Array]  # leading axis r


def prune_and_retrain(
    key: Key[Array, ""],
    weights: Float[Array, "n"],
    score: Callable,
    keep: Callable,
    fit: Callable,
    evaluate: Callable,
    *,
    rounds: int = 1,
) -> Rounds:
    """Train on ``weights``, then ``rounds`` times: score the examples, drop some, retrain, evaluate.

    ``fit(key, weights [n]) -> models`` trains one model or many; every round gets the same key, so a round that keeps
    all examples reproduces the one before exactly. ``score(key, models, weights) -> [n]`` scores the examples with the
    models just trained, larger being more useful. ``keep(scores) -> Bool[n]`` is a rule of `selection`; dropped
    examples stay dropped, and have score infinity there. ``evaluate(models) -> pytree`` is stored for every round.

    Raises:
      ValueError: if ``rounds`` is below 0.
    """
    if rounds < 0:
        raise ValueError(f"rounds: found {rounds}, expected at least 0")
    fit_key, score_key = jax.random.split(key)
    models = fit(fit_key, weights)
    history = [(jnp.zeros_like(weights), weights, evaluate(models))]
    for r in range(rounds):
        scores = score(jax.random.fold_in(score_key, r), models, weights)
        weights = jnp.where(keep(jnp.where(weights > 0, scores, jnp.inf)), weights, 0.0)
        models = fit(fit_key, weights)
        history.append((scores, weights, evaluate(models)))
    return Rounds(*jax.tree.map(lambda *leaves: jnp.stack(leaves), *history))
