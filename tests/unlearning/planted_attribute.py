"""A linear model that picks up a spurious attribute, at the minimum of its objective; float64."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from d3mjax.attribution import influence, inverses
from d3mjax.networks import dense
from d3mjax.types import Pairs, Split
from d3mjax.unlearning import bias, edits

DAMPING, N, P = 0.02, 120, 60
EXACT = inverses.by_dense()
MODEL = dense.mlp((), 2)


def planted(n, seed, *, agrees=0.8):
    """One true feature, one spurious attribute +-1 that mostly agrees with the label, a constant one."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    attribute = np.where(rng.random(n) < agrees, 2 * y - 1, 1 - 2 * y)
    x = np.stack([(2 * y - 1) * 0.5 + rng.normal(size=n), attribute, np.full(n, 0.3)], 1)
    return Split(x, y, (attribute > 0).astype(int), np.arange(n))


def flipped(split):
    """Pairs whose first side agrees with the label."""
    aligned, conflicting = (np.array(split.x) for _ in range(2))
    aligned[:, 1], conflicting[:, 1] = 2 * split.y - 1, 1 - 2 * split.y
    return Pairs(aligned, conflicting, split.y)


TRAIN, PAIRS, REPORT = planted(N, 0), flipped(planted(P, 1)), flipped(planted(P, 2))
SAME = Pairs(PAIRS.x, PAIRS.x, PAIRS.y)


def problem_at(weights=None, train=TRAIN):
    """The softmax-linear model at the minimum of its objective; the same damping for all weights."""
    weights = jnp.ones(len(train.y)) if weights is None else jnp.asarray(weights)
    return _problem(weights, train)._replace(params=_minimum(weights, train))


def _problem(weights, train):
    variables = jax.tree.map(lambda a: 0.0 * a.astype(float), MODEL.init(jax.random.key(0), train.x[:1]))
    options = influence.Options(damping=DAMPING * N / weights.sum())
    return influence.problem_of(MODEL, variables, train, weights=weights, options=options)


@jax.jit
def _minimum(weights, train):
    return edits.refit(_problem(weights, train), EXACT).params


def measured(problem, pairs=REPORT):
    return jax.device_get(bias.measure(MODEL, {"params": problem.params}, pairs))


def flat(problem):
    return np.asarray(ravel_pytree(problem.params)[0])
