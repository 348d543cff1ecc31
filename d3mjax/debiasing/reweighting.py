"""Training weights by descent: multiplicative steps along the metagradient of the softmax group loss.

With training weights w, mean 1, and ``L_g(w)`` the mean loss of target group g after training on them,

    A_i = - d/dw_i (1 / beta) log sum_g exp(beta L_g(w))        exact, through the whole training (`metagradient`)

averaged over a few models and over the nearest train examples of the same class, centred so that the mean weight does
not change to first order. A step with momentum is

    m <- m / 2 + clip(A / q_.9(|A|), -3, 3)      w <- w exp(clip(rate m, -most, most)), over its mean

Take the trainer of `objectives.cross_entropy` with label smoothing .2 for the descent, and the plain one for the models
that are used: through plain cross-entropy the derivative is that of a saturated network. Few targets are overfitted,
which the mean over neighbours limits. It grades the weights of examples that stay, and starts well from soft weights of
D3M (`d3m.soft_candidate`); where removal is free, removal does better.
Source: the metagradient descent of Engstrom et al., "Optimizing ML training with metagradient descent", 2025, on D3M's
loss; steps, smoothing and neighbours are this project's.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from d3mjax.attribution import metagradient, outputs, per_checkpoint
from d3mjax.linalg.products import LARGEST, dot
from d3mjax.training import ensemble
from d3mjax.types import AnyArray, Model, Split, Trainer, checked_names


@checked_names
class Options(NamedTuple):
    """Options of `descend`.

    rounds: steps of the weights. models: trained and differentiated in each. beta: sharpness of the group weights, per
      nat. rate: of the logarithm of the weights. most: largest change of a logarithm in one step. floor: smallest
      weight to start from, of the mean; an example of weight 0 is in no batch, and stays there.
    """

    rounds: int = 5
    models: int = 4
    beta: float = 1.0
    rate: float = 0.15
    most: float = 0.3
    floor: float = 0.02


class Descent(NamedTuple):
    """Weights before the first round and after every round, and the diagnostics of the models trained in it."""

    weights: jax.Array  # Float[r+1 n], mean 1
    info: metagradient.Info  # leading axes r and models


def nearest_of_class(
    features: Float[AnyArray, "n d"], y: Int[AnyArray, "n"], *, count: int, microbatch: int = LARGEST
) -> Int[Array, "n k"]:
    """Indices of the ``count`` nearest examples of the same class by Euclidean distance, itself the first.

    Ties by index. A class with fewer examples repeats itself: the example stands for those that are missing.
    """
    x, y = jnp.asarray(features), jnp.asarray(y)
    squares, own = (x**2).sum(1), jnp.arange(len(y))

    def rows(at):
        part, classes, index = at
        distance = squares - 2 * dot(x, part)
        distance = jnp.where((y == classes) & (own != index), distance, jnp.inf)
        least, found = jax.lax.top_k(-distance, count - 1)
        return jnp.concatenate([index[None], jnp.where(jnp.isfinite(least), found, index)])

    return jax.lax.map(rows, (x, y, own), batch_size=microbatch)


def descend(
    key: Key[Array, ""],
    model: Model,
    trainer: Trainer,
    train: Split,
    target: Split,
    num_groups: int,
    num_steps: int,
    *,
    neighbours: Int[AnyArray, "n k"],
    weights: Float[AnyArray, "n"] | None = None,
    options: Options = Options(),
) -> Descent:
    """Weights ``[n]`` under which the softmax loss of the target groups falls, after each of ``options.rounds`` steps.

    ``weights``: to start from, ones if not given. ``neighbours``: train examples over which the derivative of each is
    averaged (`nearest_of_class`), ``arange(n)[:, None]`` for none. Model j of round r derives from
    ``fold_in(fold_in(key, r), j)``. Cost: ``rounds * models`` trainings, each with a run backwards for one function.

    >>> import jax, optax, d3mjax
    >>> data, model = d3mjax.planted_shortcut(0, train=300, target=80), d3mjax.linear(2)
    >>> trainer = d3mjax.make_trainer(
    ...     model, d3mjax.cross_entropy(smoothing=0.2), optax.sgd(0.1), d3mjax.shuffled(), batch_size=50
    ... )
    >>> near = d3mjax.reweighting.nearest_of_class(data.train.x, data.train.y, count=5)
    >>> options = d3mjax.reweighting.Options(rounds=2, models=1)
    >>> problem = (jax.random.key(0), model, trainer, data.train, data.target, 4, 30)
    >>> weights = d3mjax.reweighting.descend(*problem, neighbours=near, options=options).weights[-1]
    >>> minority = data.train.group % 2 != data.train.y
    >>> bool(weights[minority].mean() > weights[~minority].mean())
    True

    Raises:
      ValueError: no target has a group, or one is beyond ``num_groups``; shapes do not fit; the trainer has no such
        derivative (`metagradient.check_trainer`).
      FloatingPointError: a training diverged, or adjoints are not finite; names models and steps.
    """
    count = len(train.y)
    for name, array in (("neighbours", neighbours), ("weights", weights)):
        if array is not None and len(array) != count:
            raise ValueError(f"{name}: found {len(array)} rows, expected one for each of {count} train examples")
    per_checkpoint.check_groups(target.group, num_groups)
    metagradient.check_trainer(trainer, train)
    start = jnp.ones(count) if weights is None else jnp.asarray(weights)
    w = jnp.maximum(start / start.mean(), options.floor)
    w, momentum = w / w.mean(), jnp.zeros(count)
    path, infos = [w], []
    for r in range(options.rounds):
        arrays = (jax.random.fold_in(key, r), train, target, w, jnp.asarray(neighbours))
        derivative, info = _derivative(*arrays, model, trainer, num_groups, num_steps, options)
        metagradient.check(info)
        momentum, w = step(derivative, momentum, w, options)
        path.append(w)
        infos.append(info)
    return Descent(jnp.stack(path), jax.tree.map(lambda *a: jnp.stack(a), *infos))


def step(
    derivative: Float[AnyArray, "n"], momentum: Float[AnyArray, "n"], weights: Float[AnyArray, "n"], options: Options
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Momentum and weights after one multiplicative step; the derivative is by the weights, and to be climbed."""
    derivative, momentum, weights = map(jnp.asarray, (derivative, momentum, weights))
    scale = jnp.maximum(jnp.quantile(jnp.abs(derivative), 0.9), 1e-30)
    momentum = momentum / 2 + jnp.clip(derivative / scale, -3, 3)
    moved = weights * jnp.exp(jnp.clip(options.rate * momentum, -options.most, options.most))
    return momentum, moved / moved.mean()


@partial(jax.jit, static_argnums=(5, 6, 7, 8, 9))
def _derivative(key, train, target, w, neighbours, model, trainer, num_groups, num_steps, options: Options):
    """A, averaged over models and neighbours and centred, and diagnostics."""
    mix, size = per_checkpoint.group_mix(target.group, num_groups)

    def objective(variables):
        losses = dot(mix.T, outputs.losses(model, variables, target))
        return -jax.nn.logsumexp(jnp.where(size > 0, options.beta * losses, -jnp.inf))[None] / options.beta

    def one(key):
        rows, info = metagradient.derivatives(key, trainer, train, num_steps, jax.jacrev(objective), weights=w)
        return rows[0] / w, info

    by_weight, info = jax.lax.map(one, ensemble.model_keys(key, jnp.arange(options.models)))
    smooth = by_weight.mean(0)[neighbours].mean(1)
    return smooth - (smooth * w).sum() / w.sum(), info
