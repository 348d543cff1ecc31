"""Rows of stereotypes as tokens of a decoder, with the states below its last block, and their exact log-probabilities.

The sides of a row begin alike. What they share is one text, the rest of each side another, so that a network computes
the logits of shared tokens once. The states below the last block are computed once and kept on disk.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from d3mjax.attribution import ekfac, tangents
from d3mjax.attribution.dense_gradients import Factors
from d3mjax.data import cache, tokens
from d3mjax.networks import decoders
from d3mjax.types import Model
from experiments.language_models import LanguageModel, check_memory

BEGINNINGS = ("<|endoftext|>", "<|begin_of_text|>", "<s>")
"""What stands in front of a text, the first of them that is in the vocabulary."""

ABOVE_ATTENTION = ("output", "gate", "up", "down")
"""Dense layers of a block that act on each position alone, and nothing of the block that mixes positions follows."""


class Sided(NamedTuple):
    """Texts of n rows with k sides: what their sides share, then the rest of each side; row after row within each."""

    tokens: dict[str, np.ndarray]  # of the (k + 1) n texts
    states: Float[np.ndarray, "kn T d"]  # below the last block, of the k n sides
    source: Int[np.ndarray, " texts"]  # the side whose states a text has
    counts: Int[np.ndarray, "n k"]  # tokens of each side


class Network(NamedTuple):
    """The last block of a decoder and what is above: all that an edit changes, and all that it is measured with."""

    config: decoders.Config
    variables: PyTree[Array]
    paths: list[tangents.Path]  # of the dense layers whose kernels are edited
    log_probs: Model
    apply: Callable[..., Array]  # (variables, x) -> log-probabilities [b], compiled
    factors: Callable[..., tuple[Array, Factors]]  # (variables, x), compiled
    drawn: Callable[..., dict[str, Array]]  # (key, variables, x) -> x with next tokens drawn by the network, compiled


def network_of(language: LanguageModel, layers: Sequence[str] = ("down",)) -> Network:
    """The network above the states of `sided`, edited in these dense layers of the last block.

    Raises:
      ValueError: a layer that is not above the attention, as `tangent_sides` has positions of what differs alone.
    """
    if not layers or set(layers) - set(ABOVE_ATTENTION):
        raise ValueError(f"layers: found {list(layers)}, expected some of {', '.join(ABOVE_ATTENTION)}")
    config = language.config
    last = config.blocks - 1
    model, paths = decoders.log_probs(config, block=last), [(f"block_{last}", layer) for layer in layers]
    variables = jax.device_put(decoders.divided(language.variables, last)[1])
    apply = jax.jit(lambda variables, x: model.apply(variables, x)[0])
    logits = decoders.logits(config, block=last)

    @jax.jit
    def drawn(key, variables, x):
        following = jax.random.categorical(key, logits.apply(variables, x)[0])
        ids = jnp.concatenate([x["ids"][:, :1], following[:, :-1]], axis=1)
        return {**x, "ids": ids, "response": x["mask"].at[:, 0].set(False)}

    factors = jax.jit(lambda variables, x: tangents.of_layers(model, variables, paths, x))
    return Network(config, variables, paths, model, apply, factors, drawn)


def sided(language: LanguageModel, sides: Sequence[Sequence[str]], directory: Path) -> Sided:
    """Tokens and states of ``sides``, k lists of n texts; states are kept in ``directory``.

    Raises:
      ValueError: no token that begins a text; a text that is longer than the model takes.
    """
    begin = next((token for token in BEGINNINGS if language.tokenizer.token_to_id(token) is not None), None)
    if begin is None:
        raise ValueError(f"tokenizer: found none of {', '.join(BEGINNINGS)}, expected one that begins a text")
    texts = [text for side in sides for text in side]
    whole, cut = language.encode([begin] * len(texts), texts)
    if cut:
        raise ValueError(f"sides: found {cut} texts that are longer than the model takes, expected shorter ones")
    config, n = language.config, len(sides[0])
    last, length = config.blocks - 1, whole["ids"].shape[1]
    check_memory(len(texts), length, config.width)
    lower = decoders.lower(config, last)
    padded = Model(lower.init, lambda variables, x: (_to_length(lower.apply(variables, x)[0], length), variables))
    options = {"name": "states", "config": (config, last), "batches": tokens.by_length}
    variables = decoders.divided(language.variables, last)[0]
    states = cache.make_features(padded, variables, directory, **options)(whole)
    ids, ends = whole["ids"].reshape(len(sides), n, length), whole["mask"].sum(1).reshape(len(sides), n)
    same = (ids == ids[:1]).all(0) & (np.arange(length) < ends.min(0)[:, None])
    shared = np.where(same.all(1), length, same.argmin(1))  # where the sides differ first
    at = np.arange(length)[None]
    parts = [(at > 0) & (at < shared[:, None]), *((at >= shared[:, None]) & (at < end[:, None]) for end in ends)]
    source = np.concatenate([np.arange(n), np.arange(len(texts))])
    of_texts = {"ids": whole["ids"][source], "mask": whole["mask"][source], "response": np.concatenate(parts)}
    return Sided(of_texts, states, source, ends.T - 1)


def _to_length(states: Float[Array, "b T d"], length: int) -> Float[Array, "b L d"]:
    return jnp.pad(states, ((0, 0), (0, length - states.shape[1]), (0, 0)))


def part(texts: Sided, rows: Int[np.ndarray, " r"]) -> Sided:
    """The texts of some rows."""
    n, k = texts.counts.shape
    index = np.concatenate([rows + side * n for side in range(k + 1)])
    of_rows = {name: a[index] for name, a in texts.tokens.items()}
    return Sided(of_rows, texts.states, texts.source[index], texts.counts[rows])


def in_batches(texts: Sided, rows: Int[np.ndarray, " r"]) -> Iterator[tuple[Int[np.ndarray, " b"], dict[str, Any]]]:
    """Batches of the texts ``rows``: positions in ``rows``, and what the network reads, of one size each."""
    of_rows = {name: a[rows] for name, a in texts.tokens.items()}
    for index, x in tokens.by_length(of_rows):
        padded = np.concatenate([index, np.repeat(index[-1:], len(x["ids"]) - len(index))])
        states = texts.states[texts.source[rows[padded]], : x["ids"].shape[1]]
        yield index, {**x, "states": states}


def log_probs(network: Network, variables: PyTree, texts: Sided) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities ``[n k]`` of the sides in nats: of what differs, and means a token of the whole texts."""
    n, k = texts.counts.shape
    sums = _sums(network, variables, texts, np.arange((k + 1) * n))
    shared, rest = sums[:n], sums[n:].reshape(k, n).T
    return rest, (shared[:, None] + rest) / texts.counts


