"""Edits of dense layers of a decoder on pairs of sentences, as paths of changes of their kernels.

A pair is an example of two classes, ``logits = [log p(stereotype), log p(anti)]``, so that `unlearning` applies as it
is: ``pairs.x`` has the stereotype first, ``pairs.flipped`` the other side, and y is 0. The step of FMD is then
``-eta H^-1 sum_i grad [log p(stereotype) - log p(anti)]``. Train examples, which the edit should keep, are sentences
against the same with an unrelated word. All is computed in the tangent of the layers (`attribution.tangents`), by the
Fisher matrix of the next token; results are measured in the network itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Key, PyTree

from d3mjax.attribution import ekfac, influence, tangents
from d3mjax.attribution.curvatures import Inverse
from d3mjax.keys import Fmd
from d3mjax.training import preferences
from d3mjax.types import AnyArray, Pairs, Split
from d3mjax.unlearning import paths
from d3mjax.unlearning.paths import Editable

KEPT = ", related kept"  # in names of edits

Sides = list[dict[str, Any]]
"""The stereotype, the anti-stereotype, and the unrelated side of each row, as inputs of `tangents.tangent`."""


class Steps(NamedTuple):
    """Sizes of steps, the points of a path that selection chooses among."""

    etas: tuple[float, ...]  # of one step
    round_etas: tuple[float, ...]  # of steps one after the other
    beta: float = 0.1  # of DPO, per nat


def pairs_of(sides: Sides) -> Pairs:
    """The stereotype first, then the other way round; y is 0 on both."""
    first, second = sides[:2]
    return Pairs({"first": first, "second": second}, {"first": second, "second": first}, np.zeros(count(sides), int))


def related_of(sides: Sides) -> Split:
    """Both related sides, each against the unrelated one: examples of class 0."""
    first, second, unrelated = sides
    join = lambda a, b: jax.tree.map(lambda *both: jnp.concatenate(both), a, b)
    n = 2 * count(sides)
    return Split({"first": join(first, second), "second": join(unrelated, unrelated)}, *_labels(n))


def count(sides: Sides) -> int:
    """Rows of the sides."""
    return len(sides[0]["values"])


def editable(sides: Sides, inverse: Inverse, *, damping: float) -> Editable:
    """The layers in their tangent, their train examples `related_of`."""
    model, train = preferences.bradley_terry(tangents.tangent()), related_of(sides)
    variables = model.init(jax.random.key(0), train.x)
    options = influence.Options(damping=damping, microbatch=100)
    return Editable(model, variables, influence.problem_of(model, variables, train, options=options), inverse)


def paths_of(steps: Steps, *, damping: float) -> dict[str, Callable]:
    """Changes of kernels, leading axis k, by the name of the edit: compiled functions of ``(key, sides, fisher)``."""
    shot = partial(paths.one_shot, etas=steps.etas)
    rounds = partial(paths.in_rounds, etas=steps.round_etas, aligned=0.0)
    kept = partial(rounds, keep=1.0)

    def of(edit: Callable) -> Callable:
        def path(key: Key[Array, ""], sides: Sides, fisher: ekfac.Fisher) -> PyTree[Float[Array, "k i o"]]:
            signs = jax.random.rademacher(jax.random.fold_in(key, Fmd.SIGNS), (count(sides),), jnp.float32)
            layer = editable(sides, ekfac.by_fisher(lambda _: fisher), damping=damping)
            return edit(layer, pairs_of(sides), signs)

        return jax.jit(path)

    return {
        "FMD": of(lambda layer, pairs, signs: shot(layer, pairs)),
        "FMD" + KEPT: of(lambda layer, pairs, signs: kept(layer, pairs)),
        "FMD" + KEPT + ", sign flipped": of(lambda layer, pairs, signs: kept(layer, swapped(pairs))),
        "FMD" + KEPT + ", random signs": of(lambda layer, pairs, signs: kept(layer, at_random(signs, pairs))),
        "related sides alone": of(lambda layer, pairs, signs: kept(layer, pairs, sign=0.0)),
        "CDA": of(lambda layer, pairs, signs: likelier(layer, pairs, etas=steps.etas)),
        "DPO": of(lambda layer, pairs, signs: rounds(*referred(layer, pairs, steps.beta))),
    }


def swapped(pairs: Pairs) -> Pairs:
    """The anti-stereotype in place of the stereotype."""
    return Pairs(pairs.flipped, pairs.x, pairs.y)


def at_random(signs: Float[AnyArray, "p"], pairs: Pairs) -> Pairs:
    """Pairs whose sides are swapped where the sign is -1."""
    choose = lambda a, b: jnp.where(signs.reshape(-1, *[1] * (jnp.ndim(a) - 1)) > 0, a, b)
    x, flipped = (jax.tree.map(choose, *sides) for sides in ((pairs.x, pairs.flipped), (pairs.flipped, pairs.x)))
    return Pairs(x, flipped, pairs.y)


def likelier(layer: Editable, pairs: Pairs, *, etas: tuple[float, ...]) -> PyTree:
    """CDA: a step of every size up the log-probability of both sides, the metric that of the other edits."""
    start = layer.problem.params
    total = lambda params: layer.model.apply({"params": params}, pairs.x)[0].sum()
    gradient, unravel = ravel_pytree(jax.grad(total)(start))
    move = unravel(layer.inverse(layer.problem)(gradient).value)
    return jax.vmap(lambda eta: jax.tree.map(lambda a, b: a + eta * b, start, move))(jnp.asarray(etas))


def referred(layer: Editable, pairs: Pairs, beta: float) -> tuple[Editable, Pairs]:
    """The layer and the pairs with the logits of DPO: against the log-probabilities before the edit."""
    values = lambda x: jnp.stack([x[side]["values"] for side in ("first", "second")], axis=1)
    to = lambda x: {**x, "reference": values(x)}
    model = preferences.pairwise(tangents.tangent(), beta)
    examples = layer.problem.examples._replace(x=to(layer.problem.examples.x))
    options = influence.Options(damping=layer.problem.damping / layer.problem.weights.sum(), microbatch=100)
    problem = influence.problem_of(model, layer.variables, examples, options=options)
    return layer._replace(model=model, problem=problem), Pairs(to(pairs.x), to(pairs.flipped), pairs.y)


def _labels(n: int):
    return np.zeros(n, np.int32), np.full(n, -1), np.arange(n)
