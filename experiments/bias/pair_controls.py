"""Effects of a model on a test set and on pairs, and what `fmd` compares edits with.

The comparisons are a temperature that gives the same bias, the average over all values of the attribute, and training
again: without the attribute, or with the pairs.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from d3mjax import metrics
from d3mjax.keys import Fmd
from d3mjax.types import Pairs, Split
from experiments.bias_tasks import BiasTask, Features

Probabilities = Mapping[str, Float[Array, "t C"]]
"""Softmax probabilities by rows: ``test``, and both sides of the report pairs, ``aligned`` and ``conflicting``."""


class Parts(NamedTuple):
    """The rows of one draw, raw or as features: training set, test set, and the pairs that steer, choose and report."""

    train: Split
    test: Split
    reference: Pairs
    selection: Pairs
    report: Pairs

    def reported(self) -> dict[str, Features]:
        """The rows of `Probabilities`."""
        return {"test": self.test.x, "aligned": self.report.x, "conflicting": self.report.flipped}


def at_temperature(probabilities: Callable[[float], Probabilities], parts: Parts, bias: float):
    """The temperature above 1 at which the counterfactual bias on the report pairs is ``bias``, by 20 bisections."""
    low, high, y = 1.0, 100.0, (np.arange(len(parts.report.y)), np.asarray(parts.report.y))
    for _ in range(20):
        middle = (low * high) ** 0.5
        p = probabilities(middle)
        reached = np.abs(np.asarray(p["aligned"])[y] - np.asarray(p["conflicting"])[y]).mean()
        low, high = (middle, high) if reached > bias else (low, middle)
    return high


def predicted(logits: Callable, parts: Parts, variables: Any, *, change: Callable = lambda x: [x]) -> Probabilities:
    """Probabilities by ``logits(variables, x)``, averaged over the versions ``change(x)`` of the rows."""
    of = lambda x: jax.nn.softmax(logits(variables, x))
    return {name: jnp.mean(jnp.stack([of(v) for v in change(x)]), 0) for name, x in parts.reported().items()}


def methods(
    task: BiasTask, parts: Parts, variables: Any, train: Callable, predict: Callable, seed: int
) -> dict[str, Callable[[], Probabilities]]:
    """What needs no edit, by name; ``train(split, family) -> variables``, ``predict(variables, change=...)``."""
    count, x = 2 * len(parts.reference.y), np.asarray(parts.train.x)
    unknown = np.full(count, -1)
    sides = np.concatenate([parts.reference.x, parts.reference.flipped])
    both = Split(sides, np.tile(parts.reference.y, 2), unknown, unknown)
    with_pairs, with_flips = (
        jax.tree.map(lambda *a: np.concatenate(a), parts.train, other)
        for other in (both, parts.train._replace(x=at_random(task, x, seed)))
    )
    without, drop = parts.train._replace(x=task.drop(x)), lambda x: [task.drop(x)]
    return {
        "average over the attribute": lambda: predict(variables, change=task.versions),
        "trained without the attribute": lambda: predict(train(without, Fmd.DROPPED), change=drop),
        "trained on the pairs alone": lambda: predict(train(both, Fmd.PAIRS_ALONE)),
        "trained on the pairs, too": lambda: predict(train(with_pairs, Fmd.PAIRS_TOO)),
        "trained on flips, too": lambda: predict(train(with_flips, Fmd.FLIPS_TOO)),
    }


def at_random(task: BiasTask, x: Features, seed: int) -> np.ndarray:
    """Every row under a random value of the attribute, possibly the same; a thousand rows at a time."""
    rng, out = np.random.default_rng([seed, 2]), np.empty_like(x)
    for begin in range(0, len(x), 1000):
        versions = np.asarray(task.versions(x[begin : begin + 1000]))
        count = versions.shape[1]
        out[begin : begin + 1000] = versions[rng.integers(0, len(versions), count), np.arange(count)]
    return out


def effects(
    probabilities: Probabilities, parts: Parts, num_groups: int, *, attribute: Bool[np.ndarray, "t"] | None = None
) -> dict[str, float]:
    """Metrics of probabilities on the test set and the report pairs.

    ``attribute``: which test examples have it, for the gaps in positive rates; for two classes alone.
    """
    p = {name: np.asarray(a) for name, a in probabilities.items()}
    y, right = np.asarray(parts.test.y), p["test"].argmax(1) == np.asarray(parts.test.y)
    sides = [p[side][np.arange(len(parts.report.y)), parts.report.y] for side in ("aligned", "conflicting")]
    values = {
        "accuracy": right.mean(),
        "worst_group_accuracy": np.asarray(metrics.group_means(right, parts.test.group, num_groups)).min(),
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
