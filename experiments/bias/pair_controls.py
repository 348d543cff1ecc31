"""What `fmd` compares edits with: a temperature, averages over the attribute, and training again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from d3mjax.types import Split
from experiments.bias.fmd_edits import Parts
from experiments.bias_tasks import BiasTask, Features

PAIRS_ALONE, DROPPED, PAIRS_TOO, FLIPS_TOO = range(3, 7)  # families of keys, beside those of `fmd`
LAST = FLIPS_TOO


def at_temperature(programs: dict, params, parts: Parts, bias: float, facts: dict):
    """Probabilities of the head at the temperature above 1 that gives the same bias on the report pairs."""
    low, high, y = 1.0, 100.0, (np.arange(len(parts.report.y)), np.asarray(parts.report.y))
    for _ in range(20):
        middle = (low * high) ** 0.5
        p = programs["probabilities"](params, parts, middle)
        found = np.abs(np.asarray(p["aligned"])[y] - np.asarray(p["conflicting"])[y]).mean()
        low, high = (middle, high) if found > bias else (low, middle)
    facts["temperature"] = high
    return programs["probabilities"](params, parts, high)


def predicted(programs: dict, raw: Parts, variables, *, change: Callable = lambda x: [x]) -> dict[str, Any]:
    """Probabilities of a network on the test set and the report pairs, averaged over what ``change(x)`` gives."""
    rows = {"test": raw.test.x, "aligned": raw.report.x, "conflicting": raw.report.flipped}
    of = lambda x: jax.nn.softmax(programs["logits"](variables, x))
    return {name: jnp.mean(jnp.stack([of(v) for v in change(x)]), 0) for name, x in rows.items()}


def measure(
    task: BiasTask, programs: dict, raw: Parts, variables, train: Callable, timed: Callable, seed: int
) -> dict[str, Any]:
    """Probabilities on the test set and the report pairs of what needs no edit of the model, by name.

    ``train(split, family of keys) -> variables``; ``timed(name, work)`` returns ``work()``.
    """
    found, count = {}, 2 * len(raw.reference.y)
    both = Split(
        np.concatenate([raw.reference.x, raw.reference.flipped]),
        np.tile(raw.reference.y, 2),
        np.full(count, -1),
        np.full(count, -1),
    )
    without = raw.train._replace(x=task.drop(raw.train.x))
    joined = lambda *splits: jax.tree.map(lambda *a: np.concatenate(a), *splits)
    other = raw.train._replace(x=at_random(task, np.asarray(raw.train.x), seed))
    methods = {
        "average over the attribute": lambda: (variables, task.versions),
        "trained without the attribute": lambda: (train(without, DROPPED), lambda x: [task.drop(x)]),
        "trained on the pairs alone": lambda: (train(both, PAIRS_ALONE), lambda x: [x]),
        "trained on the pairs, too": lambda: (train(joined(raw.train, both), PAIRS_TOO), lambda x: [x]),
        "trained on flips, too": lambda: (train(joined(raw.train, other), FLIPS_TOO), lambda x: [x]),
    }
    for name, method in methods.items():

        def work(method=method):
            network, change = method()
            return predicted(programs, raw, network, change=change)

        found[name] = timed(name, work)
    return found


def at_random(task: BiasTask, x: Features, seed: int) -> np.ndarray:
    """Every row under a random value of the attribute, which may be its own; a thousand rows at a time."""
    rng, out = np.random.default_rng([seed, 2]), np.empty_like(x)
    for begin in range(0, len(x), 1000):
        versions = np.asarray(task.versions(x[begin : begin + 1000]))
        count = versions.shape[1]
        out[begin : begin + 1000] = versions[rng.integers(0, len(versions), count), np.arange(count)]
    return out
