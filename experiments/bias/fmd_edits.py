"""Edits of a trained model on counterfactual pairs, and the plain things to compare them with.

`Head` is what is edited, as a problem of its own: the last layer on features that are computed once, or, by the same
functions and another inverse, the whole network. `Parts` are the rows on which something is decided or reported. An
edit returns parameters; what they do is in `bias_of` and `facts`. Reference pairs steer, selection pairs choose, report
pairs are only measured.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from d3mjax import metrics
from d3mjax.attribution import influence
from d3mjax.attribution.inverses import by_last_layer
from d3mjax.debiasing import last_layer
from d3mjax.networks import dense
from d3mjax.types import Model, Pairs, Split
from d3mjax.unlearning import edits


class Parts(NamedTuple):
    """The same rows under one view, such as features: training set, test set, and both sides of three pair sets."""

    train: Split
    test: Split
    reference: Pairs
    selection: Pairs
    report: Pairs


class Head(NamedTuple):
    """The last layer, or the network, and the summed training objective that its parameters are to minimise."""

    model: Model
    problem: influence.Problem
    parts: Parts


def make_features(model: Model, num_classes: int) -> Callable[[Any, Parts], tuple[Any, Parts]]:
    """``(variables, parts) -> (parameters of the head, the parts as features)``."""

    @jax.jit
    def features(variables, parts: Parts):
        path = last_layer.find(variables["params"], num_classes)
        seen = lambda x: last_layer.features(model, variables, x, path, microbatch=1000)
        of_split = lambda split: split._replace(x=seen(split.x))
        of_pairs = lambda pairs: pairs._replace(x=seen(pairs.x), flipped=seen(pairs.flipped))
        head = variables["params"]
        for name in path:
            head = head[name]
        train, test, *pairs = parts
        return {"Dense_0": head}, Parts(of_split(train), of_split(test), *map(of_pairs, pairs))

    return features


def make_head(params: Any, parts: Parts, num_classes: int, *, damping: float, curvature: Callable) -> Head:
    """The head on the training features, damped by ``damping`` for each of their weights."""
    model = dense.linear(num_classes)
    place = (model, {"params": params}, parts.train)
    options = influence.Options(damping=damping, curvature=curvature, microbatch=2000)
    return Head(model, influence.problem_of(*place, options=options), parts)


def make_whole(network: Model, params: Any, raw: Parts, *, damping: float, most: int) -> Head:
    """The whole network, its curvature that of the first ``most`` training examples (in random order) times n / most.

    A product with the curvature costs passes over them; gradients are those of pairs, so no others are needed.
    """
    rows = jax.tree.map(lambda a: a[:most], raw.train)
    n, count = len(raw.train.y), len(rows.y)
    weights = jnp.full(count, n / count, jnp.float32)
    place = (network, {"params": params}, rows)
    options = influence.Options(damping=damping, microbatch=1000)
    return Head(network, influence.problem_of(*place, weights=weights, options=options), raw)


def refit(head: Head, *, steps: int = 8) -> Head:
    """The head at the minimum of its objective, by Newton steps."""
    return head._replace(problem=edits.refit(head.problem, by_last_layer(), steps=steps))


def bias_of(head: Head, params: Any, pairs: Pairs) -> tuple[edits.Bias, Float[Array, ""]]:
    """All that is measured on pairs, and the accuracy on the side in conflict."""
    measure = partial(edits.measure, head.model, {"params": params})
    return measure(pairs), measure(Pairs(pairs.flipped, pairs.x, pairs.y)).accuracy


def pair_step(head: Head, inverse: influence.Inverse, *, sign: Any) -> Any:
    """The change of the parameters at eta 1, in one shot: a step of eta changes them by eta times it."""
    after = edits.from_pairs(head.problem, inverse, head.parts.reference, sign=sign)
    return jax.tree.map(jnp.subtract, after.params, head.problem.params)


def along(head: Head, step: Any, etas: Float[Array, " e"]) -> Any:
    """Parameters after steps of every eta, with a leading axis."""
    return jax.vmap(lambda eta: jax.tree.map(lambda p, s: p + eta * s, head.problem.params, step))(etas)


def in_rounds(head: Head, inverse: influence.Inverse, etas: Float[Array, " r"], *, aligned: Any) -> Any:
    """Parameters after each of the steps ``etas``, one after the other, curvature and gradients anew for each."""

    def step(params, eta):
        here = head.problem._replace(params=params)
        after = edits.from_pairs(here, inverse, head.parts.reference, eta=eta, aligned=aligned).params
        return after, after

    return jax.lax.scan(step, head.problem.params, etas)[1]


def newton_on_bias(head: Head, inverse: influence.Inverse, *, eta: Any, rounds: int) -> Any:
    """Parameters after each of ``rounds`` steps down the gradient of the counterfactual bias, with a leading axis."""

    def step(params, _):
        here = head.problem._replace(params=params)
        place = (head.model, edits.counterfactual_bias, {"params": params}, here)
        after = edits.newton_on_bias(*place, inverse, head.parts.reference, eta=eta).params
        return after, after

    return jax.lax.scan(step, head.problem.params, None, length=rounds)[1]


def descend(head: Head, *, rate: float, steps: int, keep: int) -> Any:
    """Parameters along gradient descent on both sides of the reference pairs, every ``steps // keep`` steps."""
    pairs = head.parts.reference
    x, y = jnp.concatenate([pairs.x, pairs.flipped]), jnp.concatenate([pairs.y, pairs.y])
    tx = optax.adam(rate)

    def loss(params):
        logits = head.model.apply({"params": params}, x)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def advance(state, _):
        params, opt_state = state
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    def stretch(state, _):
        state, _ = jax.lax.scan(advance, state, None, length=steps // keep)
        return state, state[0]

    start = (head.problem.params, tx.init(head.problem.params))
    return jax.lax.scan(stretch, start, None, length=keep)[1]


def dfr(head: Head, key, strengths: Float[Array, " e"], num_classes: int) -> Any:
    """Heads of DFR on both sides of the reference pairs, groups being label by side; one for each strength."""
    pairs = head.parts.reference
    x, y = jnp.concatenate([pairs.x, pairs.flipped]), jnp.concatenate([pairs.y, pairs.y])
    side = jnp.repeat(jnp.arange(2), len(pairs.y))
    subsets = last_layer.balanced_subsets(key, 2 * y + side, 2 * num_classes, num_subsets=10)
    scale = last_layer.scale_of(head.parts.train.x)
    standard = last_layer.standardise(x, scale)

    def one(strength):
        found = last_layer.average_fits(standard, y, num_classes, subsets, inverse_strength=strength)
        return last_layer.with_head({"params": head.problem.params}, ("Dense_0",), found, scale)["params"]

    return jax.lax.map(one, strengths)


def probabilities(head: Head, params: Any, *, temperature: Any = 1.0) -> dict[str, Array]:
    """Softmax probabilities on the test set and both sides of the report pairs."""
    rows = {"test": head.parts.test.x, "aligned": head.parts.report.x, "conflicting": head.parts.report.flipped}
    logits = {name: head.model.apply({"params": params}, x)[0] for name, x in rows.items()}
    return {name: jax.nn.softmax(a / temperature) for name, a in logits.items()}


def facts(found: Mapping[str, Any], parts: Parts, num_groups: int, *, attribute: Bool[np.ndarray, " t"] | None = None):
    """What is reported of probabilities on the test set and the report pairs.

    ``attribute``: which test examples have it, for the gaps in positive rates; for two classes alone.
    """
    p = {name: np.asarray(a) for name, a in found.items()}
    y, right = np.asarray(parts.test.y), p["test"].argmax(1) == np.asarray(parts.test.y)
    sides = [p[side][np.arange(len(parts.report.y)), parts.report.y] for side in ("aligned", "conflicting")]
    of_groups = np.asarray(metrics.group_means(right, parts.test.group, num_groups))
    values = {
        "accuracy": right.mean(),
        "worst_group_accuracy": of_groups.min(),
        "bias": np.abs(sides[0] - sides[1]).mean(),
        "signed_bias": (sides[0] - sides[1]).mean(),
        "flip_rate": (p["aligned"].argmax(1) != p["conflicting"].argmax(1)).mean(),
        "conflicting_accuracy": (p["conflicting"].argmax(1) == parts.report.y).mean(),
    }
    if attribute is not None:
        positive = p["test"].argmax(1) == 1
        rate = lambda rows: positive[rows & attribute].mean() - positive[rows & ~attribute].mean()
        values["parity_gap"] = rate(np.ones(len(y), bool))
        values["tpr_gap"] = rate(y == 1)
        values["odds_gap"] = max(abs(rate(y == 1)), abs(rate(y == 0)))
    return {name: float(value) for name, value in values.items()}