def of_differences(network: Network, variables: PyTree, texts: Sided) -> np.ndarray:
    """The first of `log_probs`, without the cost of what sides share."""
    n, k = texts.counts.shape
    return _sums(network, variables, texts, np.arange(n, (k + 1) * n)).reshape(k, n).T


def _sums(network: Network, variables: PyTree, texts: Sided, rows: Int[np.ndarray, " r"]) -> np.ndarray:
    sums = np.zeros(len(rows))
    for index, x in in_batches(texts, rows):
        sums[index] = np.asarray(network.apply(variables, x))[: len(index)]
    if not np.isfinite(sums).all():
        named = np.unique(rows[~np.isfinite(sums)] % len(texts.counts))[:5].tolist()
        raise FloatingPointError(f"log_probs: found values that are not finite in rows {named}")
    return sums


def tangent_sides(network: Network, texts: Sided, rows: Int[np.ndarray, " r"]) -> list[dict[str, Any]]:
    """For each side of the rows, inputs of `tangents.tangent`: what differs between the sides of a row."""
    n, k = texts.counts.shape
    index = n + np.concatenate([rows + side * n for side in range(k)])
    before = np.roll(texts.tokens["response"][index], -1, axis=1)  # a state tells the token behind it
    longest = int(texts.tokens["response"][n:].sum(1).max())  # of all rows: programs are compiled once
    made = of_texts(network, texts, index, before, longest)
    of_side = lambda side: slice(side * len(rows), (side + 1) * len(rows))
    return [jax.tree.map(lambda a, at=of_side(side): a[at], made) for side in range(k)]


def of_texts(
    network: Network, texts: Sided, index: Int[np.ndarray, " r"], positions: np.ndarray, length: int
) -> dict[str, Any]:
    """Inputs of `tangents.tangent` of the texts ``index`` at these positions, batch by batch."""
    rows: dict[int, dict[str, Any]] = {}
    for at, x in in_batches(texts, index):
        values, factors = network.factors(network.variables, x)
        width = x["ids"].shape[1]
        kept = jax.tree.map(lambda a, count=len(at): a[:count], factors)
        made = tangents.as_rows(np.asarray(values)[: len(at)], kept, positions[at][:, :width], length)
        rows |= {row: jax.tree.map(lambda a, j=j: a[j], made) for j, row in enumerate(at.tolist())}
    return jax.tree.map(lambda *a: np.stack(a), *(rows[row] for row in range(len(index))))


def fisher(key: Key[Array, ""], network: Network, texts: Sided, index: Int[np.ndarray, " r"]) -> ekfac.Fisher:
    """K-FAC of the edited kernels for the next token, over all tokens of the texts ``index``.

    Labels are drawn from the model: the next tokens after the same text, one draw each.
    """
    made = []
    for batch, (at, x) in enumerate(in_batches(texts, index)):
        x = network.drawn(jax.random.fold_in(key, batch), network.variables, x)
        _, factors = network.factors(network.variables, x)
        made.append(jax.tree.map(lambda a, count=len(at): a[:count].reshape(-1, a.shape[-1]), factors))
    return tangents.kronecker(jax.tree.map(lambda *a: jnp.concatenate(a), *made))
